"""The CUDA operators against the reference on a CPU.

Skipped without a GPU, unless DINO_REQUIRE_CUDA=1.
"""

from __future__ import annotations

import os

import pytest
import torch
from ops.op_inputs import Inputs, make_inputs
from ops.test_deformable_attention import Raw, raw_inputs
from ops.test_deformable_attention import results as raw_results
from torch import Tensor

from dino_core.ops._extension import EXTENSION
from dino_core.ops.backend import use_backend
from dino_core.ops.deformable_attention import deformable_attention
from dino_core.ops.ms_deform_attn import ms_deform_attn
from dino_core.ops.reference import ms_deform_attn_reference

# As on a CPU, but the gradient of value is summed by atomics, in any order.
TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.bfloat16: {"rtol": 2**-6, "atol": 2**-6},
    torch.float16: {"rtol": 2**-9, "atol": 2**-9},
}


@pytest.fixture(autouse=True)
def _needs_cuda() -> None:
    usable = "cuda" in EXTENSION.devices and torch.cuda.is_available()
    if not usable and os.environ.get("DINO_REQUIRE_CUDA") == "1":
        pytest.fail(f"DINO_REQUIRE_CUDA=1, but: {EXTENSION.cuda}; GPU: {torch.cuda.is_available()}")
    if not usable:
        pytest.skip("no GPU, or no CUDA kernels")


def results(inputs: Inputs, backend: str) -> list[torch.Tensor]:
    inputs = inputs.with_gradients()
    with use_backend(backend):  # type: ignore[arg-type]
        output = ms_deform_attn(*inputs.args)
    generator = torch.Generator().manual_seed(7)
    direction = torch.randn(output.shape, generator=generator).to(output)
    found = [output, *torch.autograd.grad(output, inputs.tensors, direction)]
    return [tensor.detach().cpu() for tensor in found]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels", [1, 7, 24, 32, 64, 97])
def test_like_reference(channels: int, dtype: torch.dtype) -> None:
    sizes = {"channels": channels, "dtype": dtype, "queries": 150}
    ours = results(make_inputs(device="cuda", **sizes), "compiled")  # type: ignore[arg-type]
    expected = results(make_inputs(**sizes), "reference")  # type: ignore[arg-type]
    for found, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, wanted, **TOLERANCE[dtype])


def test_strange_locations() -> None:
    inputs = make_inputs(device="cuda", queries=64)
    strange = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -3e38, 2.0**31])
    flat = inputs.locations.flatten()
    flat[::5] = strange.repeat(len(flat) // 5 // 6 + 1)[: len(flat[::5])].cuda()
    for found in results(inputs, "compiled"):
        assert found.isfinite().all()


def test_no_queries() -> None:
    output, grad_value, *_ = results(make_inputs(device="cuda", queries=0), "compiled")
    assert output.shape == (2, 0, 96)
    assert not grad_value.any()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own doing
def test_opcheck_and_gradcheck() -> None:
    live = make_inputs(device="cuda", queries=4, channels=5, dtype=torch.float64).with_gradients()
    torch.library.opcheck(
        torch.ops.dino.ms_deform_attn.default,
        (live.value, live.flat_shapes, live.locations, live.weights),
    )
    function = lambda v, x, w: ms_deform_attn(v, live.spatial_shapes, x, w)  # noqa: E731
    assert torch.autograd.gradcheck(function, live.tensors, nondet_tol=1e-10)


def test_autocast() -> None:
    inputs = make_inputs(device="cuda")
    with torch.autocast("cuda", torch.float16):
        found = ms_deform_attn(*inputs.args)
    assert found.dtype == torch.float16
    expected = ms_deform_attn_reference(*inputs.args)
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=2**-8)


def test_mixed_devices_are_refused() -> None:
    on_gpu, on_cpu = make_inputs(device="cuda"), make_inputs()
    with pytest.raises(ValueError, match="sampling_locations is on cpu, value is on cuda:0"):
        ms_deform_attn(on_gpu.value, on_gpu.spatial_shapes, on_cpu.locations, on_gpu.weights)


@pytest.mark.parametrize("size", ["batch", "queries", "heads", "channels", "points"])
def test_zero_sizes_give_zeros(size: str) -> None:
    for found in results(make_inputs(device="cuda", **{size: 0}), "compiled"):
        assert not found.any()
    for found in raw_results(deformable_attention, on_gpu(raw_inputs(**{size: 0}))):
        assert not found.any()


COMMON = {"shapes": ((9, 7), (5, 4), (3, 3), (1, 2)), "heads": 8}  # the kernels made for D=32, P=4


def on_gpu(raw: Raw) -> Raw:
    value, shapes, *rest = (t.cuda() if isinstance(t, Tensor) else t for t in raw)
    return value, shapes, *rest  # type: ignore[return-value]


