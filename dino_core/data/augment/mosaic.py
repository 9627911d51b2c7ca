"""Mosaic: four images around a point of one canvas (after arXiv 2004.10934, 3.3).

It differs in the scale of the pieces. YOLOX's small models show each piece at 0.5 to 1.5 times the
input's size (`exps/default/yolox_tiny.py`), DEIM's detection transformers at 0.25 to 0.75 (its
`Mosaic`: 320 for an input of 640, times 0.5 to 1.5). Here it is 0.5 to 1, so that an object never
has less than half the size that inference sees, and no image is enlarged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dino_core.config import PreprocessConfig
from dino_core.data.augment.scene import Scene, SizeHW, as_array, blank, make_scene, resize
from dino_core.data.augment.transforms import crop_near_box
from dino_core.processing.preprocess import resized_size

PIECES = 4


@dataclass(frozen=True)
class Piece:
    """An image that is not loaded yet.

    Attributes:
        size_hw: Its height and width in pixels.
        load: Loads the scene. Its long side has at least the given number of pixels, if the file's
            image has.
    """

    size_hw: SizeHW
    load: Callable[[int], Scene]


@dataclass(frozen=True)
class Mosaic:
    """Four images in the quarters around a random point.

    Each image is resized to its size at inference times a random factor, cropped where it is larger
    than its quarter, and placed in the quarter's corner at the point. The rest of the canvas has
    the mean color, which is zero for the network, like padding.

    Attributes:
        preprocess: The input at inference.
        low: Smallest factor.
        high: Largest factor.
        edge: Least distance of the point from each edge, as a share of the canvas.
        min_visible: A box is dropped if at most this share of its area is left.
    """

    preprocess: PreprocessConfig
    low: float = 0.5
    high: float = 1.0
    edge: float = 0.3
    min_visible: float = 0.25

    def final_size(self, size_hw: SizeHW) -> SizeHW:
        """The (height, width) of a mosaic whose first image has that size."""
        return self.preprocess.canvas or resized_size(size_hw, self.preprocess)

    def __call__(self, pieces: Sequence[Piece], rng: np.random.Generator) -> Scene:
        """The mosaic of `PIECES` pieces, in a random order."""
        # The first image decides, as it is the one whose key the batch was formed by.
        size_hw = self.final_size(pieces[0].size_hw)
        center_y, center_x = (round(s * rng.uniform(self.edge, 1 - self.edge)) for s in size_hw)
        rows = (slice(0, center_y), slice(center_y, size_hw[0]))
        columns = (slice(0, center_x), slice(center_x, size_hw[1]))
        # uint8 colors cannot hit the mean exactly, so the network sees values of nearly zero.
        canvas = blank(size_hw, [round(level * 255) for level in self.preprocess.mean])
        boxes, labels = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]
        # 0 and 1 are above the point, 2 and 3 below; odd ones are to the right.
        for quarter, number in enumerate(rng.permutation(PIECES)):
            below, right = divmod(quarter, 2)
            room = (
                rows[below].stop - rows[below].start,
                columns[right].stop - columns[right].start,
            )
            if 0 in room:  # the canvas is only a pixel or two high
                continue
            scene = self._fitted(pieces[number], room, rng)
            height, width = scene.size_hw
            # Each piece touches the point with a corner, so that gaps are at the edges of the
            # canvas only.
            top = center_y if below else center_y - height
            left = center_x if right else center_x - width
            canvas[top : top + height, left : left + width] = as_array(scene.image)
            boxes.append(scene.boxes.as_subclass(Tensor) + torch.tensor([left, top, left, top]))
            labels.append(scene.labels)
        return make_scene(canvas, torch.cat(boxes), torch.cat(labels))

    def _fitted(self, piece: Piece, room: SizeHW, rng: np.random.Generator) -> Scene:
        """The piece at its random size, cropped where it is larger than `room`."""
        factor = rng.uniform(self.low, self.high)
        height, width = (
            max(1, round(side * factor)) for side in resized_size(piece.size_hw, self.preprocess)
        )
        # The file is decoded only as large as needed: a mosaic decodes four of them.
        scene = resize(piece.load(max(height, width)), (height, width))
        window = (min(height, room[0]), min(width, room[1]))
        return crop_near_box(scene, window, self.min_visible, rng)
