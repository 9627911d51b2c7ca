"""Reading checkpoints of other DINO code: every tensor finds its place, or the file is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino_core.checkpoints.architecture import network_of, without_unused
from dino_core.checkpoints.io import Checkpoint
from dino_core.checkpoints.keymaps import official
from dino_core.checkpoints.keymaps.coco import OFFICIAL_SLOTS, official_coco_classes
from dino_core.checkpoints.unpickle import load_pickled
from dino_core.config import ModelConfig, PreprocessConfig
from dino_core.detections import ClassMap
from dino_core.errors import CheckpointError
from dino_core.metadata import CheckpointMeta
from dino_core.models.dino import Dino

_DDP_PREFIX = "module."
_SHOWN = 8


def import_official(path: Path, ema: bool = False) -> Checkpoint:
    """Read a checkpoint of the official code as one of ours.

    Accepts the training script's files (`model`, beside optimiser and arguments), bare state dicts
    and names with DDP's prefix.

    Args:
        path: A `.pth` file.
        ema: Take the averaged weights (`ema_model`) instead of `model`, where it has both.

    Raises:
        CheckpointError: not such a file, a variant that is not supported, or tensors on either
            side that have no counterpart (named in the message).
    """
    given = _state_dict(load_pickled(path), path, ema)
    missing = [mark for mark in official.MARKS if mark not in given]
    if missing:
        raise CheckpointError(
            f"{path}: not a checkpoint of the official DINO code (it lacks {_some(missing)}; it "
            f"has {_some(sorted(given))})"
        )
    config = network_of(given, path)
    state = _renamed(without_unused(given, config), path)
    state["label_enc.weight"] = _label_rows(state.get("label_enc.weight"), config, path)
    _check(state, config, path)
    classes = (
        official_coco_classes()
        if config.num_classes == OFFICIAL_SLOTS
        else ClassMap.from_names(f"class {i}" for i in range(config.num_classes))
    )
    provenance = {"layout": "official", "file": path.name, "sha256": _sha256(path)}
    meta = CheckpointMeta(
        config.variant, config, PreprocessConfig(), classes, provenance=provenance
    )
    return Checkpoint(meta, state)


def _state_dict(content: Any, path: Path, ema: bool) -> dict[str, Tensor]:
    """The weights among what a file holds, without DDP's prefix, float32."""
    keys = ("ema_model", "model") if ema else ("model", "ema_model")
    inner = content
    if isinstance(content, Mapping):
        inner = next((content[k] for k in keys if isinstance(content.get(k), Mapping)), content)
    tensors = (
        {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
        if isinstance(inner, Mapping)
        else {}
    )
    if not tensors:
        raise CheckpointError(f"{path}: holds no weights")
    return {
        name.removeprefix(_DDP_PREFIX): t.float() if t.is_floating_point() else t
        for name, t in tensors.items()
    }


def _renamed(given: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Our names; names that mean one tensor must hold one value."""
    state: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    unknown = []
    for theirs, tensor in given.items():
        ours = official.our_name(theirs)
        if ours is None:
            unknown.append(theirs)
        elif ours not in state:
            state[ours], source[ours] = tensor, theirs
        elif not torch.equal(state[ours], tensor):
            raise CheckpointError(
                f"{path}: '{theirs}' differs from '{source[ours]}'; the published models have one "
                "head for all decoder layers"
            )
    if unknown:
        raise CheckpointError(f"{path}: {len(unknown)} unknown tensors: {_some(unknown)}")
    return state


def _label_rows(given: Tensor | None, config: ModelConfig, path: Path) -> Tensor:
    """The rows that the classes use: the official label book may be longer."""
    rows = config.num_classes + 1
    if given is None or len(given) < rows:
        found = 0 if given is None else len(given)
        raise CheckpointError(f"{path}: label_enc.weight has {found} rows, expected {rows}")
    return given[:rows].clone()


def _check(state: Mapping[str, Tensor], config: ModelConfig, path: Path) -> None:
    """Raises CheckpointError unless names and shapes are exactly the model's."""
    with torch.device("meta"):
        expected = {n: tuple(t.shape) for n, t in Dino(config).state_dict().items()}
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    if missing or extra:
        parts = [f"{len(missing)} missing: {_some(missing)}"] if missing else []
        parts += [f"{len(extra)} without a place: {_some(extra)}"] if extra else []
        raise CheckpointError(f"{path}: tensors do not match {config.variant}: {'; '.join(parts)}")
    wrong = [
        f"{n} is {tuple(t.shape)}, expected {expected[n]}"
        for n, t in state.items()
        if tuple(t.shape) != expected[n]
    ]
    if wrong:
        raise CheckpointError(f"{path}: {len(wrong)} tensors of another shape: {_some(wrong)}")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
