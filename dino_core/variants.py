"""The named models: one `ModelConfig` and its `PreprocessConfig` each, made with `replace`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dino_core.config import ModelConfig, PreprocessConfig, nearest
from dino_core.errors import ConfigError


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
    backbone_out_indices=(3, 4),  # from stride 16: a quarter of the tokens, half the time
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

VARIANTS: dict[str, Variant] = {
    "dino-nano": Variant(_NANO, PreprocessConfig(short_side=320, max_side=320, canvas=(320, 320))),
    "dino-r50-4scale": Variant(_R50_4SCALE, PreprocessConfig()),
}


def find_variant(name: str) -> Variant:
    """The variant of that name. Raises ConfigError with the nearest known name."""
    if name not in VARIANTS:
        raise ConfigError(
            f"unknown model variant '{name}'",
            nearest(name, VARIANTS) or f"known: {', '.join(VARIANTS)}",
        )
    return VARIANTS[name]
