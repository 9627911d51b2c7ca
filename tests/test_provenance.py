"""Provenance as JSON: what is written reads back equal, and what version 0.1.0 wrote is read."""

from __future__ import annotations

import json
from typing import Any

from dino_core.provenance import Ancestor, Provenance


def test_round_trip_without_what_is_empty() -> None:
    imported = Provenance(layout="detrex", file="a.pth", sha256="ab", weights="ema", notes=("n",))
    parent = Ancestor("a.safetensors", "cd", "dino-nano", imported, {"steps": 3})
    child = Provenance(
        start="a.safetensors", run="train", history=(parent,), other={"average": [1]}
    )
    values = json.loads(json.dumps(child.to_dict()))
    assert Provenance.from_dict(values) == child
    assert values["history"][0] == {
        "file": "a.safetensors", "sha256": "cd", "variant": "dino-nano",
        "provenance": {"layout": "detrex", "file": "a.pth", "sha256": "ab", "weights": "ema",
                       "notes": ["n"]},
        "training": {"steps": 3},
    }  # fmt: skip
    assert Provenance().to_dict() == {}


def test_an_importers_entries_of_version_010_stand_beside_the_others() -> None:
    entry = {"file": "a.pth", "sha256": "ab", "variant": "v", "layout": "official", "notes": ["n"]}
    (parent,) = Provenance.from_dict({"history": [entry]}).history
    assert (parent.file, parent.provenance) == (
        "a.pth",
        Provenance(layout="official", notes=("n",)),
    )


def test_values_of_other_types_are_kept_and_not_trusted() -> None:
    values: dict[str, Any] = {"start": 3, "history": "none", "notes": {"a": 1}, "licence": "MIT"}
    read = Provenance.from_dict(values)
    assert read == Provenance(other=values)
    assert read.to_dict() == values
