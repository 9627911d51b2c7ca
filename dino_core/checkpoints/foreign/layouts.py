"""The code bases whose checkpoints can be read: their marks, names and differences.

All names are translated to the official ones first, and by `keymaps.official` to ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino_core.checkpoints.foreign.keymaps import detrex, mmdet, official
from dino_core.checkpoints.foreign.keymaps.rules import Rules, renamed
from dino_core.checkpoints.foreign_kinds import of_another_project, project_of_tensors
from dino_core.errors import CheckpointError
from dino_core.limits import readable

SHOWN = 8  # names in a message


@dataclass(frozen=True)
class Layout:
    """How one code base writes DINO.

    Attributes:
        name: Name of the code base.
        marks: Tensor names that only its files have.
        rules: Maps the number of backbone maps to the rules that give official names; None if its
            names are the official ones.
        position: Its usual temperature and offset of the position encoding.
        dropped: Pattern of the names of tensors that are not needed.
        model: Fields of ModelConfig in which it differs from the published variants.
        resnet_frozen_stages: `backbone_frozen_stages` of its ResNets.
        preprocess: Fields of PreprocessConfig in which it differs.
    """

    name: str
    marks: tuple[str, ...]
    rules: Callable[[int], Rules] | None
    position: tuple[float, float]
    dropped: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    resnet_frozen_stages: int = 2
    preprocess: Mapping[str, Any] = field(default_factory=dict)


OFFICIAL = Layout("official", official.MARKS, None, (20.0, 0.0))
DETREX = Layout(
    "detrex",
    detrex.MARKS,
    detrex.rules,
    detrex.POSITION,
    model={"tied_heads": False},
    resnet_frozen_stages=1,
    preprocess={"rounding": "nearest"},
)
MMDET = Layout(
    "mmdet",
    mmdet.MARKS,
    mmdet.rules,
    mmdet.POSITION,
    dropped=mmdet.DROPPED,
    model={"tied_heads": False, "neck_bias": False, "box_eps": mmdet.BOX_EPS},
    preprocess={"rounding": "nearest", "interpolation": "plain"},
)
LAYOUTS = (MMDET, DETREX, OFFICIAL)


def recognize(tensors: Mapping[str, Tensor], path: Path) -> Layout:
    """The layout of these names. Raises CheckpointError if they are of none."""
    for layout in LAYOUTS:
        if all(mark in tensors for mark in layout.marks):
            return layout
    project = project_of_tensors(tensors)
    if project is not None:
        raise of_another_project(path, project)
    raise CheckpointError(
        f"{path}: not a checkpoint of DINO as the official code, detrex or mmdet write it "
        f"(it has {some(sorted(tensors))})"
    )


def official_state(tensors: Mapping[str, Tensor], layout: Layout, path: Path) -> dict[str, Tensor]:
    """The tensors by official names, with values in the order of the official code.

    Raises: CheckpointError if no rule knows a tensor, or one tensor has two values.
    """
    if layout.rules is None:
        return dict(tensors)
    maps = len({m[1] for n in tensors if (m := re.match(r"neck\.convs\.(\d+)\.", n))})
    rules = layout.rules(maps)
    kept = {n: t for n, t in tensors.items() if not re.fullmatch(layout.dropped, n)}
    state = rename_all(kept, lambda name: renamed(name, rules), path)
    if layout is MMDET:
        for name, tensor in state.items():
            if re.fullmatch(mmdet.MERGES, name):
                state[name] = pixels_apart(tensor)
    return state


def rename_all(
    given: Mapping[str, Tensor], new_name: Callable[[str], str | None], path: Path
) -> dict[str, Tensor]:
    """The tensors by new names; if two old names mean the same tensor, their values must agree.

    Raises: CheckpointError if a tensor has no new name, or one tensor has two values.
    """
    state: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    unknown = []
    for theirs, tensor in given.items():
        name = new_name(theirs)
        if name is None:
            unknown.append(theirs)
        elif name not in state:
            state[name], source[name] = tensor, theirs
        elif not torch.equal(state[name], tensor):
            raise CheckpointError(
                f"{path}: '{theirs}' differs from '{source[name]}', which is another name of it"
            )
    if unknown:
        raise CheckpointError(f"{path}: {len(unknown)} unknown tensors: {some(unknown)}")
    return state


def pixels_apart(tensor: Tensor) -> Tensor:
    """A tensor (..., 4 C) of one of mmdet's Swin merges in the official order of channels.

    A tensor of another width is returned unchanged. Its shape fits no model, which is reported
    later.
    """
    if tensor.dim() == 0 or tensor.shape[-1] % 4:
        return tensor
    side_by_side = tensor.reshape(*tensor.shape[:-1], -1, 4)  # (..., C, 4)
    apart = [side_by_side[..., pixel] for pixel in mmdet.MERGE_ORDER]
    return torch.cat(apart, dim=-1)


def some(names: list[str]) -> str:
    """The first of the names, and the number of the others."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(readable, names[:SHOWN])) + rest
