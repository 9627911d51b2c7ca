from __future__ import annotations

import torch
from torch import nn

from dino_core.engine.ema import Ema


def test_average_follows_the_recursion() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    ema = Ema(model, decay=0.3)
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    for n in range(6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model[1].running_mean.add_(1.0)
        ema.update()
        decay = min(0.3, (1 + n) / (10 + n))
        for name, parameter in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    for name, parameter in ema.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])
    assert torch.equal(ema.model[1].running_mean, model[1].running_mean)
    assert ema.updates == 6


def test_decay_warms_up_to_its_value() -> None:
    ema = Ema(nn.Linear(1, 1), decay=0.9997)
    assert ema.decay_at(0) == 0.1
    assert ema.decay_at(90) == 0.91
    assert ema.decay_at(10**6) == 0.9997


def test_frozen_parameters_stay_and_tied_ones_are_averaged_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(1, 1), "frozen": nn.Linear(1, 1)})
    model["b"] = model["a"]
    model["frozen"].requires_grad_(False)
    ema = Ema(model, decay=0.5)
    start = model["a"].weight.detach().clone()
    with torch.no_grad():
        model["a"].weight.add_(1.0)
    ema.update()
    assert ema.model["a"] is ema.model["b"]
    torch.testing.assert_close(ema.model["a"].weight, start + 0.9)  # decay 0.1 at first
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert not ema.model.training
