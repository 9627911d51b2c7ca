from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dino_core.ops._extension import EXTENSION
from dino_core.ops.depthwise import depthwise_conv2d

needs_kernels = pytest.mark.skipif("cpu" not in EXTENSION.devices, reason="DINO_BUILD=none")


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("shape", [(2, 150, 9, 11), (1, 3, 20, 8), (3, 64, 7, 7), (1, 1, 8, 8)])
def test_gradients_are_those_of_conv2d(
    kernel_size: int, stride: int, padding: int, shape: tuple[int, int, int, int]
) -> None:
    """Against PyTorch in float64: sums of up to 600 products in float32."""
    torch.manual_seed(0)
    channels = shape[1]
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(channels, 1, kernel_size, kernel_size, requires_grad=True)
    bias = torch.randn(channels, requires_grad=True)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    found = depthwise_conv2d(x, weight, bias, stride, padding)
    expected = functional.conv2d(*exact, stride, padding, groups=channels)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    upstream = torch.randn_like(found)
    grads = torch.autograd.grad(found, (x, weight, bias), upstream)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad.double(), want, atol=1e-4, rtol=1e-5)


def test_only_what_is_needed() -> None:
    x = torch.randn(1, 4, 6, 6)
    weight = torch.randn(4, 1, 3, 3, requires_grad=True)
    depthwise_conv2d(x, weight, None, 1, 1).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


@needs_kernels
def test_same_bits_at_any_number_of_threads() -> None:
    x = torch.randn(4, 200, 15, 15).contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(x)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(torch.ops.dino.depthwise_weight_grad(x, grad, 5, 1, 2, 2))
    finally:
        torch.set_num_threads(before)
    assert results[0].equal(results[1])
    assert results[0].equal(results[2])


@needs_kernels
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kernel_size": 7}, "kernel_size must be 3 or 5, found 7"),
        ({"stride": 0}, "do not fit stride 0"),
        ({"padding_top": 3}, "padding 3, 1"),
        ({"input": torch.zeros(1, 4, 6, 6)}, "channels last"),
        ({"input": torch.zeros(1, 6, 6, 4).permute(0, 3, 1, 2).double()}, "float32"),
        ({"input": torch.zeros(2, 6, 6, 4).permute(0, 3, 1, 2)}, "do not fit"),
    ],
)
def test_wrong_arguments(change: dict[str, object], words: str) -> None:
    maps = torch.zeros(1, 6, 6, 4).permute(0, 3, 1, 2)
    arguments = {
        **{"input": maps, "grad_output": maps, "kernel_size": 3, "stride": 1},
        **{"padding_top": 1, "padding_left": 1},
        **change,
    }
    with pytest.raises(RuntimeError, match=words):
        torch.ops.dino.depthwise_weight_grad(**arguments)


@needs_kernels
def test_operator_is_sound_for_compilers() -> None:
    x, grad = (
        torch.randn(2, 5, size, size).contiguous(memory_format=torch.channels_last)
        for size in (8, 4)
    )
    operator = torch.ops.dino.depthwise_weight_grad.default
    torch.library.opcheck(operator, (x, grad, 3, 2, 1, 1))
