"""FSDP2: weights, gradients and moments of the largest networks, spread over the processes.

Each process keeps its part of every parameter and gathers a layer's only while it computes with
it. What is saved, evaluated or resumed is always whole, so that files and results are the same as
without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from dino_core.engine.distributed import is_distributed, world_size
from dino_core.errors import ConfigError
from dino_core.models.dino import Dino


def check_sharding() -> None:
    """Raises ConfigError where there is nothing to spread over."""
    if not is_distributed():
        raise ConfigError(
            "train.shard = fsdp: there is one process, nothing to spread over",
            "--devices N, or torchrun",
        )


def shard(model: Dino, device: torch.device) -> None:
    """Spread the parameters of `model` over all processes, in place; names stay.

    Transformer layers and stages of the backbone are gathered one at a time; what is left (heads,
    embeddings, neck) as long as the step lasts.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world_size(),))
    body = model.backbone.body
    names = cast("tuple[str, ...]", body.stages)
    stages = [body.get_submodule(name) for name in names]
    for part in (*stages, *model.encoder.layers, *model.decoder.layers):
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Gather what is spread; every process must call this with the same names.

    Args:
        tensors: Name to tensor, a part or whole already; one under two names stays one.
        keep: Whether this process wants the result, which is empty otherwise.
    """
    seen: dict[int, Tensor] = {}
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in seen:
            full = _whole(tensor)
            seen[id(tensor)] = full if keep else full.new_empty(0)
        if keep:
            result[name] = seen[id(tensor)]
    return result


def _whole(tensor: Tensor) -> Tensor:
    gather = getattr(tensor.detach(), "full_tensor", None)  # of a DTensor
    return tensor.detach() if gather is None else cast(Tensor, gather()).cpu()


def like(full: Tensor, target: Tensor) -> Tensor:
    """This process's part of `full` where `target` is a part, else `full`."""
    if not hasattr(target, "full_tensor"):
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    full = full.to(target.device)
    # Every process has read the same file: nothing needs sending.
    part = distribute_tensor(full, target.device_mesh, target.placements, src_data_rank=None)
    return cast(Tensor, part)


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors into a module that may be spread.

    Raises: RuntimeError as `load_state_dict` does.
    """
    own = module.state_dict()
    placed = {n: like(t, own[n]) if n in own and own[n].shape == t.shape else t
              for n, t in state.items()}  # fmt: skip
    module.load_state_dict(placed)


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that this process holds: all of it where it is not spread."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else cast(Tensor, part())
