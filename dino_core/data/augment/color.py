"""Color augmentation as one affine map of RGB: brightness, contrast, saturation, hue at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_core.data.augment.scene import Scene, SizeHW, as_array, with_pixels

_LUMA = np.array([0.299, 0.587, 0.114])
# ITU-R BT.601 and the NTSC standard.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue.

    Attributes:
        brightness: Largest relative change.
        contrast: Largest relative change, around the image's mean gray.
        saturation: Largest relative change.
        hue: Largest rotation around the gray axis, as a fraction of the full circle.
        probability: Share of the images that are changed.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float = 0.0
    probability: float = 0.8

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        if rng.random() >= self.probability:
            return scene
        pixels = as_array(scene.image)
        # One pass over the pixels for all four changes. The draws are evaluated in this order.
        matrix = color_matrix(
            1 + rng.uniform(-self.brightness, self.brightness),
            1 + rng.uniform(-self.contrast, self.contrast),
            1 + rng.uniform(-self.saturation, self.saturation),
            rng.uniform(-self.hue, self.hue),
            mean_gray=float(_LUMA @ cv2.mean(pixels)[:3]),
        )
        changed = cv2.transform(pixels, matrix.astype(np.float32))  # clips to 0..255
        return with_pixels(scene, np.asarray(changed, np.uint8))

    def final_size(self, size_hw: SizeHW, rng: np.random.Generator) -> SizeHW:
        return size_hw  # nothing that draws follows the colors, so no draw is needed


def color_matrix(
    brightness: float, contrast: float, saturation: float, hue: float, mean_gray: float
) -> NDArray[np.float64]:
    """(3, 4) affine map of RGB in 0..255: hue, then saturation, contrast and brightness.

    Args:
        brightness: Factor of every value.
        contrast: Factor of the distance from `mean_gray`.
        saturation: Factor of the distance from the pixel's own gray.
        hue: Rotation in the IQ plane of YIQ, as a fraction of the full circle.
        mean_gray: The gray level that contrast does not change, 0..255.
    """
    turn = 2 * math.pi * hue
    rotation = np.array(
        [
            [1, 0, 0],
            [0, math.cos(turn), -math.sin(turn)],
            [0, math.sin(turn), math.cos(turn)],
        ]
    )
    # To YIQ, rotate, and back: inverse(YIQ) @ rotation @ YIQ.
    hue_map = np.linalg.solve(_YIQ, rotation @ _YIQ)
    gray_map = np.tile(_LUMA, (3, 1))
    saturation_map = saturation * np.eye(3) + (1 - saturation) * gray_map
    linear = brightness * contrast * saturation_map @ hue_map
    offset = brightness * (1 - contrast) * mean_gray
    return np.hstack([linear, np.full((3, 1), offset)])
