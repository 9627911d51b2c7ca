from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dino_core.models import feed_forward as module
from dino_core.models.feed_forward import feed_forward
from dino_core.ops import linear


@pytest.fixture(params=["oneDNN", "small"])
def layers(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[nn.Linear, nn.Linear]:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1)  # blocks of 64 rows
    if request.param == "oneDNN":
        monkeypatch.setattr(linear, "_WORTHWHILE", 1)
    torch.manual_seed(0)
    return nn.Linear(6, 10), nn.Linear(10, 6)


def plain(x: Tensor, layers: tuple[nn.Linear, nn.Linear]) -> Tensor:
    out: Tensor = layers[1](functional.relu(layers[0](x)))
    return out


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 64, 150])
def test_equals_the_plain_layers(
    layers: tuple[nn.Linear, nn.Linear], rows: int, recompute: bool
) -> None:
    x = torch.randn(2, rows, 6, requires_grad=True)
    wanted, grad = plain(x, layers), torch.randn(2, rows, 6)
    inputs = [x, *layers[0].parameters(), *layers[1].parameters()]
    given = feed_forward(x, *layers, recompute=recompute)
    torch.testing.assert_close(given, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(given, inputs, grad), torch.autograd.grad(wanted, inputs, grad)
    )
    with torch.inference_mode():
        torch.testing.assert_close(feed_forward(x, *layers), wanted)


def test_gradcheck(layers: tuple[nn.Linear, nn.Linear]) -> None:
    first, second = (layer.double() for layer in layers)
    x = torch.randn(70, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: feed_forward(x, first, second), (x,))


def test_autocast_computes_in_bf16(layers: tuple[nn.Linear, nn.Linear]) -> None:
    x = torch.randn(100, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        given = feed_forward(x, *layers)
    assert given.dtype == torch.bfloat16
    torch.testing.assert_close(given.float(), plain(x, layers), atol=0.05, rtol=0.05)
    given.float().sum().backward()
    assert layers[0].weight.grad is not None and layers[0].weight.grad.dtype == torch.float32


def test_frozen_layers_pass_the_gradient_on(layers: tuple[nn.Linear, nn.Linear]) -> None:
    for layer in layers:
        layer.requires_grad_(False)
    x = torch.randn(3, 6, requires_grad=True)
    feed_forward(x, *layers).sum().backward()
    given = x.grad
    x.grad = None
    plain(x, layers).sum().backward()
    torch.testing.assert_close(given, x.grad)
    assert not feed_forward(x.detach(), *layers).requires_grad


def test_the_second_layer_alone_is_trained(layers: tuple[nn.Linear, nn.Linear]) -> None:
    layers[0].requires_grad_(False)
    x = torch.randn(3, 6)
    wanted = torch.autograd.grad(plain(x, layers).sum(), layers[1].weight)
    given = torch.autograd.grad(feed_forward(x, *layers).sum(), layers[1].weight)
    torch.testing.assert_close(given, wanted)
