"""Mixing: which training samples are made of several images, as mosaics or by pasted objects."""

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
        mosaic_share: Share of the samples that become a mosaic.
        paste_share: Share of the samples, mosaic or not, that get objects of another image.
        mosaic: Makes a mosaic.
        paste: Pastes objects.
        donors: The objects that can be pasted; None if there are none.
        finish: Applied to a mosaic after it is laid out; does not change its size.
    """

    mosaic_share: float
    paste_share: float
    mosaic: Mosaic
    paste: Paste
    donors: Donors | None
    finish: Transform

    def wants_mosaic(self, rng: np.random.Generator) -> bool:
        """Whether this sample is a mosaic; must be the generator's first draw."""
        return bool(rng.random() < self.mosaic_share)


def counts_when_mixed(counts: Sequence[int], mosaic: float, copy_paste: float) -> Sequence[int]:
    """The numbers of boxes that a sample may have.

    Args:
        counts: Number of boxes of each image.
        mosaic: Share of the samples that become a mosaic.
        copy_paste: Share of the samples that get objects of another image.
    """
    # The worst case: the fullest images meet in one mosaic.
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
    """The mixing that goes with an augmentation; None if nothing is mixed.

    Args:
        mosaic: Share of the samples that become a mosaic, 0 to 1.
        copy_paste: Share of the samples that get objects of another image, 0 to 1.
        kind: The augmentation. A mosaic gets its flips and colors, but not its geometry.
        preprocess: The input at inference.
        records: The training images.

    Raises:
        ConfigError: Mixing is requested without augmentation.
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
