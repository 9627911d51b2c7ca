"""Every published recipe loads strictly and says what was published."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dino_core.config import ModelConfig, TrainConfig, from_dict
from dino_core.engine.planning.facts import DataFacts, Machine, ModelFacts
from dino_core.engine.planning.plan import plan
from dino_core.errors import ConfigError
from dino_core.recipes import RecipeInfo, find_recipe, recipe_names
from dino_core.toml import load_toml

TABLES = {"recipe": RecipeInfo, "train": TrainConfig, "model": ModelConfig}
# Epochs after which the learning rate falls to a tenth: the paper's appendix, detrex and mmdet.
DROPS = {12: (11,), 24: (20,), 36: (30,)}
PUBLISHED = [f"{b}-{s}scale-{e}ep" for b in ("r50", "swinl") for s in (4, 5) for e in DROPS]


def train_of(name: str) -> TrainConfig:
    return from_dict(TrainConfig, load_toml(find_recipe(name))["train"])


@pytest.mark.parametrize("name", recipe_names())
def test_loads_strictly(name: str) -> None:
    tables = load_toml(find_recipe(name))
    assert tables.keys() <= TABLES.keys()
    built = {key: from_dict(TABLES[key], table, name) for key, table in tables.items()}
    info = built["recipe"]
    assert isinstance(info, RecipeInfo)
    assert info.model and info.source and info.gives
    assert name.startswith(info.model.removeprefix("dino-"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_published(name: str) -> None:
    config = train_of(name)
    epochs = int(name.removesuffix("ep").rpartition("-")[2])
    drops = (27, 33) if name == "swinl-5scale-36ep" else DROPS[epochs]
    assert config.epochs == epochs
    assert config.step_milestones == tuple(drop / epochs for drop in drops)
    assert (config.schedule, config.step_gamma, config.warmup_steps) == ("step", 0.1, 0)
    assert (config.lr, config.backbone_lr_factor, config.offsets_lr_factor) == (1e-4, 0.1, 1.0)
    assert (config.weight_decay, config.clip_norm, config.images_per_step) == (1e-4, 0.1, 16)
    assert (config.ema, config.augment, config.dtype) == (False, "published", "fp32")


@pytest.mark.parametrize("processes", [1, 2, 8, 16])
def test_sixteen_images_a_step_on_any_number_of_devices(processes: int) -> None:
    coco = DataFacts(118_287, 850_000, 5000, 100.0, 1.0)
    r50 = ModelFacts(47_000_000, 1333, trained=True)
    machine = Machine("cuda", 16, processes, fits=2)
    result = plan(train_of("r50-4scale-12ep"), coco, r50, machine)
    assert result.config.images_per_step == 16
    assert result.config.batch * result.config.accumulate * processes == 16
    assert result.config.batch <= 2
    assert result.config.image_size == 1333
    # 7392 steps in each of the 12 epochs of 118,287 images, to within the last, partial one.
    assert result.steps == pytest.approx(12 * 118_287 / 16, abs=12)


def test_the_improved_recipe_differs_where_it_says() -> None:
    base, improved = train_of("r50-4scale-12ep"), train_of("r50-4scale-12ep-improved")
    assert improved == replace(
        base, lr=2e-4, offsets_lr_factor=0.1, ema=True, ema_decay=0.9997,
        loss=replace(base.loss, weight_class=2.0),
    )  # fmt: skip
    model = load_toml(find_recipe("r50-4scale-12ep-improved"))["model"]
    assert model == {"dn_number": 300, "backbone_frozen_stages": 0}


def test_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'r50-4scale-12ep'\?.*swinl-5scale-36ep"):
        find_recipe("r50-4scale-12e")
    with pytest.raises(ConfigError, match="recipes: r50-4scale-12ep"):
        find_recipe("zzz")
