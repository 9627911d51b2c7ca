"""The backbone: a network of this package or any timm `features_only` one (ALGORITHM 1)."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from dino_core.config import ModelConfig
from dino_core.errors import ConfigError
from dino_core.models.backbones.body import Body
from dino_core.models.backbones.frozen_norm import fold_batch_norms
from dino_core.models.backbones.table import make_body
from dino_core.ops.depthwise import is_depthwise


class _Recomputable(Protocol):
    gradient_checkpointing: bool


class Backbone(nn.Module):
    """The feature maps of `config.backbone_out_indices`, finest first.

    Attributes:
        channels: Channel count of each map.
        reductions: Stride of each map.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        indices = config.backbone_out_indices
        try:
            # Networks may leave out what follows the last map, so the indices decide what exists at
            # all.
            facts = make_body(config.backbone, indices, config.backbone_drop_path)
            self.channels = [facts.channels[i] for i in indices]
        except IndexError:
            raise ConfigError(
                f"backbone_out_indices is {list(indices)}: '{config.backbone}' has no such maps",
                "they are counted from 0, the finest",
            ) from None
        # One object seen in two ways: as a module, to be registered, and as its facts.
        self.body = cast(nn.Module, facts)
        self.reductions = [facts.reductions[i] for i in indices]
        frozen = config.backbone_frozen_stages
        # The setting counts stages, so the last frozen one is at this index. In a ResNet the stem
        # is the first stage, and freezing two gives the published conv1 and layer1 (ALGORITHM 1).
        self._frozen_through = facts.stage_ends[frozen - 1] if frozen else None
        self._used_through = facts.stage_ends[max(indices)]
        self._gives_channels_last = facts.gives_channels_last
        self._has_depthwise = any(map(is_depthwise, self.body.modules()))
        self.freeze_stages()

    @property
    def _facts(self) -> Body:
        return cast(Body, self.body)

    def freeze_stages(self) -> None:
        """Turn off the gradient of the leading frozen stages, and of all that follows the last map.

        The norms of the output maps keep theirs, as in the official Swin.
        """
        names = [name for name, _ in self.body.named_modules()]
        first = 0 if self._frozen_through is None else _last_of(self._frozen_through, names)
        last = _last_of(self._used_through, names)
        # Order of registration is order of execution in every supported network, so everything up
        # to the last module of a frozen stage is frozen, and everything behind the last used stage
        # has no gradient anyway. DDP fails where a parameter that needs a gradient gets none.
        for name in {*names[1 : first + 1], *names[last + 1 :]} - {*self._facts.output_norms}:
            for parameter in self.body.get_submodule(name).parameters(recurse=False):
                # Without `recurse=False` a container's name would freeze the stages inside it, too.
                parameter.requires_grad_(False)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute the blocks of Swin and ConvNeXt in the backward pass.

        Other networks always keep their activations.
        """
        for name in self._facts.recomputable_blocks:
            block = cast(_Recomputable, self.body.get_submodule(name))
            block.gradient_checkpointing = enabled

    def parts_to_compile(self) -> list[nn.Module]:
        """The modules for `torch.compile`, which compiles each by itself."""
        return [self.body.get_submodule(name) for name in self._facts.parts_to_compile]

    def stages(self) -> list[nn.Module]:
        """The modules that end the stages; a network may leave out those after the last map."""
        present = dict(self.body.named_modules())
        return [present[name] for name in self._facts.stage_ends if name in present]

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """The fastest memory layout of images and weights: channels last, with one exception.

        Depthwise convolutions on a GPU stay contiguous: with channels last cuDNN takes 0.2 to 1 s
        to find a kernel, again for each layer and each image size (benchmarks/NOTES.md).
        """
        slow = self._has_depthwise and device.type == "cuda"
        return torch.contiguous_format if slow else torch.channels_last

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalized images (B, 3, H, W) -> maps (B, C_l, H_l, W_l), finest first."""
        # Weights and images in one layout: a mixture makes each convolution convert one of them.
        images = images.contiguous(memory_format=self.memory_format(images.device))
        maps: list[Tensor] = self.body(images)
        if self._gives_channels_last:
            return [map_.permute(0, 3, 1, 2) for map_ in maps]  # B, H, W, C -> B, C, H, W
        return maps

    def fold_batch_norm(self, keep: bool = False) -> None:
        """Apply each frozen batch norm inside the convolution before it.

        Args:
            keep: Without gradients, fold again only where a weight has changed.
        """
        fold_batch_norms(self.body, keep)


def _last_of(stage: str, names: list[str]) -> int:
    """Index of the last module in `names` (in registration order) that belongs to `stage`."""
    # The dot keeps "layer1" from matching "layer10".
    return max(i for i, n in enumerate(names) if n == stage or n.startswith(stage + "."))
