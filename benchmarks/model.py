"""How fast are the models on a CPU, what memory do they need, and what does each setting gain?

    python benchmarks/model.py                 # minutes; needs a quiet machine
    python benchmarks/model.py --tiny          # a quick try with tiny models

For `dino-r50-4scale` it measures the forward pass of one 800x1066 image as in prediction, and one
training step of two 480x640 images (forward, losses, backward, clipping, optimizer) as in the
engine. For `dino-nano` it measures the way from a 320x320 input to boxes, with every score decoded.
The settings of each model alternate in one process, so that other load affects all of them. The
peak memory of each is measured in a process of its own. `faster` compares with the reference
attention in fp32 in the same run. The official code's figures are quoted, not measured here.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from report import Row, headline, options, table, write
from subjects import pictures, random_model, training_batch
from timing import interleaved, peak_gb, prepare, run_apart

from dino_core.inference.torch_runtime import TorchRuntime
from dino_core.ops.backend import Backend, use_backend
from dino_core.processing.postprocess import decode

FORWARD_HW, TRAIN_HW, NANO_HW, TINY_HW = (800, 1066), (480, 640), (320, 320), (96, 128)
TRAIN_BATCH, BOXES = 2, 10
OFFICIAL = {  # IDEA-Research/DINO on the same kind of machine with 2 threads in fp32
    "forward": {"official_s": 10.4, "official_gb": 2.3},
    "train": {"official_s": 16.5, "official_gb": 7.3},
}
COLUMNS = {
    "what": "what",
    "setting": "setting",
    "time": "median_s",
    "peak": "peak_gb",
    "goal": "goal",
    "faster": "ratio",
    "gain on fp32": "gain_on_fp32",
    "time of checkpointing": "slowdown",
    "its memory": "memory_change",
    "official": "official_s",
    "memory": "official_gb",
}


@dataclass(frozen=True)
class Setting:
    """One way to run the code of a group. `goal` is as in a row of report.py."""

    group: str
    dtype: str
    backend: Backend = "compiled"
    checkpointing: bool = False
    goal: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        reference = ", reference attention" if self.backend == "reference" else ""
        return self.dtype + reference + (", checkpointing" if self.checkpointing else "")


SETTINGS = (
    Setting("forward", "fp32", goal={"median_s": 3.2}),
    Setting("forward", "auto", goal={"median_s": 1.8}),
    Setting("forward", "bf16", goal={"median_s": 1.8}),
    Setting("forward", "fp32", "reference"),
    Setting("train", "fp32", goal={"median_s": 7.5, "peak_gb": 5}),
    Setting("train", "bf16", goal={"median_s": 4.1, "peak_gb": 5}),
    Setting("train", "fp32", checkpointing=True, goal={"slowdown": 1.25, "peak_gb": 4}),
    Setting("train", "bf16", checkpointing=True, goal={"slowdown": 1.25, "peak_gb": 4}),
    Setting("train", "fp32", "reference"),
    Setting("nano", "auto", goal={"median_s": 0.035}),
    Setting("nano", "fp32"),
    Setting("nano", "bf16"),
    Setting("nano", "fp32", "reference"),
)


def forward_call(setting: Setting, args: argparse.Namespace) -> Callable[[], object]:
    """Return a function that runs the forward pass of one image as prediction does."""
    runtime = TorchRuntime(random_model(args.model, args.tiny), "cpu", setting.dtype)
    images, mask = pictures(1, TINY_HW if args.tiny else FORWARD_HW)
    return partial(runtime.run, images.numpy(), mask.numpy())


def nano_call(setting: Setting, args: argparse.Namespace) -> Callable[[], object]:
    """Return a function from input to boxes, without a threshold: decoding has most to do."""
    runtime = TorchRuntime(random_model("dino-nano", args.tiny), "cpu", setting.dtype)
    size_hw = TINY_HW if args.tiny else NANO_HW
    images, mask = (tensor.numpy() for tensor in pictures(1, size_hw))

    def call() -> object:
        logits, boxes = runtime.run(images, mask)
        return decode(logits[0], boxes[0], size_hw)

    return call


def train_call(setting: Setting, args: argparse.Namespace) -> Callable[[], object]:
    """Return a function that takes one optimizer step and keeps the weights finite."""
    # These imports would count as memory of prediction if they were at the top.
    from dino_core.config import ResolvedConfig
    from dino_core.engine.optimizer import build_optimizer
    from dino_core.engine.step import Stepper

    model = random_model(args.model, args.tiny)
    model.backbone.fold_batch_norm()  # as fit() does
    model.set_gradient_checkpointing(setting.checkpointing)
    config = ResolvedConfig(lr=1e-7)
    dtype = torch.bfloat16 if setting.dtype == "bf16" else torch.float32
    optimizer = build_optimizer(model, config)
    stepper = Stepper(config, model, None, optimizer, torch.device("cpu"), dtype)
    batch = training_batch(TRAIN_BATCH, BOXES, TINY_HW if args.tiny else TRAIN_HW)

    def call() -> None:
        if not stepper.gradients([batch], step=config.warmup_steps, progress=0.0).usable:
            raise SystemExit(f"{setting.name}: the loss or its gradient is not finite")
        stepper.update()
        optimizer.zero_grad(set_to_none=True)  # the next setting's memory is its own

    return call


CALLS = {"forward": forward_call, "train": train_call, "nano": nano_call}


def measure(args: argparse.Namespace) -> list[Row]:
    """Return times of the settings that `args.measure` numbers, and the peak memory."""
    prepare(args.threads, args.allocator)
    calls = {}
    for number in args.measure:
        setting = SETTINGS[number]
        calls[number] = partial(_with, setting.backend, CALLS[setting.group](setting, args))
    times = interleaved(calls, args.repeats)
    return [
        {"median_s": statistics.median(t), "times_s": t, "peak_gb": peak_gb()}
        for t in times.values()
    ]


def _with(backend: Backend, call: Callable[[], object]) -> None:
    with use_backend(backend):
        call()


def run_all(args: argparse.Namespace) -> list[Row]:
    """Return a row per setting: times from the group's process, memory from its own."""
    rows: list[Row] = []
    for group in CALLS:
        numbers = [n for n, setting in enumerate(SETTINGS) if setting.group == group]
        times = _apart(numbers, args.repeats, args)
        for number, timed in zip(numbers, times, strict=True):
            # Two runs, because the optimizer's state exists from the second on.
            (alone,) = _apart([number], 1, args)
            rows.append(_row(SETTINGS[number], timed, alone["peak_gb"], args))
    return rows


