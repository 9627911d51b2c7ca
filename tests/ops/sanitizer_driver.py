"""Calls the CPU operators with sizes and memory of every kind, for `.ci/sanitize`.

The sanitizers end the process at their first report. Besides, results must be those of the
reference, and calls that cannot be right must raise RuntimeError.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from ops.test_arguments import OPERATORS, arguments, call, misaligned
from ops.test_deformable_attention import Raw, raw_inputs
from ops.test_deformable_attention import results as raw_results
from ops.test_ms_deform_attn import KERNEL_TYPES, TOLERANCE
from torch import Tensor
from torch.nn import functional

from dino_core.ops import _extension
from dino_core.ops.backend import use_backend
from dino_core.ops.deformable_attention import deformable_attention, sampling_locations
from dino_core.ops.depthwise import depthwise_conv2d
from dino_core.ops.ms_deform_attn import ms_deform_attn

SIZES: list[dict[str, object]] = [
    {"heads": 1, "channels": 1, "points": 1, "queries": 1, "shapes": ((1, 1),)},
    {"heads": 3, "channels": 7, "points": 5, "queries": 9, "shapes": ((1, 9), (7, 1), (3, 3))},
    {"heads": 2, "channels": 97, "points": 3, "queries": 8, "shapes": ((2, 3),), "batch": 3},
    {"heads": 8, "channels": 32, "points": 4, "queries": 7, "shapes": ((9, 7), (5, 4), (1, 1))},
    {"heads": 2, "channels": 24, "points": 2, "queries": 260, "shapes": ((6, 5),), "batch": 1},
    {"heads": 2, "channels": 16, "points": 1, "queries": 5, "shapes": ((20, 21), (9, 9))},
]
ZEROS = ["batch", "queries", "heads", "channels", "points"]
HUGE = [-(2**63), -1, 0, 2**20 + 1, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1]
STRANGE = [float("nan"), float("inf"), -float("inf"), 1e30, -3e38, 2.0**31, -(2.0**31), -1.0, 2.0]

counted: Counter[str] = Counter()


def plain(
    value: Tensor,
    shapes: tuple[tuple[int, int], ...],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """`ms_deform_attn` on the points of `deformable_attention`."""
    locations = sampling_locations(shapes, references, offsets)
    return ms_deform_attn(value, shapes, locations, logits)


def shifted(tensor: Tensor) -> Tensor:
    """A copy that starts one element behind a vector's boundary, and ends with its memory."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


def strided(tensor: Tensor) -> Tensor:
    """A view with odd strides along the last two dimensions."""
    wide = tensor.new_zeros(*tensor.shape[:-2], 2 * tensor.shape[-2] + 1, 3 * tensor.shape[-1])
    view = wide[..., 1::2, 1::3]
    return view.copy_(tensor)


def strange(tensor: Tensor) -> Tensor:
    found = tensor.clone()
    flat = found.view(-1)
    flat[::3] = (
        torch.tensor(STRANGE, dtype=torch.float64).to(flat).repeat(len(flat))[: len(flat[::3])]
    )
    return found


def agrees(raw: Raw, function: Callable[..., Tensor]) -> None:
    with use_backend("compiled"):
        ours = raw_results(function, raw)
    with use_backend("reference"):
        expected = raw_results(function, raw)
    tolerance = TOLERANCE[raw[0].dtype]
    for found, wanted in zip(ours, expected, strict=True):
        largest = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
        atol = max(tolerance["atol"], 1e-4) * largest
        torch.testing.assert_close(found, wanted, rtol=1e-3 + tolerance["rtol"], atol=atol)
    counted["compared"] += 1


def attention_of_all_sizes() -> None:
    for sizes, dtype, box in itertools.product(SIZES, TOLERANCE, (2, 4)):
        value, shapes, *rest = raw_inputs(box, dtype, **sizes)
        for change in (Tensor.clone, shifted, strided):
            raw: Raw = (change(value), shapes, *(change(t) for t in rest))  # type: ignore[assignment]
            for function in (deformable_attention, plain):
                agrees(raw, function)
        references, offsets, logits = rest
        with use_backend("compiled"):  # only that nothing is read out of place
            raw_results(deformable_attention, (value, shapes, references, strange(offsets), logits))
            raw_results(plain, (value, shapes, strange(references), offsets, strange(logits)))


