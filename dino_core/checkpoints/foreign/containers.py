"""What the files of other training codes hold besides weights, and which weights are taken.

Official: `model`, perhaps `ema_model`. Detectron2 and detrex: `model`, perhaps `ema_state`.
mmengine: `state_dict`; where it averaged weights they are swapped, so that `state_dict` holds the
averages and `ema_state_dict` the others. Or the weights alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_core.errors import CheckpointError

_DDP_PREFIX = "module."
_AVERAGING_STEPS = "steps"  # mmengine's counter among its averaged tensors


@dataclass(frozen=True)
class Weights:
    """The weights of a file, and what its container tells about them.

    Attributes:
        tensors: Parameter name, without the prefix of data parallel training, to tensor; floating
            ones float32.
        key: Under which the container has them; empty where it holds nothing else.
        averaged_too: There are averaged weights, which were not taken.
        config_text: mmengine's configuration; empty in other containers.
        class_names: mmengine's names of the classes; empty in other containers.
    """

    tensors: dict[str, Tensor]
    key: str
    averaged_too: bool
    config_text: str
    class_names: tuple[str, ...]


def find_weights(content: Any, path: Path, ema: bool | None = None) -> Weights:
    """The weights among what a file holds.

    Args:
        content: What `load_pickled` gave.
        path: For errors.
        ema: True: averaged weights; False: those that were trained; None: those that the code which
            wrote the file loads.

    Raises:
        CheckpointError: no weights, or not the wanted ones.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds no weights")
    sets = {
        key: _tensors(content[key], path)
        for key in ("model", "state_dict", "ema_model", "ema_state", "ema_state_dict")
        if isinstance(content.get(key), Mapping)
    }
    sets = {key: tensors for key, tensors in sets.items() if tensors}
    swapped = "state_dict" in sets and "ema_state_dict" in sets
    averaged = "state_dict" if swapped else _first(sets, "ema_model", "ema_state")
    trained = "ema_state_dict" if swapped else _first(sets, "model", "state_dict")
    usual = "state_dict" if swapped else trained or averaged
    key = usual if ema is None else averaged if ema else trained
    if key is None and ema is None:
        tensors, key = _tensors(content, path), ""
        if not tensors:
            raise CheckpointError(f"{path}: holds no weights")
    elif key is None:
        kind = "averaged" if ema else "trained"
        raise CheckpointError(
            f"{path}: does not say that any of its weights are {kind} ones",
            "leave out --ema and --no-ema for the weights that it has",
        )
    else:
        tensors = sets[key]
    return Weights(
        tensors,
        key,
        averaged_too=averaged not in (None, key),
        config_text=_config_text(content),
        class_names=_class_names(content),
    )


def _first(sets: Mapping[str, object], *keys: str) -> str | None:
    return next((key for key in keys if key in sets), None)


def _tensors(content: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """The tensors by name without prefix, float32."""
    result: dict[str, Tensor] = {}
    for given, value in content.items():
        tensor = _tensor(value)
        if tensor is None or given == _AVERAGING_STEPS:
            continue
        name = str(given).removeprefix(_DDP_PREFIX)
        if name in result and not torch.equal(result[name], tensor):
            raise CheckpointError(f"{path}: '{name}' and '{_DDP_PREFIX}{name}' differ")
        result[name] = tensor
    return result


def _tensor(value: object) -> Tensor | None:
    """A tensor, or an array as detectron2's `.pkl` files have them; None for all else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        value = torch.from_numpy(np.array(value, np.float32 if value.dtype.kind == "f" else int))
    if not isinstance(value, Tensor):
        return None
    return value.float() if value.is_floating_point() else value


def _meta(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    meta = content.get("meta")
    return meta if isinstance(meta, Mapping) else {}


def _config_text(content: Mapping[Any, Any]) -> str:
    text = _meta(content).get("cfg")
    return text if isinstance(text, str) else ""


def _class_names(content: Mapping[Any, Any]) -> tuple[str, ...]:
    """From `dataset_meta`, whose keys early versions wrote in capitals."""
    meta = _meta(content).get("dataset_meta")
    for key, names in meta.items() if isinstance(meta, Mapping) else ():
        if str(key).lower() == "classes" and isinstance(names, (tuple, list)):
            return tuple(map(str, names))
    return ()
