"""Where the weights of a model file came from, as values; JSON objects in the file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Provenance:
    """Origin of the weights of one model file. What does not apply is empty.

    Attributes:
        start: What training started from, as it was given: a name, a file, or "none".
        run: Name of the run folder.
        history: The model files from which these weights descend, oldest first.
        layout: Project whose layout an imported file had, e.g. "official".
        file: Name of an imported file.
        sha256: Checksum of an imported file.
        weights: Which weights of an imported file were taken, e.g. "model".
        notes: What the importer assumed about an imported file, one sentence each.
        name: Name of a published model.
        url: Address from which a published model was downloaded.
        other: Entries that this version does not know, or that other programs wrote.
    """

    start: str = ""
    run: str = ""
    history: tuple[Ancestor, ...] = ()
    layout: str = ""
    file: str = ""
    sha256: str = ""
    weights: str = ""
    notes: tuple[str, ...] = ()
    name: str = ""
    url: str = ""
    other: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without what is empty."""
        values: dict[str, Any] = {
            each.name: getattr(self, each.name) for each in fields(self) if each.name != "other"
        }
        values["history"] = [ancestor.to_dict() for ancestor in self.history]
        values["notes"] = list(self.notes)
        return {**{name: value for name, value in values.items() if value}, **self.other}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """The inverse of `to_dict`. An entry of another type than expected is kept in `other`."""
        known: dict[str, Any] = {}
        other: dict[str, Any] = {}
        for name, value in values.items():
            if name == "history" and isinstance(value, list):
                known[name] = tuple(Ancestor.from_dict(v) for v in value if isinstance(v, dict))
            elif name == "notes" and isinstance(value, list):
                known[name] = tuple(map(str, value))
            elif name in _TEXTS and isinstance(value, str):
                known[name] = value
            else:
                other[name] = value
        return cls(**known, other=other)


@dataclass(frozen=True)
class Ancestor:
    """A model file from which weights descend.

    Attributes:
        file: Its name.
        sha256: Its checksum.
        variant: The model's variant.
        provenance: Its own origin, without its history, which is the rest of the list.
        training: The run that trained it: data, images, steps, epochs.
    """

    file: str
    sha256: str
    variant: str
    provenance: Provenance = field(default_factory=Provenance)
    training: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without what is empty."""
        head = {"file": self.file, "sha256": self.sha256, "variant": self.variant}
        more = {"provenance": self.provenance.to_dict(), "training": dict(self.training)}
        return {**head, **{name: value for name, value in more.items() if value}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ancestor:
        """The inverse of `to_dict`; version 0.1.0 wrote an importer's entries beside the others."""
        rest = {n: v for n, v in values.items() if n not in _HEAD}
        own, training = values.get("provenance"), values.get("training")
        return cls(
            file=str(values.get("file", "")),
            sha256=str(values.get("sha256", "")),
            variant=str(values.get("variant", "")),
            provenance=Provenance.from_dict(own if isinstance(own, dict) else rest),
            training=training if isinstance(training, dict) else {},
        )


_HEAD = {"file", "sha256", "variant", "provenance", "training"}
_TEXTS = {each.name for each in fields(Provenance)} - {"history", "notes", "other"}
