from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import timm
import torch
from factories import tiny_config

from dino_core.errors import ConfigError
from dino_core.models.backbones.backbone import Backbone
from dino_core.models.backbones.frozen_norm import FoldedConv2d


def randomized(name: str, indices: tuple[int, ...], frozen: int = 0) -> Backbone:
    """A backbone whose frozen statistics are not the identity."""
    torch.manual_seed(0)
    config = replace(
        tiny_config(),
        backbone=name,
        backbone_out_indices=indices,
        backbone_frozen_stages=frozen,
        num_levels=len(indices),
    )
    backbone = Backbone(config)
    for key, buffer in backbone.named_buffers():
        if key.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
        elif key.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return backbone


@pytest.mark.parametrize(
    ("name", "indices"),
    [("resnet18", (2, 3, 4)), ("tf_efficientnet_lite0", (3, 4)), ("test_efficientnet", (2, 3))],
)
def test_folding_changes_neither_outputs_nor_names(name: str, indices: tuple[int, ...]) -> None:
    plain = randomized(name, indices)
    folded = copy.deepcopy(plain)
    folded.fold_batch_norm()
    kept = copy.deepcopy(plain)
    kept.fold_batch_norm(keep=True)
    assert any(isinstance(m, FoldedConv2d) for m in folded.modules())
    assert plain.state_dict().keys() == folded.state_dict().keys() == kept.state_dict().keys()
    for size_hw in ((65, 97), (64, 96)):  # at even sizes a kernel with zeros replaces padding
        images = torch.randn(1, 3, *size_hw)
        with torch.no_grad():
            for a, b, c in zip(plain(images), folded(images), kept(images), strict=True):
                scale = a.abs().max()
                torch.testing.assert_close(b / scale, a / scale, atol=1e-5, rtol=0)
                torch.testing.assert_close(c / scale, a / scale, atol=1e-5, rtol=0)


@torch.no_grad()
def test_kept_fold_follows_the_weights() -> None:
    """In-place changes, loading and replacement must all be seen by a backbone that has run."""
    images = torch.randn(1, 3, 64, 64)
    backbone, other = (randomized("test_efficientnet", (2, 3)) for _ in range(2))
    backbone.fold_batch_norm(keep=True)
    backbone(images)
    for parameter in other.parameters():
        parameter.mul_(1.5)
    for assign in (False, True):
        backbone.load_state_dict(other.state_dict(), assign=assign)
        torch.testing.assert_close(backbone(images)[1], other(images)[1], atol=1e-4, rtol=1e-4)
    for model in (backbone, other):
        for parameter in model.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(backbone(images)[1], other(images)[1], atol=1e-4, rtol=1e-4)


def test_folded_model_loads_and_copies() -> None:
    """The convolution must see the statistics that loading and copying put in place."""
    source, target = randomized("test_efficientnet", (2, 3)), Backbone(tiny_config())
    target.fold_batch_norm()
    target.load_state_dict(source.state_dict())
    target = copy.deepcopy(target)
    images = torch.randn(1, 3, 64, 64)
    for a, b in zip(source(images), target(images), strict=True):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)


def test_gradients_through_folded_bf16() -> None:
    """Grouped convolutions run in fp32 under autocast; the gradient is near the fp32 one."""
    gradients = []
    for autocast in (False, True):
        backbone = randomized("test_efficientnet", (2, 3))
        backbone.fold_batch_norm()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            maps = backbone(torch.ones(1, 3, 32, 32).cumsum(-1) / 32)
        sum(m.float().sum() for m in maps).backward()  # type: ignore[union-attr]
        trained = [p for p in backbone.parameters() if p.requires_grad]
        gradients.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))
    cosine = torch.cosine_similarity(gradients[0], gradients[1], dim=0)
    assert cosine > 0.99


def test_frozen_stages() -> None:
    backbone = randomized("resnet18", (2, 3, 4), frozen=2)
    frozen = {n.split(".")[1] for n, p in backbone.named_parameters() if not p.requires_grad}
    trained = {n.split(".")[1] for n, p in backbone.named_parameters() if p.requires_grad}
    assert frozen == {"conv1", "layer1"}  # batch norms are buffers
    assert trained == {"layer2", "layer3", "layer4"}
    assert all("bn" not in n for n, _ in backbone.named_parameters())


@pytest.mark.parametrize(
    ("name", "depthwise"),
    [("tf_efficientnet_lite0", True), ("convnext_tiny", True), ("resnet18", False)],
)
def test_depthwise_networks_are_contiguous_on_a_gpu(name: str, depthwise: bool) -> None:
    with torch.device("meta"):
        backbone = randomized(name, (2, 3))
    on_gpu = backbone.memory_format(torch.device("cuda"))
    assert on_gpu == (torch.contiguous_format if depthwise else torch.channels_last)
    assert backbone.memory_format(torch.device("cpu")) == torch.channels_last


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'resnet50'"):
        Backbone(replace(tiny_config(), backbone="resnet5O"))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet50"])
def test_own_networks_are_those_of_timm(name: str) -> None:
    """Same parameter names, stages and outputs, at a size that no stride divides."""
    own = randomized(name, (1, 3, 4))
    theirs = timm.create_model(name, features_only=True, out_indices=(1, 3, 4)).eval()
    info = theirs.feature_info
    assert own.channels == info.channels()
    assert own.reductions == info.reduction()
    assert list(own.body.stage_ends) == [stage["module"] for stage in info.info]  # type: ignore[arg-type]
    state = theirs.state_dict()
    ours = own.body.state_dict()
    assert ours.keys() == {key for key in state if not key.endswith("num_batches_tracked")}
    theirs.load_state_dict({**state, **ours})
    images = torch.randn(2, 3, 101, 67)
    with torch.no_grad():
        for a, b in zip(theirs(images), own(images), strict=True):
            scale = a.abs().max()
            torch.testing.assert_close(b / scale, a / scale, atol=1e-5, rtol=0)


def test_default_model_needs_no_timm() -> None:
    """Importing timm takes longer than the rest of the default model's first prediction."""
    code = (
        "import sys\n"
        "from dino_core import Detector\n"
        "Detector.load('dino-nano', device='cpu')\n"
        "print([m for m in ('timm', 'torchvision', 'torch._dynamo', 'scipy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
