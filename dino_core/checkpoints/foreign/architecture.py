"""Which network tensors with official names belong to, found by their names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path

from torch import Tensor

from dino_core.config import ModelConfig
from dino_core.errors import CheckpointError
from dino_core.models.backbones.convnext import CONVNEXT_SIZES, ConvNextSize
from dino_core.models.backbones.resnet import RESNET_BLOCKS
from dino_core.models.backbones.swin import SWIN_SIZES, SwinSize
from dino_core.variants import VARIANTS

_LEVELS = "transformer.level_embed"
_QUERIES = "transformer.tgt_embed.weight"
_HEADS = ("class_embed.0.weight", "transformer.decoder.class_embed.0.weight")
_BODY = "backbone.0."
_SWIN_STEM = _BODY + "patch_embed.proj.weight"
_CONVNEXT_STEM = _BODY + "downsample_layers.0.0.weight"
_STAGES = 4  # of every backbone; a ResNet's stem counts as one more map

_RECOMPUTED = re.compile(r"backbone\.0\..+\.attn\.relative_position_index")
_OUTPUT_NORM = re.compile(r"backbone\.0\.norm(\d)\..+")

Tensors = Mapping[str, Tensor]
"""Tensors by official names."""


@dataclass(frozen=True)
class _Family:
    """A backbone family that published checkpoints have.

    Attributes:
        variant: A published model of this family, whose other settings hold for all of them.
        letters: timm's name of each network to its part of a variant's name.
        find: Tensors and file to timm's name (None if it is none of these) and a description.
    """

    variant: str
    letters: Mapping[str, str]
    find: Callable[[Tensors, Path], tuple[str | None, str]]


def network_of(given: Tensors, path: Path) -> ModelConfig:
    """The network that these tensors belong to. What their shapes leave open is as published.

    Args:
        given: By official names.
        path: For errors.

    Raises:
        CheckpointError: A tensor that decides is missing, the tensors contradict each other, or the
            backbone is unknown.
    """
    family, backbone = _backbone(given, path)
    base = VARIANTS[family.variant].model
    levels, projections = _rows(given, path, _LEVELS), _projections(given)
    # A 1x1 convolution reads a map of the backbone, a 3x3 one adds a level (ALGORITHM 2).
    maps = sum(weight.shape[2:] == (1, 1) for weight in projections)
    if len(projections) != levels or not 1 <= maps <= _STAGES:
        raise CheckpointError(
            f"{path}: {levels} scales in {_LEVELS}, but input_proj has {len(projections)} "
            f"({maps} of them read a map of the backbone)"
        )
    last = max(base.backbone_out_indices)
    return replace(
        base,
        variant=f"dino-{family.letters[backbone]}-{levels}scale",
        backbone=backbone,
        backbone_out_indices=tuple(range(last + 1 - maps, last + 1)),
        num_levels=levels,
        num_classes=_rows(given, path, *_HEADS),
        num_queries=_rows(given, path, _QUERIES),
    )


def without_unused(given: Tensors, config: ModelConfig) -> dict[str, Tensor]:
    """The tensors that mean something to the network.

    Left out are Swin's indices of relative positions, which follow from the window, and the norms
    of maps that nothing reads: the official ConvNeXt has one for each of its four.
    """
    kept = {}
    for name, tensor in given.items():
        norm = _OUTPUT_NORM.fullmatch(name)
        unread = norm is not None and int(norm[1]) not in config.backbone_out_indices
        if not (unread or _RECOMPUTED.fullmatch(name)):
            kept[name] = tensor
    return kept


def _backbone(given: Tensors, path: Path) -> tuple[_Family, str]:
    """The family, and timm's name of the network."""
    found = "no ResNet, Swin or ConvNeXt"
    for stem, family in _FAMILIES.items():
        if stem in given:
            name, found = family.find(given, path)
            if name is not None:
                return family, name
            break
    names = [name for family in _FAMILIES.values() for name in family.letters]
    raise CheckpointError(
        f"{path}: the backbone is {found}, which is not supported",
        f"supported: {', '.join(names)}",
    )


