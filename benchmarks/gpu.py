"""How fast are the CUDA kernels, and how much do they speed up the models on a GPU?

    benchmarks/gpu.sh                              # builds and tests first
    python benchmarks/gpu.py --out gpu.json        # minutes
    python benchmarks/gpu.py --tiny                # a quick try with tiny models

The first table is the operator from reference points, offsets and logits, with the encoder's shape
for an 800x1066 image (every token of the levels 100x134, 50x67, 25x34, 13x17 is a query) and with
900 queries; M = 8, D = 32, P = 4. `fused` is one kernel. `composed` leaves softmax and locations to
PyTorch before the compiled `ms_deform_attn`. `reference` is PyTorch alone. `transformers` is the
implementation of that library, where it is installed. The calls take turns, each after a matrix
product that hides Python's time and empties the cache. Times are medians of CUDA events. `ratio` is
the reference's time divided by that of `fused`, and `theirs` that of `transformers` divided by it.

The second table is `dino-r50-4scale` (prediction of one 800x1066 image and a training step of two)
and `dino-nano` at 320x320, as the package runs them: images per second by the wall clock, peak
memory of PyTorch's allocator, and the share of our operator in the time of all kernels
(torch.profiler).
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch
from report import Row, table
from subjects import (
    AttentionInputs,
    attention_inputs,
    pictures,
    random_model,
    training_batch,
)
from timing import interleaved
from torch import Tensor

from dino_core.config import ResolvedConfig
from dino_core.engine.optimizer import build_optimizer
from dino_core.engine.step import Stepper
from dino_core.inference.torch_runtime import TorchRuntime
from dino_core.ops._extension import EXTENSION
from dino_core.ops.backend import Backend, use_backend
from dino_core.ops.deformable_attention import deformable_attention, sampling_locations
from dino_core.ops.ms_deform_attn import ms_deform_attn

DEVICE = "cuda"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IMAGE_HW, NANO_HW, TINY_HW = (800, 1066), (320, 320), (96, 128)
QUERIES = {"encoder": None, "decoder": 900}
BATCHES = (1, 2)
TRAIN_BATCH, BOXES = 2, 10
WARM_UP = 3
FILLER = (
    4096  # side of the matrices multiplied before each measured call, which takes some milliseconds
)
GOALS = {("bf16", "encoder", "forward"): 3.0, ("bf16", "encoder", "forward + backward"): 2.0}
IM2COL_STEP = 64  # an argument of transformers' module that its PyTorch code does not read

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # the dtypes of value, offsets and logits
Call = Callable[[], object]


def attentions(inputs: AttentionInputs) -> dict[str, Attention]:
    """Return the available implementations, for the levels and reference points of `inputs`."""
    levels, references = inputs.levels, inputs.references

    def points(offsets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        locations = sampling_locations(levels, references, offsets)
        weights = logits.to(locations.dtype).flatten(-2).softmax(-1)
        return locations, weights.view(logits.shape)

    def ours(backend: Backend, value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        with use_backend(backend):
            return deformable_attention(value, levels, references, offsets, logits)

    def composed(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        with use_backend("compiled"):
            return ms_deform_attn(value, levels, *points(offsets, logits))

    found: dict[str, Attention] = {
        "fused": partial(ours, "compiled"),
        "composed": composed,
        "reference": partial(ours, "reference"),
    }
    try:
        library = import_module("transformers.models.deformable_detr.modeling_deformable_detr")
    except ImportError:
        return found
    module = library.MultiScaleDeformableAttention()
    sizes = torch.tensor(levels, device=DEVICE)
    tokens = sizes.prod(1)
    starts = tokens.cumsum(0) - tokens

    def theirs(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        at, weights = (t.to(value.dtype) for t in points(offsets, logits))
        result: Tensor = module(value, sizes, levels, starts, at, weights, IM2COL_STEP)
        return result

    return found | {"transformers": theirs}


def gpu_seconds(calls: Mapping[str, Call], repeats: int) -> dict[str, float]:
    """Return the median seconds of each call on the GPU; the calls take turns."""
    filler = torch.randn(FILLER, FILLER, device=DEVICE)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UP + repeats):
        for name, call in calls.items():
            start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            _ = filler @ filler
            start.record()
            call()
            end.record()
            end.synchronize()
            if turn >= WARM_UP:
                times[name].append(start.elapsed_time(end) / 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def attention_rows(args: argparse.Namespace) -> list[Row]:
    """Measure every implementation at every dtype, batch and shape, without and with backward."""
    rows = []
    for dtype, batch, shape in product(DTYPES, BATCHES, QUERIES):
        size_hw = TINY_HW if args.tiny else IMAGE_HW
        made = attention_inputs(size_hw, QUERIES[shape], batch, DTYPES[dtype])
        inputs = AttentionInputs(
            made.value.to(DEVICE),
            made.levels,
            *(t.to(DEVICE) for t in (made.references, made.offsets, made.logits)),
        )
        live = [t.requires_grad_() for t in (inputs.value, inputs.offsets, inputs.logits)]
        queries, channels = made.offsets.shape[1], made.value.shape[2] * made.value.shape[3]
        direction = torch.randn(batch, queries, channels, device=DEVICE).to(DTYPES[dtype])

        def forward(attention: Attention, live: list[Tensor] = live) -> None:
            with torch.no_grad():
                attention(*live)

        def both(
            attention: Attention, live: list[Tensor] = live, direction: Tensor = direction
        ) -> None:
            torch.autograd.grad(attention(*live), live, direction)

        for what, run in {"forward": forward, "forward + backward": both}.items():
            calls = {name: partial(run, call) for name, call in attentions(inputs).items()}
            times = gpu_seconds(calls, args.repeats)
            row: Row = {"dtype": dtype, "batch": str(batch), "shape": shape, "what": what}
            row |= {f"{name}_s": seconds for name, seconds in times.items()}
            row["ratio"] = times["reference"] / times["fused"]
            if "transformers" in times:
                row["theirs"] = times["transformers"] / times["fused"]
            if not args.tiny and (dtype, shape, what) in GOALS:
                row["goal"] = {"ratio": GOALS[dtype, shape, what]}
            rows.append(row)
    return rows


def prediction(variant: str, size_hw: tuple[int, int], dtype: str, tiny: bool) -> Call:
    """Return a call that takes one image from host memory to logits and boxes in host memory."""
    runtime = TorchRuntime(random_model(variant, tiny), DEVICE, dtype)
    images, mask = pictures(1, TINY_HW if tiny else size_hw)
    return partial(runtime.run, images.numpy(), mask.numpy())


def training(dtype: str, tiny: bool) -> Call:
    """Return a call that takes one optimizer step and keeps the weights finite."""
    model = random_model("dino-r50-4scale", tiny)
    model.backbone.fold_batch_norm()  # as fit() does
    config = ResolvedConfig(lr=1e-7)
    model = model.to(DEVICE)
    optimizer = build_optimizer(model, config)
    stepper = Stepper(config, model, None, optimizer, torch.device(DEVICE), DTYPES[dtype])
    batch = training_batch(TRAIN_BATCH, BOXES, TINY_HW if tiny else IMAGE_HW)

    def call() -> None:
        if not stepper.gradients([batch], step=config.warmup_steps, progress=0.0).usable:
            raise SystemExit(f"training step in {dtype}: the loss or its gradient is not finite")
        stepper.update()
        torch.cuda.synchronize()

    return call


def model_rows(args: argparse.Namespace) -> list[Row]:
    """Measure prediction and training with the compiled and the reference attention, in turn."""
    r50 = partial(prediction, "dino-r50-4scale", IMAGE_HW)
    nano = partial(prediction, "dino-nano", NANO_HW)
    cases: dict[tuple[str, str], tuple[Callable[[str, bool], Call], int]] = {
        ("dino-r50-4scale, prediction", "fp32"): (r50, 1),
        ("dino-r50-4scale, prediction", "bf16"): (r50, 1),
        ("dino-r50-4scale, training step", "fp32"): (training, TRAIN_BATCH),
        ("dino-r50-4scale, training step", "bf16"): (training, TRAIN_BATCH),
        ("dino-nano, prediction", "fp32"): (nano, 1),
        ("dino-nano, prediction", "bf16"): (nano, 1),
    }
    rows = []
    for (what, dtype), (make, images) in cases.items():
        call = make(dtype, args.tiny)
        backends: tuple[Backend, ...] = ("compiled", "reference")
        calls = {name: partial(_with, name, call) for name in backends}
        times = interleaved(calls, args.repeats)
        rates = {name: images / statistics.median(found) for name, found in times.items()}
        row: Row = {"what": what, "dtype": dtype, "images_per_s": rates["compiled"]}
        row |= {"reference_per_s": rates["reference"]}
        row |= {"ratio": rates["compiled"] / rates["reference"]}
        torch.cuda.reset_peak_memory_stats()
        calls["compiled"]()
        row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        row["op_fraction"] = share_of_the_operator(calls["compiled"])
        rows.append(row)
    return rows


def _with(backend: Backend, call: Call) -> None:
    with use_backend(backend):
        call()


def share_of_the_operator(call: Call) -> float:
    """Return the share of our kernels in the time of all kernels of one call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    times = {event.key: float(event.self_device_time_total) for event in profile.key_averages()}
    ours = sum(time for key, time in times.items() if "dino::cuda::" in key)
    return ours / max(sum(times.values()), 1e-9)


