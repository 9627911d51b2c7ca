"""Which network tensors with official names belong to, told by their names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path

from torch import Tensor

from dino_core.config import ModelConfig
from dino_core.errors import CheckpointError
from dino_core.models.backbones.convnext import CONVNEXT_SIZES, ConvNextSize
from dino_core.models.backbones.resnet import RESNET_BLOCKS
from dino_core.models.backbones.swin import SWIN_SIZES, SwinSize
from dino_core.variants import BACKBONE_LETTERS, VARIANTS, variant_name

_LEVELS = "transformer.level_embed"
_QUERIES = "transformer.tgt_embed.weight"
_HEADS = ("class_embed.0.weight", "transformer.decoder.class_embed.0.weight")
_BODY = "backbone.0."
_RESNET_STEM = "body.conv1.weight"
_SWIN_STEM = "patch_embed.proj.weight"
_CONVNEXT_STEM = "downsample_layers.0.0.weight"
_STAGES = 4  # of every backbone; a ResNet's stem counts as one more map

_RECOMPUTED = re.compile(r"backbone\.0\..+\.attn\.relative_position_index")
_OUTPUT_NORM = re.compile(r"backbone\.0\.norm(\d)\..+")


def network_of(given: Mapping[str, Tensor], path: Path) -> ModelConfig:
    """The network that these tensors belong to; what their shapes leave open is as published.

    Args:
        given: By official names.
        path: For errors.

    Raises:
        CheckpointError: what tells it is missing, contradicts itself, or is of no known backbone.
    """
    base, backbone = _backbone(given, path)
    levels, projections = _rows(given, path, _LEVELS), _projections(given)
    maps = sum(weight.shape[2:] == (1, 1) for weight in projections)
    if len(projections) != levels or not 1 <= maps <= _STAGES:
        raise CheckpointError(
            f"{path}: {levels} scales in {_LEVELS}, but input_proj has {len(projections)} "
            f"({maps} of them read a map of the backbone)"
        )
    last = max(base.backbone_out_indices)
    return replace(
        base,
        variant=variant_name(backbone, levels),
        backbone=backbone,
        backbone_out_indices=tuple(range(last + 1 - maps, last + 1)),
        num_levels=levels,
        num_classes=_rows(given, path, *_HEADS),
        num_queries=_rows(given, path, _QUERIES),
    )


def without_unused(given: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The tensors that mean something to the network.

    Left out are Swin's indices of relative positions, which follow from the window, and the norms
    of maps that nobody reads: the official ConvNeXt has one for each of its four.
    """
    kept = {}
    for name, tensor in given.items():
        norm = _OUTPUT_NORM.fullmatch(name)
        unread = norm is not None and int(norm[1]) not in config.backbone_out_indices
        if not (unread or _RECOMPUTED.fullmatch(name)):
            kept[name] = tensor
    return kept


def _backbone(given: Mapping[str, Tensor], path: Path) -> tuple[ModelConfig, str]:
    """The published model of its kind, and its name."""
    if _BODY + _RESNET_STEM in given:
        depths = _depths(given, r"body\.layer([1-4])\.(\d+)\..+")
        names = [name for name, blocks in RESNET_BLOCKS.items() if blocks == depths]
        variant, found = "dino-r50-4scale", f"a ResNet of {depths} blocks"
    elif _BODY + _SWIN_STEM in given:
        swin = _swin_size(given, path)
        names = [name for name, size in SWIN_SIZES.items() if size == swin]
        variant, found = "dino-swinl-4scale", f"a {swin}"
    elif _BODY + _CONVNEXT_STEM in given:
        width = _rows(given, path, _BODY + _CONVNEXT_STEM)
        convnext = ConvNextSize(width, _depths(given, r"stages\.([0-3])\.(\d+)\..+"))
        names = [name for name, size in CONVNEXT_SIZES.items() if size == convnext]
        variant, found = "dino-convnextl-4scale", f"a {convnext}"
    else:
        names, variant, found = [], "", "no ResNet, Swin or ConvNeXt"
    if not names:
        raise CheckpointError(
            f"{path}: the backbone is {found}, which is not supported",
            f"supported: {', '.join(BACKBONE_LETTERS)}",
        )
    return VARIANTS[variant].model, names[0]


def _swin_size(given: Mapping[str, Tensor], path: Path) -> SwinSize:
    """Swin's size; the bias tables tell window and heads."""
    depths = _depths(given, r"layers\.([0-3])\.blocks\.(\d+)\..+")
    tables = []
    for stage in range(len(depths)):
        name = f"{_BODY}layers.{stage}.blocks.0.attn.relative_position_bias_table"
        rows = _rows(given, path, name)
        if given[name].dim() != 2:
            raise CheckpointError(f"{path}: {name} has {given[name].dim()} dimensions, expected 2")
        tables.append((rows, given[name].shape[1]))
    window = (isqrt(tables[0][0]) + 1) // 2 if tables else 0
    width = _rows(given, path, _BODY + _SWIN_STEM)
    return SwinSize(width, depths, tuple(heads for _, heads in tables), window)


def _depths(given: Mapping[str, Tensor], pattern: str) -> tuple[int, ...]:
    """Number of blocks of each stage, whose numbers the pattern's two groups are."""
    blocks: dict[str, set[str]] = {}
    compiled = re.compile(re.escape(_BODY) + pattern)
    for name in given:
        if match := compiled.fullmatch(name):
            blocks.setdefault(match[1], set()).add(match[2])
    return tuple(len(blocks[stage]) for stage in sorted(blocks))


def _projections(given: Mapping[str, Tensor]) -> list[Tensor]:
    """The weights of the neck's convolutions."""
    return [t for n, t in given.items() if re.fullmatch(r"input_proj\.\d+\.0\.weight", n)]


def _rows(given: Mapping[str, Tensor], path: Path, *names: str) -> int:
    """The length of the first of the named tensors that is there."""
    name = next((n for n in names if n in given), None)
    if name is None or given[name].dim() == 0:
        raise CheckpointError(f"{path}: {'lacks' if name is None else 'one number in'} {names[0]}")
    return len(given[name])
