"""How long does `dino predict` take, from process start to exit, for 1 image and for many?

    python benchmarks/predict.py                          # dino-nano, 1 and 100 images
    python benchmarks/predict.py --images 3 --tiny        # a quick try with a tiny model

The command runs in a new process each time. With `--folder` the images are taken from there and
repeated up to the requested number. Otherwise they are generated: 640x480 JPEG files of noise and
rectangles, about 60 kB each.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from report import Row, headline, options, table, write

SUFFIXES = (".jpg", ".jpeg", ".png")
COLUMNS = {
    "": "what",
    "time": "median_s",
    "images/s": "images_per_s",
    "images/s without the start": "warm_images_per_s",
}


def make_photos(folder: Path, count: int, source: Path | None) -> None:
    """Fill `folder` with `count` images."""
    folder.mkdir()
    if source is not None:
        found = sorted(p for p in source.iterdir() if p.suffix.lower() in SUFFIXES)
        if not found:
            raise SystemExit(f"{source}: no images")
        for number, path in zip(range(count), itertools.cycle(found)):
            shutil.copy(path, folder / f"{number:04d}{path.suffix}")
        return
    rng = np.random.default_rng(0)
    for number in range(count):
        noise = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        image = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3))
        pen = ImageDraw.Draw(image)
        for _ in range(6):
            x, y = rng.integers(0, 500), rng.integers(0, 350)
            w, h = rng.integers(30, 200, 2)
            color = tuple(int(v) for v in rng.integers(0, 256, 3))
            pen.rectangle((int(x), int(y), int(x + w), int(y + h)), fill=color)
        image.save(folder / f"{number:04d}.jpg", quality=90)


def timed_predict(source: Path, out: Path, args: argparse.Namespace, model: str) -> float:
    """Return the seconds from process start to exit."""
    command = [sys.executable, "-m", "dino_cli", "predict", str(source), "--model", model]
    command += ["--out", str(out), *args.extra]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "DINO_OFFLINE": "1"}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr}")
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    expected = 1 if source.is_file() else len(list(source.iterdir()))
    if len(lines) != expected:
        raise SystemExit(f"{len(lines)} results for {expected} images")
    return seconds


def measure(args: argparse.Namespace, folder: Path) -> list[Row]:
    """Return a row for one image and one for many, with images/s with and without the start."""
    model = args.model
    if args.tiny:
        from tiny import write_tiny_model

        model = str(write_tiny_model(folder / "tiny.safetensors"))
    photos = folder / "photos"
    make_photos(photos, args.images, args.folder)
    first = min(photos.iterdir())
    timed_predict(first, folder / "warm", args, model)  # fills the file cache
    one = [timed_predict(first, folder / f"one{i}", args, model) for i in range(args.repeats)]
    many = [timed_predict(photos, folder / f"many{i}", args, model) for i in range(args.repeats)]
    one_s, many_s = statistics.median(one), statistics.median(many)
    return [
        {"what": "1 image", "images": 1, "median_s": one_s, "times_s": one},
        {
            "what": f"{args.images} images",
            "images": args.images,
            "median_s": many_s,
            "times_s": many,
            "images_per_s": args.images / many_s,
            "warm_images_per_s": (args.images - 1) / max(many_s - one_s, 1e-9),
        },
    ]


def main() -> None:
    parser = options(__doc__, repeats=3)
    parser.add_argument("--model", default="dino-nano", help="a model's name or file")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="take images from this folder")
    parser.add_argument("extra", nargs="*", help="after --: options for dino predict")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    model = "dino-tiny" if args.tiny else args.model
    headline(f"dino predict, {model}, process start to exit", args, "kept")
    print(table(rows, COLUMNS))
    write(args, rows, "kept")


if __name__ == "__main__":
    main()
