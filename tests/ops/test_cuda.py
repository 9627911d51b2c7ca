"""The CUDA operator against the reference on a CPU.

Skipped without a GPU, unless DINO_REQUIRE_CUDA=1.
"""

from __future__ import annotations

import os

import pytest
import torch
from ops.op_inputs import Inputs, make_inputs

from dino_core.ops._extension import EXTENSION
from dino_core.ops.backend import use_backend
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
