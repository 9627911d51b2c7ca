"""Which training samples are made of several images, and of which: mosaics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dino_core.config import PreprocessConfig
from dino_core.data.mosaic import Mosaic
from dino_core.data.transforms import AugmentKind, Transform, finishing
from dino_core.errors import ConfigError


@dataclass(frozen=True)
class Mixing:
    """How samples are mixed.

    Attributes:
        mosaic_share: How often a sample becomes a mosaic.
        mosaic: What a mosaic is like.
        finish: What is done to a mosaic after it is laid out; keeps its size.
    """

    mosaic_share: float
    mosaic: Mosaic
    finish: Transform

    def wants_mosaic(self, rng: np.random.Generator) -> bool:
        """Whether this sample is one; the generator's first draw."""
        return bool(rng.random() < self.mosaic_share)


def build_mixing(mosaic: float, kind: AugmentKind, preprocess: PreprocessConfig) -> Mixing | None:
    """The mixing that goes with an augmentation; None where nothing is mixed.

    Args:
        mosaic: How often a sample becomes a mosaic, 0 to 1.
        kind: The augmentation, of which a mosaic gets flips and colours.
        preprocess: The input at inference.

    Raises:
        ConfigError: mixing without augmentation.
    """
    if not mosaic:
        return None
    if kind == "none":
        raise ConfigError(
            f"augment 'none' and mosaic {mosaic:g} contradict each other",
            "set augment to default or strong, or mosaic to 0",
        )
    return Mixing(mosaic, Mosaic(preprocess), finishing(kind))
