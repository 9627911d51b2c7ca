"""The settings of a training run: defaults < `--config` file < explicit options < `--set`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_core.config import (
    ModelConfig,
    PreprocessConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from dino_core.errors import ConfigError
from dino_core.recipes import RecipeInfo
from dino_core.suggestions import nearest_or_all
from dino_core.toml import apply_overrides, load_toml
from dino_core.variants import VARIANTS

TABLES = {"train": TrainConfig, "model": ModelConfig, "preprocess": PreprocessConfig}
LENGTHS = ("epochs", "steps", "minutes")


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    Attributes:
        train: The resolved recipe.
        model: Settings of the network that differ from the chosen model's own.
        preprocess: Settings of its input that differ from the chosen model's own.
        data: What the settings file of an earlier run states about its data.
        recipe: What a published recipe states about itself.
    """

    train: TrainConfig
    model: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    data: Mapping[str, Any]
    recipe: RecipeInfo


def resolve_settings(
    config: Path | None, options: Mapping[str, Any], assignments: Sequence[str]
) -> Settings:
    """Merge the sources of settings.

    Args:
        config: TOML file with the tables train, train.loss, model, preprocess, recipe.
        options: TrainConfig field to the value of an explicit option; None: not given.
        assignments: `--set` values, e.g. "train.lr=1e-4".

    Raises:
        ConfigError: an unknown table or key, a wrong type, or several lengths.
    """
    tables: dict[str, Any] = load_toml(config) if config else {}
    _check_tables(tables, str(config))
    # An option that is not given must not override the settings file with its default.
    given = {name: value for name, value in options.items() if value is not None}
    # Once for the options and once for the result, so that the error names what was typed.
    _check_lengths(given, "", [f"--{name}" for name in LENGTHS])
    train = dict(tables.get("train", {}))
    # `--epochs` replaces the recipe's `steps`. Otherwise the two would contradict each other.
    if any(name in given for name in LENGTHS):
        train = {name: value for name, value in train.items() if name not in LENGTHS}
    # In the order of precedence: file, options, --set.
    merged = apply_overrides({**tables, "train": {**train, **given}}, assignments)
    _check_tables(merged, "--set")
    _check_lengths(merged["train"], "[train] ", LENGTHS)
    for name, cls in TABLES.items():  # so that an unknown key fails here and names its table
        from_dict(cls, merged.get(name, {}), name)
    return Settings(
        train=from_dict(TrainConfig, merged["train"], "train"),
        model=merged.get("model", {}),
        preprocess=merged.get("preprocess", {}),
        data=tables.get("data", {}),
        recipe=from_dict(RecipeInfo, tables.get("recipe", {}), f"{config}: recipe"),
    )


def model_overrides(
    settings: Settings, model: str, weights: str | None, backbone: str | None = None
) -> ModelConfig | None:
    """The network's settings with `settings.model` over those of `model`; None: as they are.

    Args:
        settings: What the user asked for.
        model: A variant's name or a model file.
        weights: Where its weights come from; None: its own.
        backbone: The network that replaces its backbone; None: its own.

    Raises:
        CheckpointError: no such model.
        ConfigError: `settings.preprocess` differs from the model's own input, or no such backbone.
    """
    if not settings.model and not settings.preprocess and backbone is None:
        return None
    base, own_input = _own_settings(model, weights)
    _check_preprocess(settings, own_input)
    if backbone is not None:
        from dino_core.models.backbones.choice import with_backbone

        if settings.model.get("backbone", backbone) != backbone:
            raise ConfigError(
                f"--backbone {backbone}, but model.backbone = {settings.model['backbone']}",
                "give one of them",
            )
        base = with_backbone(base, backbone, _input(settings, own_input).canvas)
    elif not settings.model:
        return None
    return from_dict(ModelConfig, {**to_dict(base), **settings.model}, "model")


def model_input(
    settings: Settings, model: str, weights: str | None, resumed: bool
) -> PreprocessConfig:
    """The input of the network that is trained; a resumed run has recorded its own.

    Raises: CheckpointError when there is no such model.
    """
    if resumed and settings.preprocess:
        return from_dict(PreprocessConfig, settings.preprocess, "preprocess")
    return _input(settings, _own_settings(model, weights)[1])


def _own_settings(model: str, weights: str | None) -> tuple[ModelConfig, PreprocessConfig]:
    """Network and input that `model` stands for, without reading its weights where possible."""
    from dino_core.checkpoints.published.names import FOREIGN_SUFFIXES
    from dino_core.checkpoints.zoo import load, resolve
    from dino_core.inference.runtimes import read_metadata

    if model in VARIANTS and weights is not None:
        return VARIANTS[model].model, VARIANTS[model].preprocess
    path = resolve(model)
    meta = load(path).meta if path.suffix in FOREIGN_SUFFIXES else read_metadata(path)
    return meta.model, meta.preprocess


def _check_preprocess(settings: Settings, own: PreprocessConfig) -> None:
    """The table may repeat the model's input (a run's config.toml does), not change it."""
    resized = to_dict(_input(settings, own))
    for name, value in settings.preprocess.items():
        if value != resized[name]:
            raise ConfigError(
                f"preprocess.{name} = {value}: this model has {resized[name]}",
                "the size of the input is --image-size; the rest belongs to the model",
            )


def _input(settings: Settings, own: PreprocessConfig) -> PreprocessConfig:
    """The model's input at the size that is asked for."""
    from dino_core.processing.preprocess import at_image_size

    size = settings.train.image_size
    return own if size is None else at_image_size(own, size)


def _check_tables(tables: Mapping[str, Any], where: str) -> None:
    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    for name, value in tables.items():
        if name in ("data", "recipe"):  # where a run's data are, and what a recipe is for
            continue
        if name in fields and name not in TABLES:
            raise ConfigError(f"{where}: '{name}' is in no table", f"write train.{name}")
        if name not in TABLES:
            hint = nearest_or_all(name, TABLES)
            raise ConfigError(f"{where}: unknown table '{name}'", hint)
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: '{name}' is not a table", f"write {name}.KEY=VALUE")


def _check_lengths(given: Mapping[str, Any], where: str, names: Sequence[str]) -> None:
    if sum(given.get(name) is not None for name in LENGTHS) > 1:
        raise ConfigError(f"{where}only one of {', '.join(names)} can be given")