def _apart(numbers: Sequence[int], repeats: int, args: argparse.Namespace) -> list[Row]:
    arguments = ["--model", args.model, "--allocator", args.allocator, "--repeats", str(repeats)]
    arguments += ["--tiny"] * args.tiny + ["--measure", *map(str, numbers)]
    rows: list[Row] = run_apart(arguments, args.threads)
    return rows


def _row(setting: Setting, timed: Row, peak: float, args: argparse.Namespace) -> Row:
    sizes = {"forward": FORWARD_HW, "train": TRAIN_HW, "nano": NANO_HW}
    height, width = TINY_HW if args.tiny else sizes[setting.group]
    model = "dino-tiny" if args.tiny else "dino-nano" if setting.group == "nano" else args.model
    whats = {"forward": "forward", "train": f"step of {TRAIN_BATCH}", "nano": "forward, decode"}
    row: Row = {"what": f"{model} {whats[setting.group]} {height}x{width}"}
    row |= {"group": setting.group, "setting": setting.name, "dtype": setting.dtype}
    row |= {"backend": setting.backend, "checkpointing": setting.checkpointing}
    row |= {**timed, "peak_gb": peak}
    published = model == "dino-r50-4scale" and setting.backend == "compiled"
    if published or model == "dino-nano":
        row["goal"] = dict(setting.goal)
    if published and setting.dtype == "fp32" and not setting.checkpointing:
        row |= OFFICIAL[setting.group]
    return row


def compare(rows: Sequence[Row]) -> None:
    """Add to each row its ratios to other rows of its group."""
    keys = ("group", "dtype", "backend", "checkpointing")
    found = {tuple(row[key] for key in keys): row for row in rows}
    for (group, dtype, backend, checkpointing), row in found.items():
        if backend == "compiled":
            reference = found[group, "fp32", "reference", False]
            row["ratio"] = reference["median_s"] / row["median_s"]
        if dtype != "fp32":
            fp32 = found[group, "fp32", backend, checkpointing]
            row["gain_on_fp32"] = fp32["median_s"] / row["median_s"]
        if checkpointing:
            without = found[group, dtype, backend, False]
            row["slowdown"] = row["median_s"] / without["median_s"]
            row["memory_change"] = row["peak_gb"] / without["peak_gb"]


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--model", default="dino-r50-4scale", help="a variant's name")
    parser.add_argument(
        "--allocator", choices=("kept", "default"), default="kept",
        help="kept: glibc keeps freed memory, as with the dino command",
    )  # fmt: skip
    parser.add_argument("--measure", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    rows = run_all(args)
    compare(rows)
    headline("the models", args, args.allocator)
    print(table(rows, COLUMNS))
    write(args, rows, args.allocator)


if __name__ == "__main__":
    main()
