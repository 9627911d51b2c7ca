"""The named models: each is a `ModelConfig` and its `PreprocessConfig`, derived by `replace`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dino_core.config import ModelConfig, PreprocessConfig
from dino_core.errors import ConfigError
from dino_core.suggestions import nearest_or_all


@dataclass(frozen=True)
class Variant:
    """A published or built-in model: its network and its input."""

    model: ModelConfig
    preprocess: PreprocessConfig


_R50_4SCALE = ModelConfig()

_NANO = replace(
    _R50_4SCALE,
    variant="dino-nano",
    backbone="tf_efficientnet_lite0",
    backbone_out_indices=(3, 4),  # from stride 16 on: a quarter of the tokens, half the time
    backbone_frozen_stages=2,
    num_classes=20,
    num_levels=3,
    hidden_dim=192,
    num_heads=6,
    ffn_dim=768,
    encoder_layers=2,
    decoder_layers=3,
    num_queries=150,
    dn_number=50,
)

_R50_5SCALE = replace(
    _R50_4SCALE, variant="dino-r50-5scale", backbone_out_indices=(1, 2, 3, 4), num_levels=5
)
_R101_4SCALE = replace(_R50_4SCALE, variant="dino-r101-4scale", backbone="resnet101")
_SWINL_4SCALE = replace(
    _R50_4SCALE,
    variant="dino-swinl-4scale",
    backbone="swin_large_patch4_window12_384",
    backbone_out_indices=(1, 2, 3),  # of strides 4, 8, 16, 32
    backbone_frozen_stages=0,
    backbone_drop_path=0.2,
)
_SWINL_5SCALE = replace(
    _SWINL_4SCALE,
    variant="dino-swinl-5scale",
    backbone_out_indices=(0, 1, 2, 3),
    num_levels=5,
)
_SWINT_4SCALE = replace(
    _SWINL_4SCALE, variant="dino-swint-4scale", backbone="swin_tiny_patch4_window7_224"
)
_CONVNEXTL_4SCALE = replace(
    _SWINL_4SCALE,
    variant="dino-convnextl-4scale",
    backbone="convnext_large",
    backbone_drop_path=0.0,  # the official `build_convnext` passes none
)

_PUBLISHED = (
    _R50_4SCALE,
    _R50_5SCALE,
    _R101_4SCALE,
    _SWINT_4SCALE,
    _SWINL_4SCALE,
    _SWINL_5SCALE,
    _CONVNEXTL_4SCALE,
)
"""Official `DINO_4scale.py`, `_5scale.py`, `_4scale_swin.py`, `_5scale_swin.py`,
`_4scale_convnext.py`. They differ only in the backbone, its maps and the number of levels."""

VARIANTS: dict[str, Variant] = {
    "dino-nano": Variant(_NANO, PreprocessConfig(short_side=320, max_side=320, canvas=(320, 320))),
    **{model.variant: Variant(model, PreprocessConfig()) for model in _PUBLISHED},
}


def find_variant(name: str) -> Variant:
    """The variant of that name. Raises ConfigError with the nearest known name."""
    if name not in VARIANTS:
        raise ConfigError(f"unknown model variant '{name}'", nearest_or_all(name, VARIANTS))
    return VARIANTS[name]
