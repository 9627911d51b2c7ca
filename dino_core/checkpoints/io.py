"""Model files: safetensors files with the weights and, as JSON, all that is needed to use them.

Files are written atomically: after a crash or on a full disk the previous file is unchanged.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dino_core.checkpoints.checksum import CHECKSUM_KEY, NO_CHECKSUM_YET, write_checksum
from dino_core.checkpoints.header import check_file, read_errors, read_header
from dino_core.config import ModelConfig
from dino_core.errors import CheckpointError, DinoError
from dino_core.files import part_path, write_error
from dino_core.limits import shown
from dino_core.metadata import METADATA_KEY, CheckpointMeta, to_json
from dino_core.models.dino import Dino

_ALIASES_KEY = "aliases"


@dataclass(frozen=True)
class Checkpoint:
    """A model file in memory.

    Attributes:
        meta: The description in the file.
        state_dict: Parameter name to tensor. Floating-point ones are float32, whatever the file
            stores.
    """

    meta: CheckpointMeta
    state_dict: Mapping[str, Tensor]


def save_checkpoint(
    path: Path,
    state_dict: Mapping[str, Tensor],
    meta: CheckpointMeta,
    storage_dtype: torch.dtype | None = None,
) -> None:
    """Write a model file atomically, with a checksum of its content.

    Args:
        path: The file; its folder must exist.
        state_dict: Parameter name to tensor on any device.
        meta: The description to store.
        storage_dtype: Dtype in which floating-point tensors are stored, e.g. bfloat16 or float16
            for distribution; None keeps their own.

    Raises:
        CheckpointError: The file could not be written, e.g. because the disk is full.
    """
    if storage_dtype is not None:
        converted: dict[int, Tensor] = {}  # one copy for names that share a tensor
        state_dict = {
            name: converted.setdefault(t.data_ptr(), t.detach().to(storage_dtype))
            if t.is_floating_point() and t.numel()
            else t
            for name, t in state_dict.items()
        }
    metadata = {METADATA_KEY: to_json(meta), CHECKSUM_KEY: NO_CHECKSUM_YET}
    write_tensors(path, state_dict, metadata)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a model file.

    Raises:
        CheckpointError: The file is missing, truncated, not a model file, or of a newer version.
    """
    meta = read_header(path)
    tensors, _ = read_tensors(path)
    try:
        state = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    except RuntimeError as error:  # of a dtype that torch can store but not convert
        raise CheckpointError(f"{path}: its weights cannot be read ({error})") from error
    return Checkpoint(meta, state)


def build_model(checkpoint: Checkpoint, where: str | Path | None = None) -> Dino:
    """The network with its weights, in evaluation mode.

    Args:
        checkpoint: A model file in memory.
        where: The file's name, for errors; the variant's name by default.

    Raises: CheckpointError if the weights are not those of the network that the file describes, or
        there is no such network.
    """
    where = where or checkpoint.meta.variant
    try:
        model = model_without_values(checkpoint.meta.model)
    except DinoError as error:
        raise CheckpointError(f"{where}: {error.message}", error.hint) from error
    except Exception as error:  # timm's networks refuse settings with errors of their own
        raise CheckpointError(f"{where}: its network cannot be built ({error})") from error
    faults = _misfits(checkpoint.state_dict, model.state_dict())
    if faults:
        more = f", and {len(faults) - 1} more faults" if len(faults) > 1 else ""
        raise CheckpointError(
            f"{where}: its weights do not fit the network that it describes: {faults[0]}{more}",
            "the file is damaged, or was changed by hand; get it again",
        )
    model.load_state_dict(checkpoint.state_dict, assign=True)
    left = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if left:
        raise CheckpointError(f"{where}: the file lacks {', '.join(left[:8])}")
    return model.eval()


def _misfits(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What differs between the tensors of a file and those of its network, in words.

    The dtypes matter because the tensors are taken as they are: with integers or complex numbers
    for weights, the network would fail in use.
    """
    faults = [f"{name} is missing" for name in expected if name not in given]
    for name, tensor in given.items():
        wanted = expected.get(name)
        if wanted is None:
            faults.append(f"{shown(name)} is not part of the network")
        elif tensor.shape != wanted.shape:
            faults.append(f"{name} is {tuple(tensor.shape)}, expected {tuple(wanted.shape)}")
        elif tensor.dtype != wanted.dtype:
            faults.append(f"{name} has values of {tensor.dtype}, expected {wanted.dtype}")
    return faults


def model_without_values(config: ModelConfig) -> Dino:
    """The network on the meta device: it has names and shapes, but no values yet."""
    with torch.device("meta"), _NoRandomNumbers():
        return Dino(config)


class _NoRandomNumbers(TorchFunctionMode):
    """Skips the initialization of tensors.

    On the meta device it has no effect anyway, but PyTorch imports its compiler for it, which takes
    longer than building the network.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **kwargs)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and string metadata as safetensors, atomically.

    safetensors refuses names that share a tensor, so it is stored once, and the other names are
    listed in the metadata. The digits of a `CHECKSUM_KEY` in the metadata are filled in.

    Raises: CheckpointError if the disk is full or the folder cannot be written.
    """
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            kept[name] = _own_memory(tensor.detach().cpu().contiguous())
    everything = {**metadata, **({_ALIASES_KEY: json.dumps(aliases)} if aliases else {})}
    temporary = part_path(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # from the umask; safetensors itself would make it 0600
        safetensors.torch.save_file(kept, temporary, metadata=everything)
        temporary.chmod(mode)
        write_checksum(temporary)
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise write_error(
            path, error, CheckpointError, kept="the previous file, if any, is intact"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _own_memory(tensor: Tensor) -> Tensor:
    """`tensor`, copied if it is a part of a larger one, which safetensors refuses."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors (on the CPU) and the string metadata of a safetensors file.

    Names that shared a tensor when it was written share it again.

    Raises: CheckpointError if the file is missing, truncated or not safetensors.
    """
    check_file(path)
    with read_errors(path), safetensors.safe_open(str(path), framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        for name, kept in json.loads(metadata.pop(_ALIASES_KEY, "{}")).items():
            tensors[name] = tensors[kept]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its list of shared tensors is damaged") from error
    return tensors, metadata
