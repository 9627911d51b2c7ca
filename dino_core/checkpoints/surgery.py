"""Transfer of weights to a model with other classes: the heads' rows follow the class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dino_core.checkpoints.class_names import near_names
from dino_core.detections import ClassMap
from dino_core.errors import CheckpointError


@dataclass(frozen=True)
class TransferReport:
    """What a model took over from other weights.

    Attributes:
        copied: Tensors that were copied; of the queries' contents as many rows as the model has.
        by_class: Tensors of which the rows of `classes` were copied.
        classes: The model's class names whose rows were copied.
        new_classes: The model's class names whose rows keep their initialization.
        aliases: For names in `classes` that were given an alias: the source's name.
        near: For names in `new_classes` that the source may know by another name: that name.
        kept: Tensors that keep their initialization (not in the source, or of another shape).
    """

    copied: tuple[str, ...]
    by_class: tuple[str, ...]
    classes: tuple[str, ...]
    new_classes: tuple[str, ...]
    aliases: Mapping[str, str]
    near: Mapping[str, str]
    kept: tuple[str, ...]


_Fate = Literal["copied", "by_class", "kept"]
"""What became of a tensor of the model; the fields of `TransferReport` that list names."""


def has_class_rows(name: str) -> bool:
    """Whether dimension 0 of the tensor of this name counts classes."""
    return "class_embed." in name or name.startswith("label_enc.")


@torch.no_grad()
def transfer(
    model: nn.Module,
    source: Mapping[str, Tensor],
    old: ClassMap,
    new: ClassMap,
    aliases: Mapping[str, str] | None = None,
) -> TransferReport:
    """Copy into `model` every tensor of `source` that fits, and class rows by name.

    Rows of classes that the source does not know keep their initialization (the paper's: the bias
    of the heads is that of a score of 0.01).

    Args:
        model: Changed in place; its classes are `new`.
        source: Parameter name to tensor, of a model whose classes are `old`.
        old: The source's classes.
        new: The model's classes.
        aliases: New class name to the old one whose rows it takes.

    Raises:
        CheckpointError: No tensor fits, so the weights are of another kind of model.
    """
    aliases = aliases or {}
    same_classes = old.names == new.names and not aliases
    # Unnamed rows are unused columns of the official heads, which nothing may be copied from.
    row_of = {name: row for row, name in enumerate(old.names) if name}
    wanted = [aliases.get(name, name) for name in new.names]
    pairs = [(row_of[name], row) for row, name in enumerate(wanted) if name in row_of]
    names: dict[_Fate, list[str]] = {"copied": [], "by_class": [], "kept": []}
    for name, tensor in model.state_dict().items():  # these share memory with the parameters
        names[_copy(name, source.get(name), tensor, pairs, same_classes)].append(name)
    if not names["copied"]:
        raise CheckpointError("none of the starting weights fits this model", "--weights none")
    known = tuple(new.names[row] for _, row in pairs)
    return TransferReport(
        copied=tuple(names["copied"]),
        by_class=tuple(names["by_class"]),
        classes=known,
        new_classes=tuple(name for name in new.names if name and name not in known),
        aliases={name: aliases[name] for name in known if name in aliases},
        near=near_names([name for name in new.names if name not in aliases], old.names),
        kept=tuple(names["kept"]),
    )


def _copy(
    name: str,
    given: Tensor | None,
    tensor: Tensor,
    pairs: Sequence[tuple[int, int]],
    same_classes: bool,
) -> _Fate:
    """Copy what fits of `given` into the model's `tensor`.

    Args:
        name: Name of the tensor.
        given: The source's tensor of that name; None if it has none.
        tensor: Changed in place.
        pairs: (row of the source, row of the model) of each class that both have.
        same_classes: The classes are the same in the same order, so that no row moves.
    """
    if given is None or given.shape[1:] != tensor.shape[1:] or given.dim() != tensor.dim():
        return "kept"
    if has_class_rows(name) and not (same_classes and given.shape == tensor.shape):
        for before, after in pairs:
            if before < len(given):  # a foreign file may have fewer label rows than classes
                tensor[after].copy_(given[before])
        return "by_class"
    if given.shape == tensor.shape:
        tensor.copy_(given)
        return "copied"
    if name == "tgt_embed.weight" and len(given):
        # The contents of the queries are interchangeable, so additional queries repeat them.
        tensor.copy_(given[torch.arange(len(tensor)) % len(given)])
        return "copied"
    return "kept"
