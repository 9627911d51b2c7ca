"""What the files of other training codes hold besides weights, and which weights are taken.

The official code writes `model`, perhaps with `ema_model`; detectron2 and detrex write `model`,
perhaps with `ema_state`. mmengine writes `state_dict`; where it averaged weights it swaps the two,
so that `state_dict` holds the averages and `ema_state_dict` the trained ones. Other files are the
weights alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dino_core.checkpoints.foreign.pickle_machine import Inert
from dino_core.checkpoints.foreign_kinds import of_another_project, project_of_class
from dino_core.errors import CheckpointError
from dino_core.limits import shown

_KEYS = ("model", "state_dict", "ema_model", "ema_state", "ema_state_dict")
_DDP_PREFIX = "module."
_AVERAGING_STEPS = "steps"  # mmengine's counter among its averaged tensors


@dataclass(frozen=True)
class Weights:
    """The weights of a file, and what its container says about them.

    Attributes:
        tensors: Parameter name, without the prefix of data-parallel training, to tensor;
            floating-point ones are float32.
        key: The container's key of these weights; empty if the file is the weights alone.
        averaged_too: Whether the file also has averaged weights, which were not taken.
        config_text: mmengine's configuration; empty in other containers.
        class_names: mmengine's class names; empty in other containers.
    """

    tensors: dict[str, Tensor]
    key: str
    averaged_too: bool
    config_text: str
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class _Keys:
    """Where a container has its weights; None for those that it has not."""

    usual: str | None
    averaged: str | None
    trained: str | None

    @staticmethod
    def of(found: Collection[str]) -> _Keys:
        """The keys of a container that has weights under `found`."""
        if "state_dict" in found and "ema_state_dict" in found:  # mmengine swapped them
            return _Keys("state_dict", averaged="state_dict", trained="ema_state_dict")
        averaged = next((key for key in ("ema_model", "ema_state") if key in found), None)
        trained = next((key for key in ("model", "state_dict") if key in found), None)
        return _Keys(trained or averaged, averaged, trained)

    def choose(self, ema: bool | None) -> str | None:
        if ema is None:
            return self.usual
        return self.averaged if ema else self.trained


def find_weights(content: object, path: Path, ema: bool | None = None) -> Weights:
    """The weights among what a file holds.

    Args:
        content: What `load_pickled` returned.
        path: For errors.
        ema: True for averaged weights, False for those that were trained, None for those that the
            code which wrote the file loads.

    Raises:
        CheckpointError: The file has no weights, or not those that `ema` asks for.
    """
    if not isinstance(content, Mapping):
        raise _no_weights(content, path)
    parts = {key: content[key] for key in _KEYS if isinstance(content.get(key), Mapping)}
    read = {key: _tensors(part, path) for key, part in parts.items()}
    sets = {key: tensors for key, tensors in read.items() if tensors}
    keys = _Keys.of(sets)
    key = keys.choose(ema)
    if key is None and ema is not None:
        kind = "averaged" if ema else "trained"
        raise CheckpointError(
            f"{path}: does not say that any of its weights are {kind} ones",
            "leave out --ema and --no-ema for the weights that it has",
        )
    tensors = _tensors(content, path) if key is None else sets[key]
    if not tensors:
        raise _no_weights(content, path)
    return Weights(
        {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()},
        key or "",
        averaged_too=keys.averaged not in (None, key),
        config_text=_config_text(content),
        class_names=_class_names(content),
    )


def _no_weights(content: object, path: Path) -> CheckpointError:
    """The error for a file without tensors by name, which is often a whole model as an object."""
    values = list(content.values()) if isinstance(content, Mapping) else [content]
    kinds = [value.kind for value in values if isinstance(value, Inert)]
    project = next(filter(None, map(project_of_class, kinds)), None)
    if project is not None:
        return of_another_project(path, project)
    if kinds:
        return CheckpointError(
            f"{path}: holds no weights but an object of the class {shown(kinds[0])}, which is not "
            "created",
            "load it where that class is defined, and write torch.save(model.state_dict(), FILE)",
        )
    return CheckpointError(
        f"{path}: holds no weights", "give the file that has them, e.g. checkpoint.pth"
    )


def _tensors(content: Mapping[object, object], path: Path) -> dict[str, Tensor]:
    """The tensors of a mapping by name without prefix."""
    result: dict[str, Tensor] = {}
    for given, value in content.items():
        tensor = _tensor(value)
        if tensor is None or given == _AVERAGING_STEPS:
            continue
        name = str(given).removeprefix(_DDP_PREFIX)
        if name in result and not _same(result[name], tensor):
            raise CheckpointError(f"{path}: '{name}' and '{_DDP_PREFIX}{name}' differ")
        result[name] = tensor
    return result


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _tensor(value: object) -> Tensor | None:
    """A tensor, or an array as detectron2's `.pkl` files have them. None for anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        value = torch.from_numpy(np.array(value, np.float32 if value.dtype.kind == "f" else int))
    return value if isinstance(value, Tensor) else None


def _meta(content: Mapping[object, object]) -> Mapping[object, object]:
    meta = content.get("meta")
    return meta if isinstance(meta, Mapping) else {}


def _config_text(content: Mapping[object, object]) -> str:
    text = _meta(content).get("cfg")
    return text if isinstance(text, str) else ""


def _class_names(content: Mapping[object, object]) -> tuple[str, ...]:
    """The class names in `dataset_meta`, whose keys early versions of mmengine capitalized."""
    meta = _meta(content).get("dataset_meta")
    for key, names in meta.items() if isinstance(meta, Mapping) else ():
        if str(key).lower() == "classes" and isinstance(names, (tuple, list)):
            known = all(isinstance(name, str) and name.isprintable() for name in names)
            return tuple(names) if known else ()
    return ()