def assert_close(ours: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Of one call; the absolute tolerance is of each tensor's largest number."""
    tolerance = TOLERANCE[dtype]
    for found, wanted in zip(ours, expected, strict=True):
        atol = tolerance["atol"] * max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(found.cpu(), wanted, rtol=tolerance["rtol"], atol=atol)


@pytest.mark.parametrize("box", [2, 4])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        COMMON | {"queries": 33},
        COMMON | {"queries": 700, "batch": 3},
        COMMON | {"channels": 24},
        {"shapes": ((8, 6), (4, 3), (2, 2)), "heads": 6},
        {"shapes": ((8, 6), (4, 3), (2, 2), (1, 1), (1, 1))},
        {"points": 1, "channels": 7, "shapes": ((4, 4),)},
        {"points": 3, "channels": 33, "shapes": ((6, 5), (2, 3))},
        {"points": 2, "channels": 160, "queries": 5},
    ],
    ids=str,
)
def test_raw_points_like_reference(box: int, dtype: torch.dtype, sizes: dict[str, object]) -> None:
    raw = raw_inputs(box, dtype, **sizes)
    with use_backend("compiled"):
        ours = raw_results(deformable_attention, on_gpu(raw))
    with use_backend("reference"):
        expected = raw_results(deformable_attention, raw)
    assert_close(ours, expected, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_raw_points_off_every_boundary(dtype: torch.dtype) -> None:
    """Tensors that do not start on 16 bytes take the kernels for single channels."""
    raw = raw_inputs(4, dtype, **COMMON)
    expected = raw_results(deformable_attention, on_gpu(raw))
    flat = [size for shape in raw[1] for size in shape]
    tensors = []
    for tensor in (raw[0], *raw[2:]):
        shifted = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device="cuda")[1:]
        tensors.append(shifted.copy_(tensor.flatten()).view(tensor.shape))
    value, *rest = tensors
    output = torch.ops.dino.deformable_attention(value, flat, *rest)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(7)).to(output)
    gradients = torch.ops.dino.deformable_attention_backward(direction, value, flat, *rest)
    assert_close([output, *gradients], [t.cpu() for t in expected], dtype)


@pytest.mark.parametrize("box", [2, 4])
def test_strange_raw_points(box: int) -> None:
    """They contribute nothing: the output is the reference's, their gradients are zero."""
    raw = raw_inputs(box, **COMMON)
    value, shapes, references, offsets, logits = raw
    strange = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -3e38, 2.0**31])
    flat = offsets.view(-1, 2)
    flat[::5, 0] = strange.repeat(len(flat) // 5 // 6 + 1)[: len(flat[::5])]
    references[:, 3] = float("nan")
    ours = raw_results(deformable_attention, on_gpu(raw))
    assert all(tensor.isfinite().all() for tensor in ours)
    with use_backend("reference"):
        expected = deformable_attention(value, shapes, references, offsets, logits)
    assert_close(ours[:1], [expected], torch.float32)
    assert not ours[2].view(-1, 2)[::5].any()
    assert not ours[2][:, 3].any()


def test_no_queries_with_raw_points() -> None:
    output, grad_value, *_ = raw_results(deformable_attention, on_gpu(raw_inputs(queries=0)))
    assert output.shape == (2, 0, 96)
    assert not grad_value.any()


@pytest.mark.parametrize("sizes", [{"channels": 5, "points": 3}, COMMON | {"heads": 1}], ids=str)
@pytest.mark.parametrize("box", [2, 4])
def test_gradcheck_of_raw_points(box: int, sizes: dict[str, object]) -> None:
    raw = on_gpu(raw_inputs(box, torch.float64, **(sizes | {"queries": 3, "batch": 1})))
    value, shapes, references, offsets, logits = raw
    live = [t.requires_grad_() for t in (value, offsets, logits)]
    function = lambda v, o, w: deformable_attention(v, shapes, references, o, w)  # noqa: E731
    assert torch.autograd.gradcheck(function, live, nondet_tol=1e-10)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own doing
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_opcheck_of_raw_points(dtype: torch.dtype) -> None:
    value, shapes, references, offsets, logits = on_gpu(raw_inputs(4, dtype))
    flat = [size for shape in shapes for size in shape]
    live = [t.detach().clone().requires_grad_() for t in (value, offsets, logits)]
    torch.library.opcheck(
        torch.ops.dino.deformable_attention.default, (live[0], flat, references, *live[1:])
    )
    # Not its comparison with a compiled run: the order of atomics differs from run to run.
    torch.library.opcheck(
        torch.ops.dino.deformable_attention_backward.default,
        (torch.ones(2, 21, 96).to(value), value, flat, references, offsets, logits),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_raw_points_under_autocast() -> None:
    """What layers give under autocast, and references in float32, is one call of the operator."""
    value, shapes, references, offsets, logits = on_gpu(raw_inputs(4, torch.bfloat16))
    value.requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        found = deformable_attention(value, shapes, references, offsets, logits)
    assert found.dtype == torch.bfloat16
    assert found.grad_fn is not None and "dino_deformable_attention" in found.grad_fn.name()


def test_mixed_devices_of_raw_points_are_refused() -> None:
    raw = raw_inputs()
    with pytest.raises(RuntimeError, match="on different devices"):
        deformable_attention(raw[0].cuda(), *raw[1:])
