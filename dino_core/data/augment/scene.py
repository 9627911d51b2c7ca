"""An image with its boxes while it is augmented, and operations on both at once.

This is the only module that uses torchvision, whose v2 kernels resize pixels and move boxes. Plain
copies of pixels use NumPy: torch would start threads for them, competing with the training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

SizeHW = tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """An image with its boxes while it is augmented.

    Attributes:
        image: (3, H, W) uint8, a torchvision Image.
        boxes: (N, 4) float32 corners in pixels of `image`, torchvision BoundingBoxes.
        labels: (N,) int64.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor

    @property
    def size_hw(self) -> SizeHW:
        return self.image.shape[-2], self.image.shape[-1]


def make_scene(image: NDArray[np.uint8], boxes_xyxy_px: Tensor, labels: Tensor) -> Scene:
    """A scene from an (H, W, 3) uint8 array and its boxes in pixels of that array."""
    size = (image.shape[0], image.shape[1])
    return Scene(
        tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),  # H, W, 3 -> 3, H, W
        _as_boxes(boxes_xyxy_px, size),
        labels,
    )


def _as_boxes(boxes_xyxy_px: Tensor, size_hw: SizeHW) -> Tensor:
    boxes: Tensor = tv_tensors.BoundingBoxes(
        boxes_xyxy_px, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size_hw
    )
    return boxes


def _areas(boxes: Tensor) -> Tensor:
    sides = boxes[:, 2:] - boxes[:, :2]
    return sides[:, 0] * sides[:, 1]


def select(scene: Scene, keep: Tensor) -> Scene:
    """The scene with only those boxes where `keep` (N,) bool is True."""
    if bool(keep.all()):
        return scene
    boxes = scene.boxes.as_subclass(Tensor)[keep]
    return replace(scene, boxes=_as_boxes(boxes, scene.size_hw), labels=scene.labels[keep])


def resize(scene: Scene, size_hw: SizeHW) -> Scene:
    """The scene at another size, by antialiased bilinear interpolation of uint8."""
    if scene.size_hw == size_hw:
        return scene
    size = list(size_hw)
    return replace(
        scene,
        image=F.resize(scene.image, size, antialias=True),
        boxes=F.resize(scene.boxes, size),
    )


def crop(scene: Scene, top: int, left: int, size_hw: SizeHW, min_visible: float) -> Scene:
    """Crop a window, in pixels. A box is dropped if at most `min_visible` of its area remains."""
    height, width = size_hw
    # Measured before the crop, which clips the boxes to the window.
    before = _areas(scene.boxes.as_subclass(Tensor))
    boxes = F.crop(scene.boxes, top, left, height, width)
    seen = _areas(boxes.as_subclass(Tensor)) > before * min_visible
    pixels = as_array(scene.image)[top : top + height, left : left + width]
    return select(with_pixels(replace(scene, boxes=boxes), pixels), seen)


def flip(scene: Scene) -> Scene:
    """Flip horizontally."""
    # Only the boxes go through torchvision. For pixels, torch would start threads that compete with
    # the training step.
    mirrored = replace(scene, boxes=F.horizontal_flip(scene.boxes))
    return with_pixels(mirrored, np.asarray(cv2.flip(as_array(scene.image), 1), np.uint8))


def pad(scene: Scene, top: int, left: int, size_hw: SizeHW, color: Sequence[int]) -> Scene:
    """Place the scene on a canvas of one color, its top left corner at (top, left) in pixels."""
    height, width = scene.size_hw
    edges = [left, top, size_hw[1] - width - left, size_hw[0] - height - top]
    canvas = blank(size_hw, color)
    canvas[top : top + height, left : left + width] = as_array(scene.image)
    return with_pixels(replace(scene, boxes=F.pad(scene.boxes, edges)), canvas)


def blank(size_hw: SizeHW, color: Sequence[int]) -> NDArray[np.uint8]:
    """(H, W, 3) pixels of one color."""
    canvas = np.empty((*size_hw, 3), np.uint8)
    cv2.rectangle(canvas, (0, 0), (size_hw[1], size_hw[0]), [float(c) for c in color], cv2.FILLED)
    return canvas


def with_pixels(scene: Scene, pixels: NDArray[np.uint8]) -> Scene:
    """The scene with other (H, W, 3) pixels, which its boxes must fit already."""
    # A crop is a view. Without a copy it would keep the whole larger image in memory.
    tensor = torch.from_numpy(np.ascontiguousarray(pixels))
    return replace(scene, image=tv_tensors.Image(tensor.permute(2, 0, 1)))  # H, W, 3 -> 3, H, W


def as_array(image: Tensor) -> NDArray[np.uint8]:
    """The (H, W, 3) array of a (3, H, W) tensor, without a copy if it was made from an array."""
    array: NDArray[np.uint8] = image.as_subclass(Tensor).permute(1, 2, 0).contiguous().numpy()
    return array
