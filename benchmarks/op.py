"""How many times faster than `grid_sample` is the compiled deformable attention on this CPU?

    python benchmarks/op.py                      # minutes: a call of the reference takes seconds
    python benchmarks/op.py --repeats 3 --out op.json
    python benchmarks/op.py --tiny               # a quick try with small shapes

In the shape "encoder", every token of an 800x1066 image is a query (levels 100x134, 50x67, 25x34,
13x17, so that Q = S = 17,821). In "decoder" there are 900 queries. M = 8, D = 32, P = 4, batch 1.
`ms_deform_attn` starts from locations and weights. `deformable_attention`, which the model calls,
starts from reference points, offsets and logits. Compiled and reference calls in both dtypes
alternate in one process and medians are compared, so that other load affects all of them.
Everything is measured twice, in processes of their own: with the default allocator, and with freed
memory kept, so that large temporary tensors cause no page faults (this helps the reference most).
The reference is `grid_sample` on each level, for `deformable_attention` after PyTorch's own softmax
and locations. `gain on fp32` is the compiled operator's time in fp32 divided by its time in bf16.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial

import torch
from report import Row, headline, options, table, write
from subjects import AttentionInputs, attention_inputs
from timing import interleaved, prepare, run_apart
from torch import Tensor

from dino_core.ops.backend import Backend, use_backend
from dino_core.ops.deformable_attention import deformable_attention, sampling_locations
from dino_core.ops.ms_deform_attn import ms_deform_attn

SIZE_HW, TINY_HW = (800, 1066), (96, 128)
QUERIES = {"encoder": None, "decoder": 900}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BACKENDS: tuple[Backend, ...] = ("compiled", "reference")
GOALS: dict[tuple[str, str, str, str], dict[str, float]] = {  # allocator, dtype, shape, what
    ("default", "fp32", "encoder", "forward"): {"ratio": 25, "compiled_s": 0.020},
    ("default", "fp32", "encoder", "forward + backward"): {"ratio": 15},
    ("default", "fp32", "decoder", "forward"): {"ratio": 8},
    ("default", "bf16", "encoder", "forward"): {"gain_on_fp32": 1.4},
    ("kept", "fp32", "encoder", "forward"): {"ratio": 18, "compiled_s": 0.020},
    ("kept", "bf16", "encoder", "forward"): {"gain_on_fp32": 1.4},
}
COLUMNS = {
    "allocator": "allocator",
    "operator": "operator",
    "dtype": "dtype",
    "shape": "shape",
    "what": "what",
    "compiled": "compiled_s",
    "reference": "reference_s",
    "ratio": "ratio",
    "gain on fp32": "gain_on_fp32",
    "goal": "goal",
}


def operators(inputs: AttentionInputs) -> dict[str, Callable[[bool], None]]:
    """Return each operator as a function of whether gradients are computed too."""
    levels, references = inputs.levels, inputs.references
    weights = inputs.logits.float().flatten(-2).softmax(-1).view(inputs.logits.shape)
    locations = sampling_locations(levels, references, inputs.offsets)

    def plain(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, levels, locations, weights)

    def fused(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return deformable_attention(value, levels, references, offsets, logits)

    return {
        "ms_deform_attn": _runner(plain, inputs.value, locations, weights),
        "deformable_attention": _runner(fused, inputs.value, inputs.offsets, inputs.logits),
    }


def _runner(function: Callable[..., Tensor], *tensors: Tensor) -> Callable[[bool], None]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    with torch.no_grad():
        direction = torch.randn_like(function(*leaves))

    def run(backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            output = function(*leaves)
            if backward:
                torch.autograd.grad(output, leaves, direction)

    return run


def measure(args: argparse.Namespace) -> list[Row]:
    """Measure all cases in this process, with the allocator that was requested."""
    prepare(args.threads, args.allocator)
    size_hw = TINY_HW if args.tiny else SIZE_HW
    rows = []
    for shape, queries in QUERIES.items():
        made = {
            dtype: operators(attention_inputs(size_hw, queries, 1, kind))
            for dtype, kind in DTYPES.items()
        }
        for operator in made["fp32"]:
            for what, backward in (("forward", False), ("forward + backward", True)):
                calls = {
                    (dtype, backend): partial(_with, backend, made[dtype][operator], backward)
                    for dtype in DTYPES
                    for backend in BACKENDS
                }
                times = interleaved(calls, args.repeats)
                case = {"allocator": args.allocator, "operator": operator, "shape": shape}
                rows += _rows({**case, "what": what}, times, args.tiny)
    return rows


def _with(backend: Backend, run: Callable[[bool], None], backward: bool) -> None:
    with use_backend(backend):
        run(backward)


def _rows(case: Row, times: dict[tuple[str, Backend], list[float]], tiny: bool) -> list[Row]:
    """Return a row for each dtype."""
    medians = {key: statistics.median(values) for key, values in times.items()}
    rows = []
    for dtype in DTYPES:
        compiled, reference = (medians[dtype, backend] for backend in BACKENDS)
        row = {**case, "dtype": dtype, "compiled_s": compiled, "reference_s": reference}
        row["ratio"] = reference / compiled
        if dtype == "bf16":
            row["gain_on_fp32"] = medians["fp32", "compiled"] / compiled
        goal = GOALS.get((case["allocator"], dtype, case["shape"], case["what"]))
        if goal and not tiny:
            row["goal"] = goal
        row["times_s"] = {backend: times[dtype, backend] for backend in BACKENDS}
        rows.append(row)
    return rows


def main() -> None:
    parser = options(__doc__, repeats=7)
    parser.add_argument("--allocator", choices=("default", "kept"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.allocator:  # one allocator, in a process of its own
        print(json.dumps(measure(args)))
        return
    rows: list[Row] = []
    for allocator in ("default", "kept"):
        arguments = ["--allocator", allocator, "--repeats", str(args.repeats)]
        rows += run_apart(arguments + ["--tiny"] * args.tiny, args.threads)
    headline("deformable attention, compiled against grid_sample", args, "default and kept")
    print(table(rows, COLUMNS))
    write(args, rows, "default and kept")


if __name__ == "__main__":
    main()
