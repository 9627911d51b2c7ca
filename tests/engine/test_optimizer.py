from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from factories import tiny_config
from torch import nn

from dino_core.config import ResolvedConfig, TrainConfig
from dino_core.engine.optimizer import build_optimizer, set_lr
from dino_core.engine.planning.plan import evaluation_due
from dino_core.engine.schedule import lr_factor
from dino_core.models.dino import Dino


class TestGroups:
    def test_backbone_parameters_get_a_tenth_and_all_decay(self) -> None:
        model = Dino(tiny_config())
        optimizer = build_optimizer(model, ResolvedConfig(lr=1e-4))
        names = {id(p): n for n, p in model.named_parameters()}
        rates = {
            names[id(p)]: (group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for p in group["params"]
        }
        assert rates.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
        assert rates["backbone.body.conv_stem.weight"] == (pytest.approx(1e-5), 1e-4)
        assert rates["neck.input_proj.0.0.bias"] == (1e-4, 1e-4)
        assert rates["decoder.class_embed.0.bias"] == (1e-4, 1e-4)
        for name, (lr, _) in rates.items():
            assert lr == pytest.approx(1e-5 if name.startswith("backbone.") else 1e-4)

    def test_sampling_offsets_have_their_own_rate(self) -> None:
        model = Dino(tiny_config())
        config = ResolvedConfig(lr=1.0, backbone_lr_factor=0.5, offsets_lr_factor=0.25)
        names = {id(p): n for n, p in model.named_parameters()}
        rates: dict[float, set[str]] = {}
        for group in build_optimizer(model, config).param_groups:
            assert group["weight_decay"] == config.weight_decay
            rates.setdefault(group["lr"], set()).update(names[id(p)] for p in group["params"])
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert rates[0.5] == {n for n in trained if n.startswith("backbone.")}
        # One encoder and two decoder layers with a weight and a bias each.
        assert len(rates[0.25]) == 6
        assert all(n.endswith(("sampling_offsets.weight", "sampling_offsets.bias"))
                   for n in rates[0.25])  # fmt: skip
        assert rates[1.0] == trained - rates[0.5] - rates[0.25]

    def test_frozen_parameters_are_left_out(self) -> None:
        model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
        model["backbone"].requires_grad_(False)
        optimizer = build_optimizer(model, ResolvedConfig(lr=0.5))
        assert [len(g["params"]) for g in optimizer.param_groups] == [2]
        assert optimizer.param_groups[0]["lr"] == 0.5

    def test_one_step_is_adamw_by_hand(self) -> None:
        model = nn.ModuleDict({"head": nn.Linear(1, 1, bias=False)})
        weight = model["head"].weight
        with torch.no_grad():
            weight.fill_(2.0)
        optimizer = build_optimizer(model, ResolvedConfig(lr=0.1, weight_decay=0.01))
        set_lr(optimizer, 0.5)
        weight.grad = torch.tensor([[3.0]])
        optimizer.step()
        # First step of Adam moves by lr * sign(gradient); decay takes lr * wd * weight.
        assert float(weight.detach()) == pytest.approx(2.0 - 0.05 * 0.01 * 2.0 - 0.05, abs=1e-6)


class TestSchedule:
    def test_linear_warmup(self) -> None:
        config = TrainConfig(schedule="step")
        assert lr_factor(config, 0, 0.0, 4) == 0.25
        assert lr_factor(config, 2, 0.001, 4) == 0.75
        assert lr_factor(config, 4, 0.002, 4) == 1.0

    def test_warmup_of_a_short_run_is_its_first_tenth(self) -> None:
        config = TrainConfig(schedule="step")
        assert lr_factor(config, 5, 0.05, 1000) == pytest.approx(0.5)
        assert lr_factor(config, 10, 0.1, 1000) == 1.0

    def test_published_steps(self) -> None:
        config = TrainConfig(schedule="step", step_milestones=(11 / 12,), step_gamma=0.1)
        assert lr_factor(config, 9000, 0.9, 0) == 1.0
        assert lr_factor(config, 9500, 11 / 12, 0) == pytest.approx(0.1)
        two = replace(config, step_milestones=(0.5, 0.75))
        assert lr_factor(two, 9, 0.8, 0) == pytest.approx(0.01)

    def test_cosine(self) -> None:
        config = TrainConfig(schedule="cosine", final_lr_factor=0.02)
        assert lr_factor(config, 9, 0.0, 0) == 1.0
        assert lr_factor(config, 9, 0.5, 0) == pytest.approx(0.51)
        assert lr_factor(config, 9, 1.0, 0) == pytest.approx(0.02)
        quarter = 0.02 + 0.98 * (1 + math.sqrt(0.5)) / 2
        assert lr_factor(config, 9, 0.25, 0) == pytest.approx(quarter)


class TestEvaluationShare:
    def test_first_evaluation_waits_until_it_is_cheap(self) -> None:
        # After 60 s for one epoch of 100 images, 100 validation images would take 20 s: too much.
        assert not evaluation_due(60.0, 0.0, None, 1.0)
        assert evaluation_due(600.0, 0.0, None, 0.1)

    def test_share_of_the_time(self) -> None:
        # 10 s spent and 10 to come are 8 % of 250 s.
        assert not evaluation_due(239.0, 10.0, 10.0, 1.0)
        assert evaluation_due(241.0, 10.0, 10.0, 1.0)
