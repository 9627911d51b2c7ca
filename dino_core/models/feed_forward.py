"""Feed-forward networks of DINO's transformer layers, and of the blocks of its large backbones.

The first is linear, ReLU, linear. Its hidden activations are the largest tensors of DINO: 2048 wide
for every token of every level. On a CPU they and their gradients are computed in blocks of rows, so
that a second tensor of that size is never needed. This saves 0.5 GB in a training step of
dino-r50-4scale, and is not slower.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dino_core.models.recompute import recomputed
from dino_core.ops.linear import Linear, is_plain_cpu, product, to_autocast_dtype

# Large enough that each product runs at full speed, and small next to the 140 MiB that the hidden
# activations of one 800x1066 image take in float32.
_BLOCK_BYTES = 64 * 2**20  # of hidden activations in one block


def feed_forward(
    x: Tensor, linear1: nn.Linear, linear2: nn.Linear, recompute: bool = False
) -> Tensor:
    """Compute linear2(relu(linear1(x))) of x (..., hidden), in blocks on a CPU.

    With `recompute` the hidden activations are not kept for the backward pass, but recomputed.
    """
    # A GPU gains nothing from blocks, and tracing (torch.compile, ONNX) needs plain operations.
    if not is_plain_cpu(x):
        return recomputed(_plain, x, linear1, linear2, enabled=recompute)
    # A custom autograd function runs without autocast, so the casts are made here. Being part of
    # the graph, they also return gradients in the dtype of the parameters.
    x, *parameters = to_autocast_dtype(
        x, linear1.weight, linear1.bias, linear2.weight, linear2.bias
    )
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and any(t.requires_grad for t in (rows, *parameters)):
        result: Tensor = _Blocked.apply(recompute, rows, *parameters)
    else:
        result = _forward(rows, *parameters)
    return result.view(*x.shape[:-1], linear2.out_features)


def _plain(x: Tensor, linear1: nn.Linear, linear2: nn.Linear) -> Tensor:
    out: Tensor = linear2(functional.relu(linear1(x)))
    return out


def _forward(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """(N, in) -> (N, out), with the hidden activations of one block at a time."""
    result = x.new_empty(len(x), len(weight2))
    for rows in _blocks(x, len(weight1)):
        result[rows] = product(product(x[rows], weight1, bias1, relu=True), weight2, bias2)
    return result


def _blocks(x: Tensor, width: int) -> list[slice]:
    """Ranges of the rows of x whose hidden activations, `width` per row, fit into a block."""
    # At least 64 rows, so that a very wide layer does not end up with products of a few rows.
    size = max(64, _BLOCK_BYTES // (width * x.element_size()))
    return [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]


class _Blocked(torch.autograd.Function):
    """The same with gradients for all tensors; the backward pass works in blocks.

    The hidden activations are kept whole for it, unless `recompute` is set.
    """

    @staticmethod
    def forward(
        ctx: Any,
        recompute: bool,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        hidden = None if recompute else product(x, weight1, bias1, relu=True)
        # ReLU needs no mask of its own in the backward pass: its output is positive exactly where
        # the gradient passes.
        ctx.save_for_backward(x, weight1, bias1, weight2, hidden)
        if hidden is None:
            return _forward(x, weight1, bias1, weight2, bias2)
        return product(hidden, weight2, bias2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, bias1, weight2, hidden = ctx.saved_tensors
        # It may be expanded, e.g. after a sum, and the products below need rows in memory.
        grad = grad.contiguous()
        grad_x = torch.empty_like(x)
        grad1, grad2 = torch.zeros_like(weight1), torch.zeros_like(weight2)
        grad_bias1 = torch.zeros_like(bias1)
        for rows in _blocks(x, len(weight1)):
            part = grad[rows]
            kept = product(x[rows], weight1, bias1, relu=True) if hidden is None else hidden[rows]
            inner = product(part, weight2.t(), None)
            inner = torch.ops.aten.threshold_backward(inner, kept, 0)  # the gradient of ReLU
            grad_x[rows] = product(inner, weight1.t(), None)
            # Gradients of the weights are sums over all rows, so the blocks accumulate into them.
            grad1.addmm_(inner.t(), x[rows])
            grad2.addmm_(part.t(), kept)
            grad_bias1 += inner.sum(0)
        return None, grad_x, grad1, grad_bias1, grad2, grad.sum(0)


class GeluMlp(nn.Module):
    """Linear, GELU, linear, four times as wide inside: the MLP of a Swin or ConvNeXt block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return cast(Tensor, self.fc2(functional.gelu(self.fc1(x))))
