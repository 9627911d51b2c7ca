"""How do time and memory grow with image size, queries, batch and threads?

    python benchmarks/growth.py                # 5 minutes on 2 cores
    python benchmarks/growth.py --tiny         # a quick try with tiny models

The subjects are the compiled deformable attention (forward, from reference points, offsets and
logits; in "encoder" every token is a query) and the forward passes of `dino-nano` and
`dino-r50-4scale`, as in prediction. One setting changes at a time. All settings of a subject
alternate in one process, and medians are compared. Memory is the growth of a process of its own
from before the first call to the peak. Exponents relate a row to the first row of its group: 1 is
proportional growth, and for threads -1 is ideal.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from report import Row, cores, headline, options, table, write
from subjects import attention_inputs, pictures, random_model
from timing import interleaved, peak_gb, prepare, run_apart

from dino_core.inference.torch_runtime import TorchRuntime
from dino_core.ops.deformable_attention import deformable_attention

THREADS = (1, 2, 4, 8, 16, 32, 64)
COLUMNS = {
    "subject": "what",
    "grows": "axis",
    "to": "value",
    "time": "median_s",
    "of the first": "time_ratio",
    "exponent": "time_exponent",
    "memory": "working_gb",
    "of first": "memory_ratio",
    "its exponent": "memory_exponent",
}


@dataclass(frozen=True)
class Setting:
    """The size of one call."""

    size_hw: tuple[int, int]
    queries: int | None  # None: as many as there are tokens, as in the encoder
    threads: int = 0  # 0: the value of --threads
    batch: int = 1


@dataclass(frozen=True)
class Subject:
    """What is measured, its base setting, and the axes along which it grows."""

    name: str
    base: Setting
    axes: Mapping[str, Sequence[Any]]


OPERATOR = "deformable attention"
SUBJECTS = (
    Subject(
        f"{OPERATOR}, encoder",
        Setting((800, 1066), None),
        {"size_hw": ((400, 533), (565, 754), (800, 1066), (1131, 1508)), "batch": (1, 2, 4)},
    ),
    Subject(
        f"{OPERATOR}, decoder",
        Setting((800, 1066), 900),
        {"size_hw": ((400, 533), (800, 1066), (1131, 1508)), "queries": (300, 900, 2700, 8100)},
    ),
    Subject(
        "dino-nano",
        Setting((320, 320), 150),
        {
            "size_hw": ((224, 224), (320, 320), (448, 448), (640, 640)),
            "queries": (75, 150, 300),
            "batch": (1, 2, 4, 8),
        },
    ),
    Subject(
        "dino-r50-4scale",
        Setting((480, 640), 900),
        {
            "size_hw": ((480, 640), (640, 853), (800, 1066)),
            "queries": (300, 900, 1800),
            "batch": (1, 2),
        },
    ),
)
TINY_SUBJECTS = (
    Subject(f"{OPERATOR}, encoder", Setting((96, 128), None), {"batch": (1, 2)}),
    Subject(
        "dino-tiny",
        Setting((96, 128), 25),
        {"size_hw": ((96, 128), (192, 256)), "queries": (25, 50)},
    ),
)


def subjects(args: argparse.Namespace) -> tuple[Subject, ...]:
    return TINY_SUBJECTS if args.tiny else SUBJECTS


def axes(subject: Subject, args: argparse.Namespace) -> Iterator[tuple[str, list[Setting]]]:
    """Return each axis with the settings along it."""
    base = replace(subject.base, threads=args.threads)
    for axis, values in subject.axes.items():
        yield axis, [replace(base, **{axis: value}) for value in values]
    yield "threads", [replace(base, threads=n) for n in THREADS if n <= cores()]


def distinct(subject: Subject, args: argparse.Namespace) -> list[Setting]:
    """Return the settings of all axes, each once."""
    return list(dict.fromkeys(setting for _, line in axes(subject, args) for setting in line))


def make_call(subject: Subject, setting: Setting, tiny: bool) -> Callable[[], object]:
    """Return a function that runs one forward pass of the subject in that setting."""
    forward: Callable[[], object]
    if subject.name.startswith(OPERATOR):
        inputs = attention_inputs(setting.size_hw, setting.queries, setting.batch, torch.float32)
        tensors = inputs.value, inputs.levels, inputs.references, inputs.offsets, inputs.logits
        forward = partial(deformable_attention, *tensors)
    else:
        model = random_model(subject.name, tiny, setting.queries)
        images, mask = pictures(setting.batch, setting.size_hw)
        runtime = TorchRuntime(model, "cpu", "fp32")
        forward = partial(runtime.run, images.numpy(), mask.numpy())

    def call() -> None:
        torch.set_num_threads(setting.threads)
        forward()

    return call


def measure(args: argparse.Namespace) -> list[Row]:
    """Return times and memory growth of the settings that `args.measure` numbers."""
    prepare(args.threads, "kept")
    number, *chosen = args.measure
    subject = subjects(args)[number]
    settings = distinct(subject, args)
    calls = {n: make_call(subject, settings[n], args.tiny) for n in chosen}
    before = peak_gb()
    times = interleaved(calls, args.repeats)
    working = peak_gb() - before
    return [
        {"median_s": statistics.median(t), "times_s": t, "working_gb": working}
        for t in times.values()
    ]


def measure_apart(number: int, args: argparse.Namespace) -> dict[Setting, Row]:
    """Return times from a common process and memory from a process per setting."""
    settings = distinct(subjects(args)[number], args)

    def apart(chosen: Sequence[int], repeats: int) -> list[Row]:
        arguments = ["--repeats", str(repeats), *["--tiny"] * args.tiny]
        arguments += ["--measure", *map(str, (number, *chosen))]
        rows: list[Row] = run_apart(arguments, args.threads)
        return rows

    found = dict(zip(settings, apart(range(len(settings)), args.repeats), strict=True))
    for n, row in enumerate(found.values()):
        row["working_gb"] = apart([n], 1)[0]["working_gb"]
    return found


def rows_of(subject: Subject, found: Mapping[Setting, Row], args: argparse.Namespace) -> list[Row]:
    """Return a row for each point of each axis, with its growth from the first point."""
    rows = []
    for axis, line in axes(subject, args):
        first = found[line[0]]
        for setting in line:
            row = {"what": subject.name, **asdict(setting)}
            row |= {"axis": axis.removesuffix("_hw"), "value": _label(getattr(setting, axis))}
            row |= found[setting]
            step = math.log(_amount(setting, axis) / _amount(line[0], axis))
            for name, key in (("time", "median_s"), ("memory", "working_gb")):
                if step and first[key] > 0 and row[key] > 0:
                    row[f"{name}_ratio"] = row[key] / first[key]
                    row[f"{name}_exponent"] = math.log(row[key] / first[key]) / step
            rows.append(row)
    return rows


def _amount(setting: Setting, axis: str) -> float:
    value = getattr(setting, axis)
    return float(math.prod(value)) if axis == "size_hw" else float(value)


def _label(value: int | tuple[int, int]) -> str:
    return str(value) if isinstance(value, int) else "x".join(map(str, value))


def main() -> None:
    parser = options(__doc__, repeats=3)
    parser.add_argument("--measure", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    rows: list[Row] = []
    for number, subject in enumerate(subjects(args)):
        rows += rows_of(subject, measure_apart(number, args), args)
    headline("growth of time and memory, fp32", args, "kept")
    print(table(rows, COLUMNS))
    write(args, rows, "kept")


if __name__ == "__main__":
    main()
