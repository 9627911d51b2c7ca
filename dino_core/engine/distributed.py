"""The few collective operations training needs; in a single process each does nothing."""

from __future__ import annotations

import contextlib

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    """Whether several processes train together (a process group is initialised)."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """The mean of `tensor` over all processes; `tensor` itself where there is one."""
    if not is_distributed():
        return tensor
    result = tensor.detach().clone()
    dist.all_reduce(result, op=dist.ReduceOp.SUM)
    return result / world_size()


def all_true(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is true in every process."""
    if not is_distributed():
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return bool(value.item())


def exchange(model: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[None]:
    """Forward and backward of a wrapped model in it average gradients only where `wanted`.

    Gradients that are accumulated first need one exchange a step instead of one a micro-batch.
    """
    if wanted or not isinstance(model, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, averaging gradients over processes where there are several."""
    if not is_distributed():
        return model
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)
