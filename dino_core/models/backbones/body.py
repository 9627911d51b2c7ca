"""What every backbone network offers besides its forward pass, and the error for one that cannot.

A body is a `torch.nn.Module` that maps images (B, 3, H, W) to a list of feature maps, finest first.
The facts below are plain values, and modules are referred to by name: a copy of the model, or a
module that was replaced inside the body, is then found just the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from dino_core.errors import ConfigError


class Body(Protocol):
    """The facts about a backbone network that `Backbone` reads."""

    @property
    def channels(self) -> Sequence[int]:
        """Channel count of each map that the network can give, finest first."""

    @property
    def reductions(self) -> Sequence[int]:
        """Stride of each of these maps."""

    @property
    def stage_ends(self) -> Sequence[str]:
        """Name of the module that ends the stage of each of these maps."""

    @property
    def output_norms(self) -> Sequence[str]:
        """Names of modules that only an output map goes through, not the stages after it.

        They are trained even where their stage is frozen.
        """

    @property
    def recomputable_blocks(self) -> Sequence[str]:
        """Names of the modules that have a `gradient_checkpointing` switch."""

    @property
    def parts_to_compile(self) -> Sequence[str]:
        """Names of the modules that `torch.compile` gets one by one; "" is the whole network."""

    @property
    def gives_channels_last(self) -> bool:
        """Whether the maps come as (B, H, W, C) instead of (B, C, H, W)."""


WHOLE: tuple[str, ...] = ("",)
"""For `parts_to_compile`: the network as one part."""


def names_of(network: nn.Module, kind: type[nn.Module]) -> tuple[str, ...]:
    """Names of the modules of one class, in the order in which they were registered."""
    return tuple(name for name, module in network.named_modules() if isinstance(module, kind))


def no_pyramid(name: str, strides: Sequence[int], wanted: Sequence[int] = ()) -> ConfigError:
    """The error for a network whose maps do not have the strides that the model needs.

    Args:
        name: The network.
        strides: Strides of its maps.
        wanted: Strides that the model needs; empty if any increasing ones would do.
    """
    needed = (
        f" of strides {', '.join(map(str, wanted))}"
        if wanted
        else ", of which each is coarser than the one before"
    )
    kind = " (as in a plain vision transformer)" if len(set(strides)) == 1 < len(strides) else ""
    return ConfigError(
        f"backbone '{name}': its maps have strides {', '.join(map(str, strides))}{kind}; this DINO "
        f"needs maps{needed}",
        "choose a network with a pyramid, e.g. resnet34, convnext_tiny, "
        "swin_tiny_patch4_window7_224",
    )
