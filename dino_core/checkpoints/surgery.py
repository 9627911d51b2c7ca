"""Carrying weights over to a model with other classes: rows of the heads follow the class names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino_core.detections import ClassMap
from dino_core.errors import CheckpointError


@dataclass(frozen=True)
class TransferReport:
    """What a model took over from other weights.

    Attributes:
        copied: Tensors taken over whole.
        by_class: Tensors of which the rows of `classes` were taken over.
        classes: Names that both class lists have.
        kept: Tensors that kept their initialisation (not in the source, or of another shape).
        unused: Tensors of the source that found no place.
    """

    copied: tuple[str, ...]
    by_class: tuple[str, ...]
    classes: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]


def has_class_rows(name: str) -> bool:
    """Whether dimension 0 of the tensor of this name counts classes."""
    return "class_embed." in name or name.startswith("label_enc.")


@torch.no_grad()
def transfer(
    model: nn.Module, source: Mapping[str, Tensor], old: ClassMap, new: ClassMap
) -> TransferReport:
    """Copy into `model` every tensor of `source` that fits; class rows by name.

    Rows of classes that the source does not know keep their initialisation.

    Args:
        model: Changed in place; its classes are `new`.
        source: Parameter name to tensor, of a model whose classes are `old`.
        old: The source's classes.
        new: The model's classes.

    Raises:
        CheckpointError: nothing fits, so the weights are of another kind of model.
    """
    same_classes = old.names == new.names
    rows_from = {name: i for i, name in enumerate(old.names) if name}
    pairs = [(rows_from[n], i) for i, n in enumerate(new.names) if n in rows_from]
    copied, by_class, kept = [], [], []
    own = model.state_dict()
    for name, tensor in own.items():
        given = source.get(name)
        if given is None or given.shape[1:] != tensor.shape[1:] or given.dim() != tensor.dim():
            kept.append(name)
        elif has_class_rows(name) and not same_classes:
            for before, after in pairs:
                tensor[after].copy_(given[before])
            by_class.append(name)
        elif given.shape == tensor.shape:
            tensor.copy_(given)
            copied.append(name)
        else:
            kept.append(name)
    if not copied:
        raise CheckpointError("none of the starting weights fits this model", "--weights none")
    return TransferReport(
        tuple(copied),
        tuple(by_class),
        tuple(new.names[after] for _, after in pairs),
        tuple(kept),
        tuple(name for name in source if name not in own),
    )
