"""How many times faster than `grid_sample` is the compiled deformable attention on this CPU?

    python benchmarks/op.py                      # minutes: the reference needs seconds a call
    python benchmarks/op.py --repeats 2 --json op.json

Encoder: every token of an 800x1066 image asks (levels 100x134, 50x67, 25x34, 13x17, so that
Q = S = 17,821). Decoder: 900 queries. M = 8, D = 32, P = 4, batch 1. Compiled and reference calls
alternate in one process, and medians are compared, so that other load on the machine meets both.
Everything is measured twice, in processes of their own: with the default allocator, and with glibc
told to keep its memory, where big temporaries cause no page faults (it helps the reference most).
The reference is `grid_sample` on each level, and so are the ratios' denominators.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
GOALS = {
    ("default", "encoder", "forward"): 15,
    ("no page faults", "encoder", "forward"): 12,
    ("default", "encoder", "forward + backward"): 10,
    ("default", "decoder", "forward"): 5,
}


def interleaved(calls: list[Callable[[], None]], repeats: int) -> list[float]:
    """Median seconds of each call; the calls take turns after one round of warming up."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, record in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                record.append(time.perf_counter() - start)
    return [statistics.median(record) for record in times]


def measure(repeats: int, threads: int) -> list[dict[str, Any]]:
    """All cases in this process, whatever its allocator is."""
    import torch

    from dino_core.ops.backend import use_backend
    from dino_core.ops.ms_deform_attn import ms_deform_attn

    torch.set_num_threads(threads)
    tokens = sum(height * width for height, width in LEVELS)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for shape, queries in (("encoder", tokens), ("decoder", 900)):
            generator = torch.Generator().manual_seed(0)
            value = torch.randn(1, tokens, 8, 32, generator=generator).to(dtype).requires_grad_()
            size = (1, queries, 8, len(LEVELS), 4)
            locations = _near_the_query(queries, generator).requires_grad_()
            weights = torch.rand(size, generator=generator).flatten(-2).softmax(-1).view(size)
            weights.requires_grad_()
            direction = torch.randn(1, queries, 256, generator=generator).to(dtype)

            def forward(name: str, inputs: tuple[Any, ...] = (value, locations, weights)) -> None:
                with use_backend(name), torch.no_grad():  # type: ignore[arg-type]
                    ms_deform_attn(inputs[0], LEVELS, *inputs[1:])

            def both(
                name: str,
                inputs: tuple[Any, ...] = (value, locations, weights),
                direction: torch.Tensor = direction,
            ) -> None:
                with use_backend(name):  # type: ignore[arg-type]
                    output = ms_deform_attn(inputs[0], LEVELS, *inputs[1:])
                torch.autograd.grad(output, inputs, direction)

            for kind, function in (("forward", forward), ("forward + backward", both)):
                compiled, reference = interleaved(
                    [lambda f=function: f("compiled"), lambda f=function: f("reference")], repeats
                )
                rows.append(
                    {
                        "dtype": str(dtype).removeprefix("torch."),
                        "shape": shape,
                        "kind": kind,
                        "compiled_ms": compiled * 1e3,
                        "reference_ms": reference * 1e3,
                        "ratio": reference / compiled,
                    }
                )
    return rows


def _near_the_query(queries: int, generator: Any) -> Any:
    """Locations as a trained encoder's: some pixels around the query, on every level."""
    import torch

    centres = torch.cat(
        [
            torch.stack(
                torch.meshgrid(
                    (torch.arange(width) + 0.5) / width,
                    (torch.arange(height) + 0.5) / height,
                    indexing="xy",
                ),
                -1,
            ).flatten(0, 1)
            for height, width in LEVELS
        ]
    )
    if queries < len(centres):
        centres = centres[torch.randperm(len(centres), generator=generator)[:queries]]
    pixels = torch.randn(1, queries, 8, len(LEVELS), 4, 2, generator=generator) * 3
    sizes = torch.tensor([[width, height] for height, width in LEVELS], dtype=torch.float32)
    return centres.view(1, queries, 1, 1, 1, 2) + pixels / sizes.view(1, 1, 1, -1, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        json.dump(measure(args.repeats, args.threads), sys.stdout)
        return

    import torch

    results = []
    for allocator, changes in (("default", {}), ("no page faults", KEEP_MEMORY)):
        command = [sys.executable, __file__, "--child"]
        command += ["--threads", str(args.threads), "--repeats", str(args.repeats)]
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": path, **changes}
        child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        results += [{"allocator": allocator, **row} for row in json.loads(child.stdout)]

    print(f"torch {torch.__version__}, {args.threads} threads, medians of {args.repeats}")
    header = (
        f"{'allocator':15} {'dtype':9} {'shape':8} {'what':19} {'compiled':>10} {'reference':>10}"
    )
    print(f"{header} {'ratio':>7}  goal")
    for row in results:
        goal = GOALS.get((row["allocator"], row["shape"], row["kind"]))
        wanted = f"{goal}x" if goal and row["dtype"] == "float32" else ""
        case = f"{row['allocator']:15} {row['dtype']:9} {row['shape']:8} {row['kind']:19}"
        times = f"{row['compiled_ms']:7.1f} ms {row['reference_ms']:7.0f} ms"
        print(f"{case} {times} {row['ratio']:6.1f}x  {wanted}")
    if args.json:
        machine = {"processor": platform.processor(), "torch": torch.__version__}
        report = {"machine": machine, "threads": args.threads, "rows": results}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
