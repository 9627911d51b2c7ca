"""How close to the machine's ceilings is each part of a forward pass of `dino-r50-4scale`?

    python benchmarks/limits.py                # a minute; needs a quiet machine
    python benchmarks/limits.py --dtype bf16 --out limits.json
    python benchmarks/limits.py --tiny         # a quick try with a tiny model

The ceilings are the best of all tries in this run: a product of large matrices, a 3x3 convolution
in channels last, a copy in memory, and copies of 256 kB in the cores' own caches.

They alternate with a forward pass whose operators are timed one by one, and with another that is
timed as a whole. The minimum work of an operator is counted: its multiply-adds; one pass in memory
over each array that it reads or writes and that is too large for a cache (16 MB); and, for the
attention core, the gathers from the cache, 4 corners x D numbers per point. The least time of an
operator is that of the slowest of the three at its ceiling (for multiply-adds the higher one of the
product's and the convolution's). The least time of a part is the sum over its operators. `fraction`
is the least time divided by the measured time. Work that a fused operator would save counts as
needed, and small operators, of which the decoder has many, cannot come close to 1. `work` counts a
multiply-add as two.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ceilings import Ceilings
from report import Row, headline, options, table, write
from subjects import pictures, random_model
from timing import prepare, seconds
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from work import Work, work_of

from dino_core.inference.torch_runtime import TorchRuntime
from dino_core.models.dino import Dino

SIZE_HW, TINY_HW = (800, 1066), (96, 128)
OUTSIDE = "the rest"  # what belongs to no part
SPLIT = ("encoder", "decoder")  # parts that are shown by kind of operator
CEILING_COLUMNS = {"ceiling": "what", "GFLOP/s": "gflop_per_s", "GB/s": "gb_per_s"}
PART_COLUMNS = {
    "part": "what",
    "work": "work_gflop",
    "moved at least": "moved_gb",
    "gathered": "gathered_gb",
    "least time": "least_s",
    "measured": "median_s",
    "fraction": "fraction",
}


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators of one forward pass by the part that they belong to.

    Attributes:
        scopes: The modules that are running, the innermost last.
        works: The work of each part.
        seconds: The time of each part.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scopes = [OUTSIDE]
        self.works: defaultdict[str, list[Work]] = defaultdict(list)
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run and record one operator."""
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        elapsed = time.perf_counter() - start
        work = work_of(func, args, kwargs or {}, result)
        scope = self.scopes[-1]
        part = f"{scope}: {work.kind}" if scope in SPLIT else scope
        self.works[part].append(work)
        self.seconds[part] += elapsed
        return result


def parts(model: Dino) -> Iterator[tuple[str, nn.Module]]:
    """Return the modules whose operators are counted together, outer before inner ones."""
    yield "backbone", model.backbone
    yield "neck", model.neck
    yield "encoder", model.encoder
    yield "query selection", model.query_selection
    yield "decoder", model.decoder
    for layer in model.decoder.layers:
        yield "decoder: self-attention", layer.get_submodule("self_attn")
    for head in (*model.decoder.class_embed, *model.decoder.bbox_embed):
        yield "heads", head


@contextmanager
def metered(model: Dino) -> Iterator[Meter]:
    """Yield a meter that knows in which part of the model an operator runs."""
    meter = Meter()
    handles = []
    for name, module in parts(model):
        enter = partial(_enter, meter.scopes, name)
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(partial(_leave, meter.scopes)))
    with meter:
        yield meter
    for handle in handles:
        handle.remove()


def _enter(scopes: list[str], name: str, module: nn.Module, args: Any) -> None:
    scopes.append(name)


def _leave(scopes: list[str], module: nn.Module, args: Any, result: Any) -> None:
    scopes.pop()


def measure(args: argparse.Namespace) -> tuple[list[Meter], list[float], Mapping[str, float]]:
    """Return a meter per metered pass, the seconds of each whole pass, and the ceilings."""
    runtime = TorchRuntime(random_model("dino-r50-4scale", args.tiny), "cpu", args.dtype)
    images, mask = pictures(1, TINY_HW if args.tiny else SIZE_HW)
    forward = partial(runtime.run, images.numpy(), mask.numpy())
    ceilings = Ceilings(args.tiny)
    meters, wholes = [], []
    for turn in range(args.repeats + 1):
        ceilings.measure()
        with metered(runtime.model) as meter:
            forward()
        whole = seconds(forward)
        if turn:  # the first round warms up
            meters.append(meter)
            wholes.append(whole)
    return meters, wholes, ceilings.rates


def part_rows(
    meters: Sequence[Meter], wholes: list[float], rates: Mapping[str, float]
) -> list[Row]:
    """Return a row for each part, one for their sum and one for the pass timed as a whole."""
    works = meters[-1].works
    rows = [
        _row(part, works[part], [meter.seconds[part] for meter in meters], rates)
        for part in sorted(works, key=OUTSIDE.__eq__)  # "the rest" comes last
    ]
    everything = [work for part in works.values() for work in part]
    sums = [sum(meter.seconds.values()) for meter in meters]
    rows.append(_row("sum of the parts", everything, sums, rates))
    rows.append(_row("the pass timed whole", everything, wholes, rates))
    return rows


def _row(what: str, works: Sequence[Work], times: list[float], rates: Mapping[str, float]) -> Row:
    least, median = sum(work.least_s(rates) for work in works), statistics.median(times)
    return {
        "what": what,
        "work_gflop": sum(work.flops for work in works) / 1e9,
        "moved_gb": sum(work.moved for work in works) / 1e9,
        "gathered_gb": sum(work.gathered for work in works) / 1e9,
        "least_s": least,
        "median_s": median,
        "fraction": least / median,
        "times_s": times,
    }


def ceiling_rows(rates: Mapping[str, float]) -> list[Row]:
    """Return a row for each ceiling."""
    return [
        {"what": name, "gb_per_s" if "copy" in name else "gflop_per_s": rate / 1e9}
        for name, rate in rates.items()
    ]


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--dtype", default="fp32", help="as in dino predict")
    args = parser.parse_args()
    prepare(args.threads, "kept")
    meters, wholes, rates = measure(args)
    ceilings, of_parts = ceiling_rows(rates), part_rows(meters, wholes, rates)
    model = "dino-tiny" if args.tiny else "dino-r50-4scale"
    headline(f"{model}, forward, {args.dtype}", args, "kept")
    print(table(ceilings, CEILING_COLUMNS), table(of_parts, PART_COLUMNS), sep="\n\n")
    write(args, ceilings + of_parts, "kept")


if __name__ == "__main__":
    main()
