"""The collective operations of training; in a single process they do nothing.

Only tensors are exchanged, so nothing is pickled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    """Whether several processes train together, i.e. a process group is initialized."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """The mean of `tensor` over all processes; in a single process, `tensor` itself."""
    if not is_distributed():
        return tensor
    # A collective operation writes into its argument, and the caller's tensor may have a gradient.
    result = tensor.detach().clone()
    dist.all_reduce(result, op=dist.ReduceOp.SUM)
    return result / world_size()


def all_true(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is true in every process."""
    return most(int(not flag), device) == 0


def most(count: int, device: torch.device) -> int:
    """The largest `count` of any process."""
    if not is_distributed():
        return count
    value = torch.tensor(count, device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value.item())


def sums(values: Sequence[float], device: torch.device) -> list[float]:
    """Each of `values` summed over the processes, which must all have the same number of values."""
    if not is_distributed():
        return list(values)
    # float64 holds counts of any size and seconds of any run exactly enough.
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    result: list[float] = tensor.tolist()
    return result


def gather_rows(rows: Tensor) -> list[Tensor]:
    """The (N, ...) tensors of all processes in the order of ranks; only N may differ."""
    if not is_distributed():
        return [rows]
    # Each process fills in its own entry, so the sum is the list of all counts.
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[rank()] = len(rows)
    dist.all_reduce(counts, op=dist.ReduceOp.SUM)
    lengths = counts.tolist()
    # Equal in all processes, so all of them leave here together.
    if not max(lengths):
        return [rows for _ in lengths]
    # Both backends need tensors of one shape. The padding is cut off again below.
    padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded)
    return [part[:length] for part, length in zip(gathered, lengths, strict=True)]


def gather_texts(text: str, device: torch.device) -> list[str]:
    """The texts of all processes in the order of ranks."""
    if not is_distributed():
        return [text]
    code = torch.tensor(list(text.encode()), dtype=torch.uint8).to(device)
    return [bytes(part.tolist()).decode() for part in gather_rows(code)]


def barrier() -> None:
    """Wait until every process has arrived here."""
    if is_distributed():
        dist.barrier()


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective operation failed because another process has ended.

    NCCL's errors have a type of their own; gloo's are plain RuntimeErrors that name a source file.
    """
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def exchange(model: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[None]:
    """A block in which a backward pass averages gradients over the processes only where `wanted`.

    With accumulation, one exchange per step suffices instead of one per batch.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        # DDP prepares the exchange in the forward pass and does it in the backward pass, so the
        # block must contain both.
        return contextlib.nullcontext() if wanted else model.no_sync()
    set_sync = getattr(
        model, "set_requires_gradient_sync", None
    )  # a model that `sharding.shard` sharded
    if set_sync is not None:
        set_sync(wanted)
    return contextlib.nullcontext()


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, wrapped so that gradients are averaged where there are several processes."""
    if not is_distributed() or hasattr(
        model, "set_requires_gradient_sync"
    ):  # FSDP averages them itself
        return model
    ids = [device.index] if device.type == "cuda" else None
    # Buffers need no broadcast: batch norms are frozen, so none changes in training.
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