def _find_resnet(given: Tensors, path: Path) -> tuple[str | None, str]:
    depths = _depths(given, r"body\.layer([1-4])\.(\d+)\..+")
    names = (name for name, blocks in RESNET_BLOCKS.items() if blocks == depths)
    return next(names, None), f"a ResNet of {depths} blocks"


def _find_swin(given: Tensors, path: Path) -> tuple[str | None, str]:
    """The bias tables (offsets of a window, heads) reveal the window and the heads."""
    depths = _depths(given, r"layers\.([0-3])\.blocks\.(\d+)\..+")
    tables = []
    for stage in range(len(depths)):
        name = f"{_BODY}layers.{stage}.blocks.0.attn.relative_position_bias_table"
        rows = _rows(given, path, name)
        if given[name].dim() != 2:
            raise CheckpointError(f"{path}: {name} has {given[name].dim()} dimensions, expected 2")
        tables.append((rows, given[name].shape[1]))
    window = (isqrt(tables[0][0]) + 1) // 2 if tables else 0  # rows are (2 * window - 1)^2
    heads = tuple(count for _, count in tables)
    size = SwinSize(_rows(given, path, _SWIN_STEM), depths, heads, window)
    return next((name for name, own in SWIN_SIZES.items() if own == size), None), f"a {size}"


def _find_convnext(given: Tensors, path: Path) -> tuple[str | None, str]:
    width = _rows(given, path, _CONVNEXT_STEM)
    size = ConvNextSize(width, _depths(given, r"stages\.([0-3])\.(\d+)\..+"))
    return next((name for name, own in CONVNEXT_SIZES.items() if own == size), None), f"a {size}"


_FAMILIES: dict[str, _Family] = {
    f"{_BODY}body.conv1.weight": _Family(
        "dino-r50-4scale", {"resnet50": "r50", "resnet101": "r101"}, _find_resnet
    ),
    _SWIN_STEM: _Family(
        "dino-swinl-4scale",
        {
            "swin_tiny_patch4_window7_224": "swint",
            "swin_small_patch4_window7_224": "swins",
            "swin_base_patch4_window7_224": "swinb224",
            "swin_base_patch4_window12_384": "swinb",
            "swin_large_patch4_window7_224": "swinl224",
            "swin_large_patch4_window12_384": "swinl",
        },
        _find_swin,
    ),
    _CONVNEXT_STEM: _Family(
        "dino-convnextl-4scale",
        {
            "convnext_tiny": "convnextt",
            "convnext_small": "convnexts",
            "convnext_base": "convnextb",
            "convnext_large": "convnextl",
            "convnext_xlarge": "convnextxl",
        },
        _find_convnext,
    ),
}
"""Families by the tensor, among the official names, that only they have."""


def _depths(given: Tensors, pattern: str) -> tuple[int, ...]:
    """Number of blocks of each stage. The pattern's groups are the stage's and block's numbers."""
    blocks: dict[str, set[str]] = {}
    compiled = re.compile(re.escape(_BODY) + pattern)
    for name in given:
        if match := compiled.fullmatch(name):
            blocks.setdefault(match[1], set()).add(match[2])
    return tuple(len(blocks[stage]) for stage in sorted(blocks))


def _projections(given: Tensors) -> list[Tensor]:
    """The weights of the neck's convolutions."""
    return [t for n, t in given.items() if re.fullmatch(r"input_proj\.\d+\.0\.weight", n)]


def _rows(given: Tensors, path: Path, *names: str) -> int:
    """The length of the first of the named tensors that is there."""
    name = next((n for n in names if n in given), None)
    if name is None or given[name].dim() == 0:
        raise CheckpointError(f"{path}: {'lacks' if name is None else 'one number in'} {names[0]}")
    return len(given[name])
