"""Any timm `features_only` network as a backbone's body, its batch norms frozen.

Importing this module imports timm, which takes seconds, so only `table` does, when it must.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from dino_core.errors import ConfigError
from dino_core.models.backbones.body import WHOLE, Body, no_pyramid
from dino_core.models.backbones.frozen_norm import FrozenBatchNorm, SameConv2d
from dino_core.suggestions import nearest


def timm_body(name: str, out_indices: Sequence[int], drop_path: float = 0.0) -> Body:
    """The network of that name, giving the maps `out_indices`.

    Its facts cover the maps up to the last one asked for.

    Raises:
        ConfigError: timm has no such network or map, the network has no stochastic depth where
            `drop_path` asks for it, or a map is not coarser than the one before.
    """
    extra = {"drop_path_rate": drop_path} if drop_path else {}
    body = _created(name, out_indices=tuple(out_indices), **extra)
    info = body.feature_info.info
    body.channels = tuple(stage["num_chs"] for stage in info)
    body.reductions = tuple(stage["reduction"] for stage in info)
    body.stage_ends = _module_names(body, [stage["module"] for stage in info])
    body.output_norms = body.recomputable_blocks = ()
    body.parts_to_compile = WHOLE
    body.gives_channels_last = str(getattr(body, "output_fmt", "")).endswith("NHWC")
    # A plain vision transformer has one stride for all its blocks, from which no pyramid can be
    # made.
    strides = [body.reductions[i] for i in out_indices]
    if strides != sorted(set(strides)):
        raise no_pyramid(name, strides)
    # Detection batches are too small for batch statistics, so published detectors freeze them.
    _replace_layers(body)
    return cast(Body, body)


def _module_names(body: nn.Module, modules: Sequence[str]) -> tuple[str, ...]:
    """The names that the network's modules have inside timm's feature extractor.

    timm has three extractors: one keeps the names, one flattens them, one nests the network. A
    module found under none of these names counts as the last, so that no layer looks unused.
    """
    names = [name for name, _ in body.named_modules()]
    return tuple(
        next((n for n in (m, m.replace(".", "_"), f"model.{m}") if n in names), names[-1])
        for m in modules
    )


def timm_reductions(name: str) -> tuple[int, ...]:
    """The stride of each map of the network of that name. Raises ConfigError like `timm_body`."""
    with torch.device("meta"):
        info = _created(name).feature_info.info
    return tuple(stage["reduction"] for stage in info)


def _created(name: str, **options: Any) -> Any:
    """Make the feature extractor of that name. Raises ConfigError if timm has none."""
    if not timm.is_model(name):
        raise ConfigError(
            f"unknown backbone '{name}'",
            nearest(name, timm.list_models()) or "see timm.list_models()",
        )
    try:
        return timm.create_model(name, features_only=True, **options)
    # timm's networks refuse options that they do not have with different exceptions.
    except (RuntimeError, TypeError, AssertionError, IndexError, ValueError) as error:
        asked = ", ".join(f"{key} {value}" for key, value in options.items()) or "its feature maps"
        raise ConfigError(
            f"backbone '{name}': timm {timm.__version__} does not give {asked} ({error})",
            "model.backbone_out_indices counts the maps from 0; otherwise choose another backbone",
        ) from error


def _replace_layers(body: nn.Module) -> None:
    """Replace batch norms by frozen ones, and "same" convolutions by those of this package."""
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _frozen(child))
            # The exact class, since a subclass may compute something else.
            elif type(child) is Conv2dSame:
                setattr(parent, name, _same(child))


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm:
    """A frozen norm with the same statistics and parameters.

    timm's BatchNormAct2d holds an activation and a dropout, which are kept behind the norm.
    """
    # The layer may be an activation too (BatchNormAct2d), which would be lost with the norm.
    after = [getattr(norm, part, nn.Identity()) for part in ("drop", "act")]
    act = nn.Sequential(*(part for part in after if not isinstance(part, nn.Identity)))
    frozen = FrozenBatchNorm(norm.num_features, norm.eps, act if len(act) else None)
    state = norm.state_dict()
    frozen.load_state_dict({name: state[name] for name in frozen.state_dict() if name in state})
    return frozen


def _same(conv: Conv2dSame) -> SameConv2d:
    same = SameConv2d(
        conv.in_channels,
        conv.out_channels,
        cast("tuple[int, int]", conv.kernel_size),
        cast("tuple[int, int]", conv.stride),
        dilation=cast("tuple[int, int]", conv.dilation),
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    same.load_state_dict(conv.state_dict())
    return same
