"""Which training samples are made of several images, and how: mosaics and pasted objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dino_core.config import PreprocessConfig
from dino_core.data.augment.mosaic import PIECES, Mosaic
from dino_core.data.augment.paste import Donors, Paste, find_donors
from dino_core.data.augment.transforms import AugmentKind, Transform, finishing
from dino_core.data.records import ImageRecord
from dino_core.errors import ConfigError


@dataclass(frozen=True)
class Mixing:
    """How samples are mixed.

    Attributes:
        mosaic_share: How often a sample becomes a mosaic.
        paste_share: How often a sample, mosaic or not, gets objects of another image.
        mosaic: What a mosaic is like.
        paste: How objects are pasted.
        donors: The objects; None where there are none.
        finish: What is done to a mosaic after it is laid out; keeps its size.
    """

    mosaic_share: float
    paste_share: float
    mosaic: Mosaic
    paste: Paste
    donors: Donors | None
    finish: Transform

    def wants_mosaic(self, rng: np.random.Generator) -> bool:
        """Whether this sample is one; the generator's first draw."""
        return bool(rng.random() < self.mosaic_share)


def counts_when_mixed(counts: Sequence[int], mosaic: float, copy_paste: float) -> Sequence[int]:
    """How many boxes a sample may have, of images with so many, where some are mixed."""
    most = sum(sorted(counts)[-PIECES:]) if mosaic else max(counts)
    most += Paste().most if copy_paste else 0
    return range(most + 1) if mosaic or copy_paste else counts


def build_mixing(
    mosaic: float,
    copy_paste: float,
    kind: AugmentKind,
    preprocess: PreprocessConfig,
    records: Sequence[ImageRecord],
) -> Mixing | None:
    """The mixing that goes with an augmentation; None where nothing is mixed.

    Args:
        mosaic: How often a sample becomes a mosaic, 0 to 1.
        copy_paste: How often a sample gets objects of another image, 0 to 1.
        kind: The augmentation, of which a mosaic gets flips and colors.
        preprocess: The input at inference.
        records: The images that are mixed.

    Raises:
        ConfigError: mixing without augmentation.
    """
    if not mosaic and not copy_paste:
        return None
    if kind == "none":
        name, value = ("mosaic", mosaic) if mosaic else ("copy_paste", copy_paste)
        raise ConfigError(
            f"augment 'none' and {name} {value:g} contradict each other",
            f"set augment to default or strong, or {name} to 0",
        )
    donors = find_donors(records) if copy_paste else None
    return Mixing(mosaic, copy_paste, Mosaic(preprocess), Paste(), donors, finishing(kind))
