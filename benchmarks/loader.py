"""How many training images per second does one core decode and augment?

    python benchmarks/loader.py                         # 640x480 JPEG, every augmentation
    python benchmarks/loader.py --tiny --repeats 1      # a quick try

The images are the photos of the examples, cut to 4:3, resized to 640x480 and written with quality
90, with eight boxes each. One thread does everything. Its processor time is measured, so that other
load on the machine does not matter. `workers` multiply the speed. The goal is 60 images per second
and core, so that training never waits for data.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from report import Row, headline, options, table, write
from timing import prepare

from dino_core.config import PreprocessConfig
from dino_core.data.augment.mixing import build_mixing
from dino_core.data.augment.transforms import AugmentKind, build_transform
from dino_core.data.dataset import DetectionDataset, SampleKey
from dino_core.data.records import ImageRecord
from dino_core.variants import VARIANTS

PHOTOS = Path(__file__).parents[1] / "examples/photos"
WIDTH, HEIGHT = 640, 480
BOXES = 8
GOAL = {"images_per_s": 60.0}
COLUMNS = {
    "model": "model",
    "augment": "augment",
    "images/s and core": "images_per_s",
    "processor time per image": "image_s",
    "goal": "goal",
}


@dataclass(frozen=True)
class Case:
    """One way to load samples."""

    model: str
    augment: AugmentKind
    mosaic: float = 0.0
    copy_paste: float = 0.0

    @property
    def name(self) -> str:
        parts = {"mosaic": self.mosaic, "copy_paste": self.copy_paste}
        return " ".join([self.augment, *(f"{k} {v:g}" for k, v in parts.items() if v)])


def cases() -> list[Case]:
    """List every augmentation for both inputs, and mixing always or as often as in training."""
    kinds: tuple[AugmentKind, ...] = ("none", "default", "strong", "published")
    found = []
    for model in ("dino-nano", "dino-r50-4scale"):
        found += [Case(model, kind) for kind in kinds]
        found += [Case(model, "strong", 1.0), Case(model, "strong", 0.5, 0.5)]
    return found


def make_records(folder: Path, count: int) -> list[ImageRecord]:
    """Write `count` images, each a different cut of a photo, with boxes."""
    photos = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        photo = ImageOps.fit(photos[number % len(photos)], (WIDTH * 5 // 4, HEIGHT * 5 // 4))
        left, top = int(rng.integers(WIDTH // 4 + 1)), int(rng.integers(HEIGHT // 4 + 1))
        path = folder / f"{number:04d}.jpg"
        photo.crop((left, top, left + WIDTH, top + HEIGHT)).save(path, quality=90)
        low = rng.uniform(0, 0.7, (BOXES, 2)) * (WIDTH, HEIGHT)
        high = low + rng.uniform(0.05, 0.3, (BOXES, 2)) * (WIDTH, HEIGHT)
        boxes = np.hstack([low, high]).astype(np.float32)
        sides = boxes[:, 2:] - boxes[:, :2]
        records.append(
            ImageRecord(
                image_id=number,
                path=path,
                width=WIDTH,
                height=HEIGHT,
                boxes_xyxy_px=boxes,
                class_indices=rng.integers(0, 5, BOXES),
                is_crowd=np.zeros(BOXES, np.bool_),
                areas=sides[:, 0] * sides[:, 1],
            )
        )
    return records


def load_all(dataset: DetectionDataset, epoch: int) -> float:
    """Return the seconds of processor time of one epoch."""
    start = time.process_time()
    for index in range(len(dataset)):
        dataset[SampleKey(epoch, index, True)]
    return time.process_time() - start


def dataset_of(
    case: Case, records: list[ImageRecord], preprocess: PreprocessConfig
) -> DetectionDataset:
    transform = build_transform(case.augment, preprocess)
    mixing = build_mixing(case.mosaic, case.copy_paste, case.augment, preprocess, records)
    return DetectionDataset(records, preprocess, transform, 0, mixing)


def measure(args: argparse.Namespace, folder: Path) -> list[Row]:
    """Return a row for each case."""
    count = 4 if args.tiny else args.images
    records = make_records(folder, count)
    datasets = {}
    for case in cases():
        preprocess = VARIANTS[case.model].preprocess
        if args.tiny:
            preprocess = PreprocessConfig(short_side=64, max_side=96)
        datasets[case] = dataset_of(case, records, preprocess)
        load_all(datasets[case], 0)
    times: dict[Case, list[float]] = {case: [] for case in datasets}
    for epoch in range(args.repeats):  # in turn, so that a busy moment affects all of them
        for case, dataset in datasets.items():
            times[case].append(load_all(dataset, epoch))
    rows: list[Row] = []
    for case, seconds in times.items():
        image_s = statistics.median(seconds) / count
        rows.append(
            {
                "model": case.model,
                "augment": case.name,
                "image_s": image_s,
                "images_per_s": 1 / image_s,
                "times_s": seconds,
                "goal": GOAL,
            }
        )
    return rows


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--images", type=int, default=24)
    parser.set_defaults(threads=1)
    args = parser.parse_args()
    prepare(args.threads, "kept")
    cv2.setNumThreads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    headline(f"training samples of {WIDTH}x{HEIGHT} JPEG, one process", args, "kept")
    print(table(rows, COLUMNS))
    write(args, rows, "kept")


if __name__ == "__main__":
    main()
