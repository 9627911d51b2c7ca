"""Values in error messages, and ranges of settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dino_core.config import ModelConfig, PreprocessConfig, TrainConfig, from_dict
from dino_core.errors import ConfigError
from dino_core.limits import shown
from dino_core.toml import apply_overrides, load_toml


def repeated(levels: int) -> list[object]:
    """What a YAML file of `levels` lines can describe: 9 to the power of `levels` items."""
    value: list[object] = ["x"]
    for _ in range(levels):
        value = [value] * 9
    return value


def nested(levels: int) -> list[object]:
    value: list[object] = []
    for _ in range(levels):
        value = [value]
    return value


def within_itself() -> list[object]:
    """What a YAML file with an anchor inside of its own node describes."""
    value: list[object] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("cat", "'cat'"),
        (1.5, "1.5"),
        ([1, "a", None], "[1, 'a', None]"),
        ({"a": [1]}, "{'a': [1]}"),
        (b"\x00", r"b'\x00'"),
        (12345678901234567890, "12345678901234567890"),
        (10**5000, "a number of more than 60 digits"),
        ("\x1b[2J\ud800", r"'\x1b[2J\ud800'"),
        (nested(5000), "[[[...]]]"),
        (within_itself(), "[[[...]]]"),
        (object(), "a value of type object"),
    ],
    ids=range(11),
)
def test_shown(value: object, text: str) -> None:
    assert shown(value) == text


def test_shown_is_short() -> None:
    # `repr` of the first one would take years.
    for value in (repeated(30), "x" * 10**8, list(range(10**6)), dict.fromkeys(range(10**5))):
        assert len(shown(value)) < 100


HOSTILE = [10**5000, repeated(30), "x" * 10**6, nested(5000), 10**400]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_errors_of_settings_are_one_short_line(value: object) -> None:
    for setting in ("num_heads", "position_temperature", "variant", "backbone_out_indices"):
        if isinstance(value, str) and setting == "variant":
            continue
        with pytest.raises(ConfigError) as error:
            from_dict(ModelConfig, {setting: value})
        assert len(error.value.message) < 200 and "\n" not in error.value.message


@pytest.mark.parametrize(
    ("cls", "setting", "value"),
    [
        (ModelConfig, "num_heads", 0),
        (ModelConfig, "hidden_dim", -256),
        (ModelConfig, "position_temperature", float("nan")),
        (ModelConfig, "backbone_out_indices", [400]),
        (PreprocessConfig, "short_side", 0),
        (PreprocessConfig, "max_side", 60_000),
        (PreprocessConfig, "canvas", [0, 0]),
        (PreprocessConfig, "std", [0, 0, 0]),
        (PreprocessConfig, "mean", [float("inf"), 0, 0]),
    ],
)
def test_values_outside_their_range(cls: type, setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is .* it must be from"):
        from_dict(cls, {setting: value})


def test_settings_files_that_no_parser_survives(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    for text, words in (
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "9" * 5000, "too long"),
        ("a = '", "not valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            load_toml(path)
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_toml(tmp_path / "pipe.toml")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5000, "0x" + "f" * 5000, "inf", "nan"], ids=range(5)
)
def test_assignments_that_no_parser_survives(text: str) -> None:
    tables = apply_overrides({}, [f"train.lr={text}"])
    with pytest.raises(ConfigError) as error:
        from_dict(TrainConfig, tables["train"])
    assert len(error.value.message) < 200
