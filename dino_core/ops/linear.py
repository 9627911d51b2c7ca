"""Linear layers by oneDNN on x86 CPUs, with bias and ReLU in the same pass.

PyTorch computes float32 products by MKL, and bias and ReLU in separate passes: it reaches 150 to
175 GFLOP/s where oneDNN reaches 200 to 220 (2 cores of an AMD EPYC, torch 2.15).
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_SCHEMA = (
    "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, "
    "str? algorithm) -> Tensor Y"
)
_WORTHWHILE = 10**8  # multiply-adds; with fewer, the overhead of oneDNN's call is larger


class Linear(nn.Linear):
    """`nn.Linear` that computes large products by oneDNN on x86 CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.numel() // self.in_features
        # Small products and traced ones stay with PyTorch. The others have a gradient of their own
        # below, because the fused operator has none.
        if not is_plain_cpu(x) or rows * self.weight.numel() < _WORTHWHILE:
            return functional.linear(x, self.weight, self.bias)
        # A custom autograd function is not autocast. The casts are part of the graph, so gradients
        # come back in the parameters' own dtype.
        x, weight, bias = to_autocast_dtype(x, self.weight, self.bias)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, bias)):
            result: Tensor = _Linear.apply(x.reshape(-1, self.in_features), weight, bias)
        else:
            result = product(x.reshape(-1, self.in_features), weight, bias)  # (rows, out)
        return result.view(*x.shape[:-1], self.out_features)


def is_plain_cpu(x: Tensor) -> bool:
    """Whether x is a CPU tensor with values, rather than one that is being traced."""
    tracing = (
        torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )
    return x.device.type == "cpu" and not tracing


def to_autocast_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's dtype on the CPU, if autocast is on."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(t.to(dtype) for t in tensors)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """Compute x @ weight.T + bias on a CPU, without a gradient and without autocast.

    Args:
        x: (N, in).
        weight: (out, in).
        bias: (out,) or None.
        relu: Apply ReLU to the result.

    Returns: (N, out).
    """
    # The backward pass calls this with other shapes than the forward pass, so the size is checked
    # again.
    if len(x) * weight.numel() >= _WORTHWHILE and _onednn_takes(x.dtype):
        activation = "relu" if relu else "none"
        fused: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
        return fused
    result = functional.linear(x, weight, bias)
    return result.relu_() if relu else result


@cache
def _onednn_takes(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the fused product for this dtype on this processor.

    The operator is private to PyTorch, so its schema is compared with the one known to work.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    found = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if found is None or str(found.default._schema) != _SCHEMA:
        return False
    # This depends on the processor, while float32 works on any of them.
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t(), None) if needs_x else None,
            grad.t() @ x if needs_weight else None,  # MKL is faster here
            grad.sum(0) if needs_bias else None,
        )
