"""FSDP2: shards weights, gradients and moments of the largest networks over the processes.

Each process keeps its part of every parameter, and gathers the parameters of a layer only while it
computes with them. Files and evaluations always use whole tensors, so they are the same as without
sharding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dino_core.engine.parallel.collectives import gather_rows, is_distributed, world_size
from dino_core.errors import ConfigError
from dino_core.models.dino import Dino

_AT_A_TIME = 2**26  # numbers per exchange: 256 MiB


def check_sharding() -> None:
    """Raises ConfigError where there is only one process."""
    if not is_distributed():
        raise ConfigError(
            "train.shard = fsdp: there is only one process, so nothing to shard over",
            "--devices N, or torchrun",
        )


def shard(model: Dino, device: torch.device) -> None:
    """Shard the parameters of `model` over all processes, in place; names stay the same.

    Transformer layers and stages of the backbone are gathered one at a time. The rest (heads,
    embeddings, neck) stays gathered during the whole step.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world_size(),))
    # Inner modules first: `fully_shard` of the whole model takes only what is left over.
    for part in (*model.backbone.stages(), *model.encoder.layers, *model.decoder.layers):
        # E.g. the activation that ends a ResNet's stem has none.
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Gather sharded tensors on the CPU; every process must call this with the same names.

    Args:
        tensors: Name to tensor, sharded or whole. A tensor with two names stays one tensor.
        keep: Whether this process needs the result, which is empty otherwise.
    """
    # One entry per tensor, so that a tensor with two names is gathered once.
    parts = {id(t): t for t in tensors.values() if hasattr(t, "full_tensor")}
    gathered: dict[int, Tensor] = {}
    # Small tensors are sent together and large models in several portions: neither hundreds of
    # exchanges nor a second copy of all weights.
    waiting: list[Tensor] = []
    for part in parts.values():
        waiting.append(part)
        if sum(t.numel() for t in waiting) >= _AT_A_TIME:
            gathered |= _gather(waiting, keep)
            waiting = []
    gathered |= _gather(waiting, keep)
    if not keep:
        return {}
    return {name: gathered.get(id(t), t.detach()) for name, t in tensors.items()}


def _gather(parts: Sequence[Tensor], keep: bool) -> dict[int, Tensor]:
    """Id of each sharded tensor to the whole one, in one exchange; empty unless `keep`."""
    if not parts:
        return {}
    # Every process takes part, including those that throw the result away.
    shares = gather_rows(torch.cat([local(part).detach().flatten() for part in parts]))
    if not keep:
        return {}
    result: dict[int, list[Tensor]] = {id(part): [] for part in parts}
    for number, share in enumerate(shares):
        # FSDP2 cuts along the first axis as torch.chunk does: into equal pieces, of which the last
        # ones are smaller or empty.
        rows = [-(-len(part) // len(shares)) for part in parts]
        rows = [min(n, max(0, len(p) - number * n)) for n, p in zip(rows, parts, strict=True)]
        sizes = [n * math.prod(part.shape[1:]) for n, part in zip(rows, parts, strict=True)]
        for part, piece in zip(parts, torch.split(share.cpu(), sizes), strict=True):
            result[id(part)].append(piece)
    # The pieces are in the order of ranks, which is the order of the rows.
    return {id(p): torch.cat(result[id(p)]).view(p.shape) for p in parts}


def like(full: Tensor, target: Tensor) -> Tensor:
    """This process's part of `full` where `target` is sharded, else `full`."""
    if not hasattr(target, "full_tensor"):
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    full = full.to(target.device)
    # Every process has read the same file, so nothing needs to be sent.
    part = distribute_tensor(full, target.device_mesh, target.placements, src_data_rank=None)
    return cast(Tensor, part)


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors into a module that may be sharded.

    Raises:
        RuntimeError: as `load_state_dict`.
    """
    own = module.state_dict()
    placed = {n: like(t, own[n]) if n in own and own[n].shape == t.shape else t
              for n, t in state.items()}  # fmt: skip
    module.load_state_dict(placed)


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that this process holds: all of it where it is not sharded."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else cast(Tensor, part())
