"""The minimum work of an operator: multiply-adds, passes over memory, gathers from the cache."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ceilings import DTYPES
from torch import Tensor
from torch.utils._pytree import tree_leaves

CACHE_BYTES = 16 * 2**20  # arrays up to this size are assumed to stay in a cache
CORNERS = 4  # read by a bilinear sample
CORES = ("deformable_attention", "ms_deform_attn")
PRODUCTS = ("linear", "_linear_pointwise", "addmm", "mm", "bmm", "matmul")
UNTOUCHED = ("new_empty", "empty", "empty_like", "empty_strided")  # allocated but not written


@dataclass(frozen=True)
class Work:
    """The work of one operator or of several.

    Attributes:
        kind: "convolutions", "linear layers", "self-attention", "attention core", "other".
        dtype: "fp32" or "bf16", the dtype of the products.
        flops: Two per multiply-add.
        moved: Bytes read and written in memory.
        gathered: Bytes that the attention core reads at the corners of its points.
    """

    kind: str
    dtype: str
    flops: float
    moved: float
    gathered: float

    def least_s(self, rates: Mapping[str, float]) -> float:
        """Return the least time by the ceilings, with computation and copies in parallel."""
        arithmetic = max(rates[f"matmul {self.dtype}"], rates[f"convolution {self.dtype}"])
        return max(
            self.flops / arithmetic,
            self.moved / rates["memory copy"],
            self.gathered / rates["cache copy"],
        )


def work_of(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Work:
    """Return the work of an operator of PyTorch or ours, called with these arguments."""
    name = operator._opname
    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    dtype = DTYPES.get(inputs[0].dtype, "fp32") if inputs else "fp32"
    moved = 0.0 if name in UNTOUCHED else _moved(operator, inputs, outputs)
    if name.startswith("conv"):
        flops = 2.0 * outputs[0].numel() * args[1][0].numel()
        return Work("convolutions", dtype, flops, moved, 0.0)
    if name in PRODUCTS:
        shared = args[1 if name == "addmm" else 0].shape[-1]
        return Work("linear layers", dtype, 2.0 * outputs[0].numel() * shared, moved, 0.0)
    if name.startswith("scaled_dot_product"):
        query, key = args[:2]
        flops = 4.0 * query.numel() * key.shape[-2]
        return Work("self-attention", dtype, flops, moved, 0.0)
    if name in CORES:
        value, weights = args[0], args[-1]
        read = CORNERS * weights.numel() * value.shape[-1]
        # Sums are computed in float32 whatever the dtype of `value` is.
        return Work("attention core", "fp32", 2.0 * read, moved, read * value.element_size())
    return Work("other", dtype, 0.0, moved, 0.0)


def _moved(operator: Any, inputs: list[Tensor], outputs: list[Tensor]) -> float:
    """Return the bytes of operands and results that are too large for the cache."""
    sources = {t.untyped_storage().data_ptr() for t in inputs}
    views = all(t.untyped_storage().data_ptr() in sources for t in outputs)
    if views and not operator._schema.is_mutable:
        return 0.0
    return math.fsum(
        min(t.nbytes, t.untyped_storage().nbytes())
        for t in (*inputs, *outputs)
        if t.untyped_storage().nbytes() > CACHE_BYTES
    )
