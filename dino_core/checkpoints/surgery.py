"""Carrying weights over to a model with other classes: rows of the heads follow the class names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino_core.checkpoints.class_names import near_names
from dino_core.detections import ClassMap
from dino_core.errors import CheckpointError


@dataclass(frozen=True)
class TransferReport:
    """What a model took over from other weights.

    Attributes:
        copied: Tensors taken over whole; of the queries' contents as many rows as the model has.
        by_class: Tensors of which the rows of `classes` were taken over.
        classes: Names of the model whose rows were taken over.
        new_classes: Names of the model whose rows start anew.
        aliases: Of `classes`, those whose rows are those of another name, which was asked for.
        near: Of `new_classes`, those that the source may know by another name.
        kept: Tensors that kept their initialisation (not in the source, or of another shape).
        unused: Tensors of the source that found no place.
    """

    copied: tuple[str, ...]
    by_class: tuple[str, ...]
    classes: tuple[str, ...]
    new_classes: tuple[str, ...]
    aliases: Mapping[str, str]
    near: Mapping[str, str]
    kept: tuple[str, ...]
    unused: tuple[str, ...]


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
    """Copy into `model` every tensor of `source` that fits; class rows by name.

    Rows of classes that the source does not know keep their initialisation (the paper's: the
    heads' bias is that of a score of 0.01).

    Args:
        model: Changed in place; its classes are `new`.
        source: Parameter name to tensor, of a model whose classes are `old`.
        old: The source's classes.
        new: The model's classes.
        aliases: New name to the old one whose rows it takes.

    Raises:
        CheckpointError: nothing fits, so the weights are of another kind of model.
    """
    aliases = aliases or {}
    same_classes = old.names == new.names and not aliases
    rows = {name: i for i, name in enumerate(old.names) if name}
    wanted = [aliases.get(name, name) for name in new.names]
    pairs = [(rows[name], after) for after, name in enumerate(wanted) if name in rows]
    copied, by_class, kept = [], [], []
    own = model.state_dict()
    for name, tensor in own.items():
        given = source.get(name)
        if given is None or given.shape[1:] != tensor.shape[1:] or given.dim() != tensor.dim():
            kept.append(name)
        elif has_class_rows(name) and not (same_classes and given.shape == tensor.shape):
            for before, after in pairs:
                if before < len(given):
                    tensor[after].copy_(given[before])
            by_class.append(name)
        elif given.shape == tensor.shape:
            tensor.copy_(given)
            copied.append(name)
        elif name == "tgt_embed.weight" and len(given):  # more queries start as those there are
            tensor.copy_(given[torch.arange(len(tensor)) % len(given)])
            copied.append(name)
        else:
            kept.append(name)
    if not copied:
        raise CheckpointError("none of the starting weights fits this model", "--weights none")
    known = tuple(new.names[after] for _, after in pairs)
    return TransferReport(
        tuple(copied),
        tuple(by_class),
        classes=known,
        new_classes=tuple(name for name in new.names if name and name not in known),
        aliases={name: aliases[name] for name in known if name in aliases},
        near=near_names([n for n in new.names if n not in aliases], old.names),
        kept=tuple(kept),
        unused=tuple(name for name in source if name not in own),
    )
