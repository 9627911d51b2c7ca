"""`Linear` against PyTorch's own, with oneDNN's product and without.

Tolerance: both sum in float32 in another order; bfloat16 rounds inputs and result to 8 bits.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dino_core.ops import linear as module
from dino_core.ops.linear import Linear, product


@pytest.fixture(params=["oneDNN", "small"])
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Linear:
    if request.param == "oneDNN":
        monkeypatch.setattr(module, "_WORTHWHILE", 1)
    torch.manual_seed(0)
    return Linear(24, 7)


def test_equals_pytorchs_layer_and_its_gradients(layer: Linear) -> None:
    x = torch.randn(2, 33, 24, requires_grad=True)
    grad = torch.randn(2, 33, 7)
    inputs = (x, layer.weight, layer.bias)
    wanted, given = functional.linear(*inputs), layer(x)
    torch.testing.assert_close(given, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(given, inputs, grad), torch.autograd.grad(wanted, inputs, grad)
    )
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), wanted)
        assert layer(x[:, :0]).shape == (2, 0, 7)


def test_only_the_wanted_gradients(layer: Linear) -> None:
    layer.weight.requires_grad_(False)
    x = torch.randn(5, 24)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((7,), 5.0))


def test_autocast_computes_in_bfloat16(layer: Linear) -> None:
    x = torch.randn(40, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        given = layer(x)
    assert given.dtype == torch.bfloat16
    torch.testing.assert_close(given.float(), functional.linear(*_all(layer, x)), atol=0.03, rtol=0)
    given.float().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_float64_and_a_vector(layer: Linear) -> None:
    layer.double()
    x = torch.randn(24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), functional.linear(*_all(layer, x)))


def test_compiled_graphs_hold_plain_operators(layer: Linear) -> None:
    graph = torch.export.export(layer, (torch.randn(9, 24),)).graph
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert called == ["aten.linear.default"]


@pytest.mark.parametrize("least", [1, 10**9])
def test_product_with_relu_and_without_bias(monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setattr(module, "_WORTHWHILE", least)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(9, 24), torch.randn(7, 24), torch.randn(7)
    torch.testing.assert_close(product(x, weight, None), x @ weight.t())
    torch.testing.assert_close(
        product(x, weight.t().contiguous().t(), bias, relu=True), (x @ weight.t() + bias).relu()
    )


def _all(layer: Linear, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x, layer.weight, layer.bias
