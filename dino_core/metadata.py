"""The description that every model file carries, as JSON inside the file; read without torch."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dino_core.config import ModelConfig, PreprocessConfig, from_dict, to_dict
from dino_core.detections import ClassMap
from dino_core.errors import CheckpointError, DinoError

METADATA_KEY = "dino"
"""The key of the JSON in the string metadata of a safetensors or ONNX file."""

FORMAT_VERSION = 1
"""To be increased when readers of the previous version would misunderstand the file."""


def library_version() -> str:
    """The installed version of this package, or "0+unknown" when run from a bare source tree."""
    try:
        return importlib.metadata.version("dino-detector")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


@dataclass(frozen=True)
class CheckpointMeta:
    """Everything besides the weights that prediction, evaluation, export or fine-tuning needs.

    Attributes:
        variant: Name of the model, e.g. "dino-nano".
        model: The network.
        preprocess: How an image becomes its input.
        classes: Index, name and source id of each output column.
        training: Summary of the run: steps, epochs, data, recipe.
        metrics: Validation metrics of these weights, as fractions.
        provenance: Where the weights came from (file, layout, sha256), and license notes.
        version: The version of this library that wrote the file.
    """

    variant: str
    model: ModelConfig
    preprocess: PreprocessConfig
    classes: ClassMap
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    version: str = field(default_factory=library_version)

    def __post_init__(self) -> None:
        if len(self.classes) != self.model.num_classes:
            raise CheckpointError(
                f"{self.variant}: {len(self.classes)} class names for a model with "
                f"{self.model.num_classes} classes"
            )


def to_json(meta: CheckpointMeta) -> str:
    """`meta` as one line of JSON."""
    return json.dumps(
        {
            "format": FORMAT_VERSION,
            "variant": meta.variant,
            "model": to_dict(meta.model),
            "preprocess": to_dict(meta.preprocess),
            "classes": meta.classes.to_dict(),
            "training": dict(meta.training),
            "metrics": dict(meta.metrics),
            "provenance": dict(meta.provenance),
            "version": meta.version,
        },
        ensure_ascii=False,
    )


def from_json(text: str, where: str = "checkpoint") -> CheckpointMeta:
    """Parse what `to_json` wrote.

    Args:
        text: The JSON.
        where: The file's name, for errors.

    Raises:
        CheckpointError: The text is not JSON, a part is missing or malformed, or the format is
            newer than this version of the library.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: its metadata is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{where}: its metadata is not a JSON object")
    written = data.get("format")
    if not isinstance(written, int):
        raise CheckpointError(f"{where}: its metadata names no format version")
    if written > FORMAT_VERSION:
        raise CheckpointError(
            f"{where}: format {written} (written by version {data.get('version', '?')}), this "
            f"version reads up to {FORMAT_VERSION}",
            "upgrade dino-detector",
        )
    try:
        return CheckpointMeta(
            variant=str(data["variant"]),
            model=from_dict(ModelConfig, data["model"], where),
            preprocess=from_dict(PreprocessConfig, data["preprocess"], where),
            classes=ClassMap.from_dict(data["classes"]),
            training=dict(data.get("training", {})),
            metrics=dict(data.get("metrics", {})),
            provenance=dict(data.get("provenance", {})),
            version=str(data.get("version", "?")),
        )
    except KeyError as error:
        raise CheckpointError(f"{where}: its metadata lacks {error}") from error
    except CheckpointError:
        raise
    except (DinoError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: its metadata does not fit this version: {error}"
        ) from error
