"""Any timm `features_only` backbone, with its batch norms frozen (ALGORITHM 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import FrozenBatchNormAct2d, freeze_batch_norm_2d
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops.misc import FrozenBatchNorm2d

from dino_core.config import ModelConfig, nearest
from dino_core.errors import ConfigError


class Backbone(nn.Module):
    """The feature maps of `config.backbone_out_indices`, finest first.

    Attributes:
        channels: Channel count of each map.
        reductions: Stride of each map.
    """

    def __init__(self, config: ModelConfig, pretrained: bool = False) -> None:
        super().__init__()
        if not timm.is_model(config.backbone):
            raise ConfigError(
                f"unknown backbone '{config.backbone}'",
                nearest(config.backbone, timm.list_models()) or "see timm.list_models()",
            )
        body = timm.create_model(
            config.backbone,
            pretrained=pretrained,
            features_only=True,
            out_indices=config.backbone_out_indices,
        )
        freeze: Callable[[nn.Module], nn.Module] = freeze_batch_norm_2d
        self.body = freeze(body)
        info = cast("timm.models.FeatureInfo", body.feature_info)
        self.channels: list[int] = info.channels()
        self.reductions: list[int] = info.reduction()
        stages = [stage["module"] for stage in info.info]
        frozen = config.backbone_frozen_stages
        self._frozen_through: str | None = stages[frozen - 1] if frozen else None
        self._used_through: str = stages[max(config.backbone_out_indices)]
        self.freeze_stages()

    def freeze_stages(self) -> None:
        """Take the gradient from the leading frozen stages, and from what follows the last map."""
        names = [name for name, _ in self.body.named_modules()]
        first = 0 if self._frozen_through is None else _last_of(self._frozen_through, names)
        last = _last_of(self._used_through, names)
        for name in names[1 : first + 1] + names[last + 1 :]:
            for parameter in self.body.get_submodule(name).parameters(recurse=False):
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images -> maps (B, C_l, H_l, W_l)."""
        return cast(list[Tensor], self.body(images))

    def fold_batch_norm(self) -> None:
        """Apply each frozen batch norm inside the convolution before it.

        Parameters, buffers and their names stay as they are; the sums differ in the last bits.
        It saves two passes over every map, and the casts that autocast puts around them.
        """
        for parent in list(self.body.modules()):
            conv_name, conv = "", None
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Conv2d):
                    conv_name, conv = name, child
                elif isinstance(child, _FROZEN_NORMS) and conv is not None:
                    if conv.out_channels == cast(Tensor, child.weight).numel():
                        norm = FoldedNorm(child)
                        setattr(parent, conv_name, FoldedConv2d(conv, norm))
                        setattr(parent, name, norm)
                    conv = None


def _last_of(stage: str, names: list[str]) -> int:
    """Where module `stage` with all it holds ends in registration order."""
    return max(i for i, n in enumerate(names) if n == stage or n.startswith(stage + "."))


_FROZEN_NORMS = (FrozenBatchNorm2d, FrozenBatchNormAct2d)


class FoldedNorm(nn.Module):
    """The buffers of a frozen batch norm that `FoldedConv2d` applies, and its activation."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)  # weight, bias, running_mean, running_var
        self.eps: float = cast(float, norm.eps)
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What the norm multiplies each channel with and then adds, each (C,)."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.act(self.drop(x)))


class FoldedConv2d(nn.Module):
    """A convolution followed by a frozen batch norm, computed as one convolution."""

    def __init__(self, conv: nn.Conv2d, norm: FoldedNorm) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.same_padding = isinstance(conv, Conv2dSame)
        self.padding = (0, 0) if self.same_padding else conv.padding
        self._norm = [norm]  # in a list: the buffers are registered where the norm stood

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._norm[0].scale_and_shift()
        if self.bias is not None:
            shift = shift + self.bias * scale
        if self.same_padding:
            x = pad_same(x, list(self.weight.shape[-2:]), list(self.stride), list(self.dilation))
        weight = self.weight * scale[:, None, None, None]
        # oneDNN has no fast bf16 backward for grouped convolutions: 440 ms against 15 ms in fp32
        # for 16 maps of 672 x 19 x 23 with a 5 x 5 kernel and stride 2.
        slow_in_bf16 = self.groups > 1 and x.device.type == "cpu" and torch.is_grad_enabled()
        if slow_in_bf16 and (x.requires_grad or weight.requires_grad):
            # And in fp32 its backward for channels last takes half the time or less.
            with torch.autocast("cpu", enabled=False):
                x = x.to(torch.float32, memory_format=torch.channels_last)
                return self._convolve(x, weight, shift)
        return self._convolve(x, weight, shift)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.conv2d(
            x, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )
