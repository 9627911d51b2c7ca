"""Imports checkpoints of other DINO code: every tensor finds its place, or the file is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dino_core.checkpoints.foreign.architecture import network_of, without_unused
from dino_core.checkpoints.foreign.containers import Weights, find_weights
from dino_core.checkpoints.foreign.keymaps import official
from dino_core.checkpoints.foreign.keymaps.coco import (
    COCO_NAMES,
    OFFICIAL_SLOTS,
    coco_classes,
    official_coco_classes,
)
from dino_core.checkpoints.foreign.layouts import (
    OFFICIAL,
    Layout,
    official_state,
    recognize,
    rename_all,
    some,
)
from dino_core.checkpoints.foreign.position import Position, find_position
from dino_core.checkpoints.foreign.unpickle import load_pickled
from dino_core.checkpoints.io import Checkpoint, model_without_values
from dino_core.config import ModelConfig, PreprocessConfig
from dino_core.detections import ClassMap
from dino_core.errors import CheckpointError, DataError
from dino_core.files import sha256_of
from dino_core.metadata import CheckpointMeta

_HEAD_OF_LAYER = re.compile(r"(decoder\.(?:class|bbox)_embed)\.(\d+)\.(.+)")


def import_checkpoint(
    path: Path,
    *,
    ema: bool | None = None,
    position_temperature: float | None = None,
    position_offset: float | None = None,
) -> Checkpoint:
    """Read a checkpoint of the official code, detrex or mmdet as one of this library.

    The code is recognized by the names of the tensors. The files of the training scripts (weights
    beside optimizer, arguments, history), published files, bare state dicts, and names with DDP's
    prefix are accepted. Differences beyond names go into the ModelConfig: separate heads of the
    layers, biases of the neck, the position encoding, the epsilon of the predicted boxes.
    `meta.provenance["notes"]` states what was assumed.

    Args:
        path: A `.pth` file.
        ema: True for averaged weights, False for those that were trained, None for those that the
            code which wrote the file loads.
        position_temperature: Temperature of the position encoding, which few files state; None for
            the file's, or else the usual one of its code.
        position_offset: Offset of the position encoding, likewise.

    Raises:
        CheckpointError: The file is no such checkpoint, its variant is not supported, or tensors on
            either side have no counterpart (the message names them).
        ConfigError: The temperature or offset is impossible.
    """
    weights = find_weights(load_pickled(path), path, ema)
    layout = recognize(weights.tensors, path)
    position = find_position(
        layout, path.name, weights.config_text, position_temperature, position_offset
    )
    given = official_state(weights.tensors, layout, path)
    # The architecture is inferred from names and shapes, since most files do not state it.
    config = _adapted(network_of(given, path), layout, position)
    state, config = our_state(given, config, layout, path)
    provenance = {
        "layout": layout.name,
        "file": path.name,
        "sha256": sha256_of(path),
        "weights": weights.key,
        "notes": _notes(layout, weights, position),
    }
    preprocess = PreprocessConfig(**layout.preprocess)
    classes = _classes(layout, config, weights.class_names, path)
    meta = CheckpointMeta(config.variant, config, preprocess, classes, provenance=provenance)
    return Checkpoint(meta, state)


def _adapted(config: ModelConfig, layout: Layout, position: Position) -> ModelConfig:
    """The published network with the differences of the layout and of the file."""
    frozen = config.backbone_frozen_stages
    if config.backbone.startswith("resnet"):
        frozen = layout.resnet_frozen_stages
    return replace(
        config,
        backbone_frozen_stages=frozen,
        position_temperature=position.temperature,
        position_offset=position.offset,
        **layout.model,
    )


def our_state(
    given: Mapping[str, Tensor], config: ModelConfig, layout: Layout, path: Path
) -> tuple[dict[str, Tensor], ModelConfig]:
    """The tensors by our names, and the network with its actual `tied_heads`.

    By default the official code has one head for all layers, and saves it once per layer. Equal
    values therefore mean one head.

    Args:
        given: Tensors by official names.
        config: The network.
        layout: The code that the tensors are from.
        path: For errors.

    Raises:
        CheckpointError: Names or shapes are not exactly the network's.
    """
    used = without_unused(given, config)
    state = rename_all(used, lambda name: official.our_name(name, tied=False), path)
    heads = {name: m for name in state if (m := _HEAD_OF_LAYER.fullmatch(name))}
    others = {name: f"{m[1]}.0.{m[3]}" for name, m in heads.items() if m[2] != "0"}
    if layout is OFFICIAL:
        # Compared by value and not by identity: a file that was loaded and saved again may have six
        # copies.
        tied = all(
            first in state and torch.equal(state[name], state[first])
            for name, first in others.items()
        )
        config = replace(config, tied_heads=tied)
        if tied:
            state = {name: tensor for name, tensor in state.items() if name not in others}
    state["label_enc.weight"] = _label_rows(state.get("label_enc.weight"), config, path)
    _check(state, config, path)
    return state, config


def _label_rows(given: Tensor | None, config: ModelConfig, path: Path) -> Tensor:
    """The rows of the label embedding that the classes use, and the one after them.

    The official embedding may have more rows. detrex and mmdet have none after the last class. It
    is never looked up (ALGORITHM 20 draws class indices), so it is filled with zeros.
    """
    classes = config.num_classes
    rows = 0 if given is None or given.dim() == 0 else len(given)
    if given is None or rows < classes:
        raise CheckpointError(
            f"{path}: label_enc.weight has {rows} rows, fewer than the {classes} classes"
        )
    # A copy, so that the rows that are cut off do not stay in memory.
    if rows > classes:
        return given[: classes + 1].clone()
    return torch.cat([given, given.new_zeros(1, *given.shape[1:])])


def _classes(layout: Layout, config: ModelConfig, names: tuple[str, ...], path: Path) -> ClassMap:
    """The classes of the heads' columns: from the file, or COCO's if there are as many."""
    count = config.num_classes
    # COCO's own names get COCO's category ids below, which names alone do not state.
    if len(names) == count and names != tuple(COCO_NAMES.values()):
        try:
            return ClassMap.from_names(names)
        except DataError as error:
            raise CheckpointError(f"{path}: {error.message}") from error
    if layout is OFFICIAL and count == OFFICIAL_SLOTS:
        return official_coco_classes()
    if layout is not OFFICIAL and count == len(COCO_NAMES):
        return coco_classes()
    return ClassMap.from_names(f"class {i}" for i in range(count))


def _notes(layout: Layout, weights: Weights, position: Position) -> list[str]:
    """What users of the imported model should know."""
    notes = [
        f"position encoding: temperature {position.temperature:g}, offset {position.offset:g} "
        f"({position.source})"
    ]
    if weights.averaged_too:
        notes.append(f"weights: '{weights.key}'; the file has averaged ones too")
    return notes


def _check(state: Mapping[str, Tensor], config: ModelConfig, path: Path) -> None:
    """Raises CheckpointError unless names, shapes and dtypes are exactly the model's."""
    model = model_without_values(config)
    expected = {n: (tuple(t.shape), t.dtype) for n, t in model.state_dict().items()}
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    if missing or extra:
        parts = [f"{len(missing)} missing: {some(missing)}"] if missing else []
        parts += [f"{len(extra)} without a place: {some(extra)}"] if extra else []
        raise CheckpointError(f"{path}: tensors do not match {config.variant}: {'; '.join(parts)}")
    wrong = [
        f"{n} is {tuple(t.shape)}, expected {expected[n][0]}"
        for n, t in state.items()
        if tuple(t.shape) != expected[n][0]
    ]
    if wrong:
        raise CheckpointError(f"{path}: {len(wrong)} tensors of another shape: {some(wrong)}")
    odd = [f"{n} of {t.dtype}" for n, t in state.items() if t.dtype != expected[n][1]]
    if odd:
        raise CheckpointError(f"{path}: {len(odd)} tensors of another type: {some(odd)}")