def refused(function: Callable[[], object]) -> None:
    try:
        function()
    except RuntimeError:
        counted["refused"] += 1
        return
    raise AssertionError("an impossible call was not refused")


def attention_of_no_size() -> None:
    chosen = [names for count in (1, 2, 5) for names in itertools.combinations(ZEROS, count)]
    for names, operator, dtype in itertools.product(chosen, OPERATORS, KERNEL_TYPES):
        for found in call(operator, arguments(operator, dtype, **dict.fromkeys(names, 0))):
            assert not found.any()
        counted["of no size"] += 1


def attention_that_is_refused() -> None:
    for operator in OPERATORS:
        tensors = arguments(operator)
        for first, second in itertools.product(HUGE, HUGE):
            refused(lambda: call(operator, tensors, [first, second]))  # noqa: B023
            refused(lambda: call(operator, tensors, [2, 2, 1, 1, first, second]))  # noqa: B023
        for name, tensor in tensors.items():
            impossible = [misaligned(tensor), strided(tensor), tensor.to("meta"), tensor.half()]
            impossible += [tensor.int(), tensor[None], tensor[:, :0].clone()]
            if name != "value":  # of which any number of channels is right
                impossible.append(tensor[..., :0])
            impossible.append(tensor.new_zeros(0, *tensor.shape[1:-1], 2**31))
            for other in impossible:
                refused(lambda: call(operator, {**tensors, name: other}))  # noqa: B023
            gone = tensor.clone()
            gone.untyped_storage().resize_(0)
            refused(lambda: call(operator, {**tensors, name: gone}))  # noqa: B023


def depthwise() -> None:
    kernels = [(kernel, padding) for kernel in (3, 5) for padding in range(kernel)]
    shapes = [(1, 1, 1, 1), (2, 7, 3, 1), (1, 64, 1, 9), (2, 150, 9, 4), (0, 3, 5, 5)]
    strides = [1, 2, 3, 2**31 - 1, 2**32 + 1]
    for (size, padding), shape, stride in itertools.product(kernels, shapes, strides):
        if min(shape[2:]) + 2 * padding < size:
            continue
        x = torch.randn(shape)
        weight = torch.randn(shape[1], 1, size, size, requires_grad=True)
        gradients = []
        for function in (depthwise_conv2d, plain_conv2d):
            found = function(x, weight, None, stride, padding)
            gradients += torch.autograd.grad(found.square().sum() / 2, weight)
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
        counted["depthwise"] += 1
    maps = torch.randn(2, 6, 6, 4).permute(0, 3, 1, 2)
    operator = torch.ops.dino.depthwise_weight_grad
    for huge, place in itertools.product(HUGE, range(4)):
        numbers = [3, 1, 1, 1]
        numbers[place] = huge
        if (huge, place) not in {(0, 2), (0, 3)}:  # no padding above or on the left
            refused(lambda: operator(maps, maps, *numbers))  # noqa: B023
    for other in (maps.double(), maps.contiguous(), maps[:, :, :0], maps[..., :0], maps[:1]):
        refused(lambda: operator(maps, other, 3, 1, 1, 1))  # noqa: B023
    refused(
        lambda: operator(misaligned(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), maps, 3, 1, 1, 1)
    )
    one = torch.randn(72).as_strided((1, 8, 9, 1), (10**6, 1, 8, 77))  # strides without a meaning
    assert operator(one, one, 3, 1, 1, 1).isfinite().all()
    assert not operator(maps[:, :0], maps[:, :0], 3, 1, 1, 1).numel()


def plain_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    return functional.conv2d(x, weight, bias, stride, padding, groups=x.shape[1])


def main() -> None:
    torch.manual_seed(0)
    if "libasan" not in Path("/proc/self/maps").read_text():
        raise SystemExit("run .ci/sanitize, which loads the sanitizers")
    print(_extension.EXTENSION.cpu, "from", _extension._FOLDER)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        attention_of_all_sizes()
        attention_of_no_size()
        attention_that_is_refused()
        depthwise()
    print(os.environ.get("DINO_CPU", ""), dict(counted))


if __name__ == "__main__":
    main()
