"""Values in error messages, and ranges of settings."""

from __future__ import annotations

import pytest

from dino_core.config import ModelConfig, PreprocessConfig, from_dict
from dino_core.errors import ConfigError
from dino_core.limits import shown


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("cat", "'cat'"),
        (1.5, "1.5"),
        ([1, "a", None], "[1, 'a', None]"),
        ({"a": [1]}, "{'a': [1]}"),
        (10**5000, "a number of more than 60 digits"),
        ("\x1b[2J\ud800", r"'\x1b[2J\ud800'"),
        (nested(5000), "[[[...]]]"),
        (object(), "a value of type object"),
    ],
    ids=range(8),
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