def with_units(rows: list[Row]) -> list[Row]:
    """Format seconds as microseconds, which the operator's times need."""
    return [
        {k: f"{v * 1e6:.0f} us" if k.endswith("_s") else v for k, v in row.items()} for row in rows
    ]


def where() -> dict[str, Any]:
    """Describe the GPU and its driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gb": properties.total_memory / 1e9,
        "driver": driver.partition("\n")[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20, help=f"after {WARM_UP} of warm-up")
    parser.add_argument("--tiny", action="store_true", help="a quick try with tiny models")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(f"no GPU: torch {torch.__version__} sees none")
    if "cuda" not in EXTENSION.devices:
        raise SystemExit(f"no CUDA kernels: {EXTENSION.cuda}; benchmarks/gpu.sh builds them")
    machine, date = where(), datetime.now().astimezone().isoformat(timespec="seconds")
    print(f"{machine['gpu']}, driver {machine['driver']}, torch {machine['torch']}, {date},")
    print(f"medians of {args.repeats}\n")
    operator = attention_rows(args)
    if "transformers_s" not in operator[0]:
        print("transformers is not installed, so it is left out\n")
    keys = ["fused_s", "composed_s", "reference_s", "transformers_s"]
    columns = {key: key for key in ("dtype", "batch", "shape", "what")}
    columns |= {key.removesuffix("_s"): key for key in keys if key in operator[0]}
    columns |= {key: key for key in ("ratio", "theirs") if key in operator[0]}
    print(table(with_units(operator), columns | {"goal": "goal"}))
    models = model_rows(args)
    titles = {"images/s": "images_per_s", "with the reference": "reference_per_s"}
    titles |= {"ratio": "ratio", "peak": "peak_gb", "in the operator": "op_fraction"}
    print("\n" + table(models, {"what": "what", "dtype": "dtype"} | titles))
    if args.out:
        content = {"schema": 1, "machine": machine, "date": date, "repeats": args.repeats}
        content |= {"command": shlex.join(["python", *sys.argv]), "tiny": args.tiny}
        content |= {"operator": operator, "models": models}
        args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
