"""The backbone families: one row for each network that this package has, timm for all others.

To add a family, write one file whose module satisfies `Body`, and add its row here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from dino_core.models.backbones.body import Body
from dino_core.models.backbones.convnext import CONVNEXT_SIZES, convnext
from dino_core.models.backbones.efficientnet_lite import efficientnet_lite0
from dino_core.models.backbones.resnet import RESNET_BLOCKS, resnet
from dino_core.models.backbones.swin import SWIN_SIZES, swin

Factory = Callable[[str, Sequence[int], float], Body]
"""(timm's name, indices of the maps to give, stochastic depth of the last block) -> network."""

FACTORIES: Final[dict[str, Factory]] = {
    "tf_efficientnet_lite0": efficientnet_lite0,
    **dict.fromkeys(RESNET_BLOCKS, resnet),
    **dict.fromkeys(SWIN_SIZES, swin),
    **dict.fromkeys(CONVNEXT_SIZES, convnext),
}
"""By timm's names. These networks need no timm, whose import takes seconds."""


def make_body(name: str, out_indices: Sequence[int], drop_path: float) -> Body:
    """Build the network of that name.

    Args:
        name: A name in `FACTORIES`, or any other of timm's.
        out_indices: Which maps to give, counted from 0, the finest.
        drop_path: Stochastic depth of the last block in training; 0 for none.

    Raises:
        ConfigError: timm has no such network either, or it does not give these maps.
    """
    if name in FACTORIES:
        return FACTORIES[name](name, out_indices, drop_path)
    from dino_core.models.backbones.timm_body import timm_body

    return timm_body(name, out_indices, drop_path)


def reductions_of(name: str) -> Sequence[int]:
    """The stride of each map that the network of that name can give, finest first.

    Raises: ConfigError if there is no such network.
    """
    if name in FACTORIES:
        return FACTORIES[name](name, (0,), 0.0).reductions
    from dino_core.models.backbones.timm_body import timm_reductions

    return timm_reductions(name)
