from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.config import (
    LossConfig,
    ModelConfig,
    PreprocessConfig,
    ResolvedConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from dino_core.errors import ConfigError
from dino_core.toml import apply_overrides, dump_toml, load_toml
from dino_core.variants import VARIANTS, find_variant


@pytest.mark.parametrize(
    "config",
    [ModelConfig(), PreprocessConfig(), TrainConfig(minutes=3), ResolvedConfig(steps=7)],
)
def test_round_trip_through_toml(config: object, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(dump_toml({"table": to_dict(config)}))
    assert from_dict(type(config), load_toml(path)["table"]) == config


@given(st.text(max_size=30))
def test_any_text_survives_toml(text: str) -> None:
    import tomllib

    dumped = dump_toml({"t": {"variant": text}})
    assert tomllib.loads(dumped)["t"]["variant"] == text


def test_toml_of_a_path_that_is_not_utf8() -> None:
    with pytest.raises(ConfigError, match=r"the setting .path = .data/caf.*is not UTF-8"):
        dump_toml({"train": {"seed": 1}, "data": {"path": os.fsdecode(b"data/caf\xe9")}})


def test_a_resolved_recipe_leaves_nothing_to_choose() -> None:
    open_fields = {n for n, v in to_dict(TrainConfig()).items() if v is None}
    still_open = {n for n, v in to_dict(ResolvedConfig()).items() if v is None}
    # The plan decides length and input size. None is a valid choice for patience, and for jitter
    # and loggers it means the default of `augment` and of the machine.
    lengths = {"epochs", "steps", "minutes"}
    assert still_open == lengths | {"image_size", "patience", "scale_jitter", "loggers"}
    assert still_open < open_fields


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"a.toml: unknown setting 'bach'.*did you mean 'batch'"):
        from_dict(TrainConfig, {"bach": 3}, "a.toml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch": "8"}, "batch: expected int, found '8'"),
        ({"batch": True}, "batch: expected int, found True"),
        ({"batch": 8.5}, "batch: expected int"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"loss": {"cost_clas": 1.0}}, "loss: unknown setting 'cost_clas'"),
        ({"step_milestones": 3}, "expected a list"),
        ({"loss": 3}, "expected a table"),
    ],
)
def test_wrong_values(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(TrainConfig, values)


def test_fixed_length_tuple() -> None:
    with pytest.raises(ConfigError, match="mean: expected 3 values, found 2"):
        from_dict(PreprocessConfig, {"mean": [0.5, 0.5]})


def test_ints_pass_for_floats_and_tables_for_configs() -> None:
    config = from_dict(TrainConfig, {"lr": 1, "loss": {"cost_giou": 3}, "epochs": None})
    assert (config.lr, config.loss, config.epochs) == (1.0, LossConfig(cost_giou=3.0), None)


def test_overrides() -> None:
    tables = {"train": {"lr": 1.0, "loss": {"cost_giou": 2.0}}}
    changed = apply_overrides(
        tables, ["train.lr=0.5", "train.loss.cost_giou=3", "train.schedule=step", "model.x=[1, 2]"]
    )
    assert changed == {
        "train": {"lr": 0.5, "loss": {"cost_giou": 3}, "schedule": "step"},
        "model": {"x": [1, 2]},
    }
    assert tables["train"]["lr"] == 1.0


@pytest.mark.parametrize("text", ["train.lr", "=3", "train.lr.x=1"])
def test_wrong_overrides(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        apply_overrides({"train": {"lr": 1.0}}, [text])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"hidden_dim": 40, "num_heads": 5}, "groups of the neck"),
        ({"num_levels": 2}, "fewer than the 3 maps"),
    ],
)
def test_contradictions(values: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(ModelConfig, values)


def test_unreadable_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_toml(tmp_path / "bad.toml")


def test_variant_names() -> None:
    assert all(variant.model.variant == name for name, variant in VARIANTS.items())
    with pytest.raises(ConfigError, match="did you mean 'dino-nano'"):
        find_variant("dino-nan")


def test_repeats_of_the_encoder_are_at_least_one() -> None:
    with pytest.raises(ConfigError, match="encoder_repeats is 0"):
        LossConfig(encoder_repeats=0)
