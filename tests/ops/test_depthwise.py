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
        *(({"stride": huge}, "has a grad_output of height 1 to 1, found 6")
          for huge in (2**30, 2**31 - 1, 2**31, 2**32, 2**32 - 5, 2**63 - 1)),
        ({"padding_left": 2**32}, "padding 1, 4294967296"),
        ({"grad_output": torch.zeros(1, 50, 6, 4).permute(0, 3, 1, 2)}, "5 to 7, found 50"),
        ({"grad_output": torch.zeros(1, 6, 0, 4).permute(0, 3, 1, 2)}, "5 to 7, found 0"),
        ({"input": torch.zeros(1, 0, 6, 4).permute(0, 3, 1, 2)}, "0 to 1, found 6"),
        ({name: torch.zeros(0, 2**31, 6, 4).permute(0, 3, 1, 2)
          for name in ("input", "grad_output")}, "at most 2\\^30 rows"),
        ({name: torch.zeros(0, 6, 6, 2**29).permute(0, 3, 1, 2)
          for name in ("input", "grad_output")}, "fewer than 2\\^31 numbers"),
        ({"padding_top": 3}, "padding 3, 1"),
        ({"input": torch.zeros(1, 4, 6, 6)}, "channels last"),
        ({"input": torch.zeros(1, 6, 6, 4).permute(0, 3, 1, 2).double()}, "float32"),
        ({"input": torch.zeros(2, 6, 6, 4).permute(0, 3, 1, 2)}, "do not fit"),
        ({"grad_output": torch.zeros(1, 6, 6, 4, device="meta").permute(0, 3, 1, 2)},
         "grad_output must be on the device of input"),
    ],
)  # fmt: skip
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
@pytest.mark.parametrize(("batch", "channels"), [(0, 4), (1, 0)])
def test_no_images_or_no_channels_give_zeros(batch: int, channels: int) -> None:
    maps = torch.ones(batch, 6, 6, channels).permute(0, 3, 1, 2)
    found = torch.ops.dino.depthwise_weight_grad(maps, maps, 3, 1, 1, 1)
    assert torch.equal(found, torch.zeros(channels, 1, 3, 3))


@pytest.mark.parametrize("stride", [9, 2**30, 2**31, 2**32 + 1])
def test_one_output_at_any_stride(stride: int) -> None:
    """A stride beyond the border never moves the kernel."""
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(4, 1, 3, 3, requires_grad=True)
    depthwise_conv2d(x, weight, None, stride, 1).sum().backward()
    wanted = functional.pad(x, (1, 0, 1, 0))[:, :, :3, :3].sum(0)[:, None]
    torch.testing.assert_close(weight.grad, wanted)


def test_padding_wider_than_the_kernel() -> None:
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(4, 1, 3, 3, requires_grad=True)
    depthwise_conv2d(x, weight, None, 1, 4).sum().backward()
    wanted = x.sum((0, 2, 3))[:, None, None, None].expand(4, 1, 3, 3)
    torch.testing.assert_close(weight.grad, wanted)


@needs_kernels
def test_second_derivatives() -> None:
    """The convolution has one, the operator alone refuses it: it would be zero."""
    x, weight = (torch.randn(s, requires_grad=True) for s in ((1, 4, 6, 6), (4, 1, 3, 3)))

    def second(output: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = torch.autograd.grad(output.pow(2).sum(), (x, weight), create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), (x, weight))

    found = second(depthwise_conv2d(x, weight, None, 2, 1))
    wanted = second(functional.conv2d(x, weight, None, 2, 1, groups=4))
    torch.testing.assert_close(found, wanted)
    maps = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.ops.dino.depthwise_weight_grad(maps, maps, 3, 1, 1, 1)
    with pytest.raises(RuntimeError, match=r"^depthwise_conv2d has no second derivative"):
        gradient.sum().backward()


@needs_kernels
def test_operator_is_sound_for_compilers() -> None:
    x, grad = (
        torch.randn(2, 5, size, size).contiguous(memory_format=torch.channels_last)
        for size in (8, 4)
    )
    operator = torch.ops.dino.depthwise_weight_grad.default
    torch.library.opcheck(operator, (x, grad, 3, 2, 1, 1))
