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
from dino_core.limits import shown

METADATA_KEY = "dino"
"""The key of the JSON in the string metadata of a safetensors or ONNX file."""

FORMAT_VERSION = 1
"""To be increased when readers of the previous version would misunderstand the file."""

_MAX_ID = (1 << 53) - 1  # of a class; every reader of JSON has the integers up to this one


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
    data = _parsed(text, where)
    written = data.get("format")
    if type(written) is not int or written < 1:
        raise CheckpointError(f"{where}: its metadata names no format version")
    if written > FORMAT_VERSION:
        raise CheckpointError(
            f"{where}: format {shown(written)} (written by version "
            f"{shown(data.get('version', '?'))}), this version reads up to {FORMAT_VERSION}",
            "upgrade dino-detector",
        )
    try:
        return CheckpointMeta(
            variant=_text(data["variant"], "variant"),
            model=from_dict(ModelConfig, data["model"], "model"),
            preprocess=from_dict(PreprocessConfig, data["preprocess"], "preprocess"),
            classes=_classes(data["classes"]),
            training=_table(data, "training"),
            metrics=_table(data, "metrics"),
            provenance=_table(data, "provenance"),
            version=_text(data.get("version", "?"), "version"),
        )
    except KeyError as error:
        raise CheckpointError(f"{where}: its metadata lacks {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error.message}", error.hint) from error
    except DinoError as error:
        raise CheckpointError(
            f"{where}: its metadata does not fit this version: {error.message}",
            "the file is damaged or was not written by dino; get it again",
        ) from error


def _parsed(text: str, where: str) -> dict[str, Any]:
    """The JSON object in `text`. Every string in it can be written and printed as UTF-8."""
    try:
        data = json.loads(text)
        json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair cannot be encoded
    except RecursionError as error:
        raise CheckpointError(f"{where}: its metadata is not JSON: nested too deeply") from error
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"{where}: its metadata has {shown(error.object[error.start])}, which is no character"
        ) from error
    except ValueError as error:
        # Python's message about a number of thousands of digits is how to change its limit.
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "a number is too long"
        raise CheckpointError(f"{where}: its metadata is not JSON: {reason}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{where}: its metadata is not a JSON object")
    return data


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise CheckpointError(f"its metadata: {name} is {shown(value)}, expected a text")
    return value


def _table(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name, {})
    if not isinstance(value, dict):
        raise CheckpointError(f"its metadata: {name} is {shown(value)}, expected an object")
    return value


def _classes(value: Any) -> ClassMap:
    """The classes, whose ids must fit into the int64 arrays that predictions consist of."""
    if not isinstance(value, dict) or not all(
        isinstance(value.get(key), list) for key in ("names", "source_ids")
    ):
        raise CheckpointError("its metadata: classes must be lists of names and source_ids")
    for name in value["names"]:
        _text(name, "a class name")
    for number in value["source_ids"]:
        if type(number) is not int or not -_MAX_ID <= number <= _MAX_ID:
            raise CheckpointError(
                f"its metadata: a class id is {shown(number)}, expected an integer up to 2^53"
            )
    if not any(value["names"]):
        raise CheckpointError("its metadata: no class has a name")
    return ClassMap.from_dict(value)
