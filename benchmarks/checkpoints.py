"""How long does a published checkpoint take to import and to load, and what memory does it need?

    python benchmarks/checkpoints.py           # a minute; needs a quiet machine
    python benchmarks/checkpoints.py --tiny    # a quick try with a tiny network in place of Swin-L

A file of random weights, as the official code saves it, is imported by `dino models import`
(timed from process start to exit). The result is loaded (timed from the end of `import torch` until
the network is ready). One 800x1066 image runs through `dino-swinl-4scale` as in prediction, which
includes building the network. Every run has a process of its own, and the peak memory is the
largest of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from report import Row, headline, options, table, write
from timing import peak_gb, prepare, run_apart

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
SWIN_HW, TINY_HW = (800, 1066), (96, 128)
COLUMNS = {"what": "what", "time": "median_s", "peak": "peak_gb", "goal": "goal"}


def write_official_file(path: Path) -> None:
    """Save an R50 with 4 scales as the official code does: weights, optimizer and arguments."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, list[int]] = json.loads((GOLDEN / "keys_4scale_r50.json").read_text())
    aliases: dict[str, list[str]] = json.loads((GOLDEN / "aliases_4scale_r50.json").read_text())
    weights = {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    weights |= {other: weights[name] for name, others in aliases.items() for other in others}
    content = {"model": weights, "optimizer": {}, "lr_scheduler": {}, "epoch": 11}
    torch.save({**content, "args": argparse.Namespace(num_classes=91)}, path)


def import_file(source: Path) -> float:
    """Return the peak memory of `dino models import`, called from the command line."""
    out = source.with_name("imported.safetensors")
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "dino_cli", "models", "import", str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr}")
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


def load(path: Path) -> float:
    """Return the peak memory with a loaded network; the imports are part of the timed code."""
    from dino_core.checkpoints.io import build_model, load_checkpoint

    build_model(load_checkpoint(path))
    return peak_gb()


def forward(variant: str) -> float:
    """Return the peak memory of one image's forward pass; "tiny" is a tiny network."""
    from subjects import pictures, random_model

    from dino_core.inference.torch_runtime import TorchRuntime

    tiny = variant == "tiny"
    runtime = TorchRuntime(random_model(variant, tiny), "cpu", "fp32")
    images, mask = pictures(1, TINY_HW if tiny else SWIN_HW)
    runtime.run(images.numpy(), mask.numpy())
    return peak_gb()


def measure(action: str, subject: str) -> Row:
    """Return seconds and memory of one action in this process."""
    start = time.perf_counter()
    if action == "import":
        peak = import_file(Path(subject))
    elif action == "load":
        peak = load(Path(subject))
    else:
        peak = forward(subject)
    return {"time_s": time.perf_counter() - start, "peak_gb": peak}


def run_all(args: argparse.Namespace, folder: Path) -> list[Row]:
    """Return a row for each action, with every run in a new process."""
    official = folder / "official.pth"
    write_official_file(official)
    swin = "tiny" if args.tiny else "dino-swinl-4scale"
    actions = [
        ("import", str(official), "dino-r50-4scale, import", {"median_s": 5, "peak_gb": 1}),
        ("load", str(folder / "imported.safetensors"), "dino-r50-4scale, load", {"median_s": 1}),
        ("forward", swin, f"{swin}, build and forward", {} if args.tiny else {"peak_gb": 6}),
    ]
    rows = []
    for action, subject, what, goal in actions:
        runs = [
            run_apart(["--measure", action, subject], args.threads) for _ in range(args.repeats)
        ]
        times = [run["time_s"] for run in runs]
        rows.append(
            {
                "what": what,
                "median_s": statistics.median(times),
                "times_s": times,
                "peak_gb": max(run["peak_gb"] for run in runs),
                "goal": goal,
            }
        )
    return rows


def main() -> None:
    parser = options(__doc__, repeats=3)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        prepare(args.threads, "kept")
        print(json.dumps(measure(*args.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = run_all(args, Path(folder))
    headline("checkpoints", args, "kept")
    print(table(rows, COLUMNS))
    write(args, rows, "kept")


if __name__ == "__main__":
    main()
