"""The one way from images to detections: resize, batch images of one shape, run, decode.

Prediction, evaluation and export verification all go through `Pipeline`. Padding changes what DINO
predicts, because valid ratios, proposals and sampling offsets depend on the padding mask
(ALGORITHM, "Do better"). A batch therefore holds images of one resized shape; only a network of
fixed input size receives padded images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from dino_core.config import PreprocessConfig
from dino_core.inference.prefetch import prefetched
from dino_core.processing.postprocess import Decoded, decode
from dino_core.processing.preprocess import (
    UInt8Image,
    collate,
    fit_size,
    preprocess,
    resized_size,
)

T = TypeVar("T")

Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

Arrays: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]
Run: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.bool_]], Arrays]
"""images (B, 3, H, W), padding_mask (B, H, W) -> logits (B, Q, C), boxes_cxcywh (B, Q, 4)."""


class Runtime(Protocol):
    """What runs the network: PyTorch or the runtime of an exported file."""

    @property
    def input_hw(self) -> Size | None:
        """Fixed input size to which images are padded; None where any size is accepted."""

    def run(self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_]) -> Arrays:
        """(B, 3, H, W), (B, H, W) True on padding -> logits (B, Q, C), boxes_cxcywh (B, Q, 4)."""


@dataclass(frozen=True)
class PreparedImage:
    """One image as network input.

    Attributes:
        pixels: (3, h, w) float32, resized and normalized, without padding.
        size_hw: Height and width of the original image.
        ms: Milliseconds that the preparation took.
    """

    pixels: NDArray[np.float32]
    size_hw: Size
    ms: float


@dataclass(frozen=True)
class RawOutput:
    """What the network returns for one image.

    Attributes:
        logits: (Q, C) float32.
        boxes_cxcywh: (Q, 4) float32, normalized to the image without padding.
        size_hw: Height and width of the original image.
        ms: Milliseconds in the network: those of the batch divided by its images.
    """

    logits: NDArray[np.float32]
    boxes_cxcywh: NDArray[np.float32]
    size_hw: Size
    ms: float = 0.0

    @property
    def finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return bool(np.isfinite(self.logits).all() and np.isfinite(self.boxes_cxcywh).all())

    def decode(
        self,
        *,
        num_select: int = 300,
        threshold: float = 0.0,
        allowed_classes: Sequence[int] | None = None,
    ) -> Decoded:
        """The detections, best score first; arguments as in `processing.postprocess.decode`."""
        return decode(
            self.logits,
            self.boxes_cxcywh,
            self.size_hw,
            num_select=num_select,
            threshold=threshold,
            allowed_classes=allowed_classes,
        )


@dataclass(frozen=True)
class Pipeline:
    """A network together with how images become its input.

    Attributes:
        run: The network as a function of arrays.
        preprocess: Sizes, mean and standard deviation of the input.
        input_hw: Fixed size to which images are padded; None where each keeps its own.
    """

    run: Run
    preprocess: PreprocessConfig
    input_hw: Size | None

    def input_shape(self, size_hw: Size) -> Size:
        """(H, W) of the network input of an image whose original size is `size_hw`."""
        return self.input_hw or resized_size(size_hw, self.preprocess)

    def prepare(self, image: UInt8Image) -> PreparedImage:
        """Resize and normalize an (H, W, 3) RGB uint8 image."""
        start = time.perf_counter()
        size_hw = (image.shape[0], image.shape[1])
        resized_hw = resized_size(size_hw, self.preprocess)
        if self.input_hw is not None:
            # A fixed input cannot grow. A very long image is shrunk further until it fits.
            resized_hw = fit_size(resized_hw, self.input_hw)
        pixels = preprocess(image, self.preprocess, resized_hw)
        return PreparedImage(pixels, size_hw, ms_since(start))

    def collate(
        self, images: Sequence[PreparedImage]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Stack images (B, 3, H, W) with their padding_mask (B, H, W), at the fixed size if any."""
        return collate([image.pixels for image in images], self.input_hw)

    def outputs(self, images: Sequence[PreparedImage]) -> list[RawOutput]:
        """Run the network on images of one shape as one batch.

        Images of several shapes would need padding, so without a fixed input size each of them is
        run alone.
        """
        # Padding would change the predictions (module docstring), so a mixture costs speed and not
        # accuracy.
        if self.input_hw is None and len({image.pixels.shape for image in images}) > 1:
            return [output for image in images for output in self.outputs([image])]
        start = time.perf_counter()
        logits, boxes = self.run(*self.collate(images))
        # The time of the batch cannot be divided more exactly.
        ms = ms_since(start) / len(images)
        return [
            RawOutput(logits[row], boxes[row], image.size_hw, ms)
            for row, image in enumerate(images)
        ]

    def outputs_of_groups(
        self, groups: Sequence[Sequence[T]], read: Callable[[T], UInt8Image]
    ) -> Iterator[list[RawOutput]]:
        """Read and run one group of images after the other.

        While the network runs on a group, a thread reads and prepares the images of the next one.
        At most two groups and one image are in memory.

        Args:
            groups: What to read; each group is one batch.
            read: Reads one image as (H, W, 3) RGB uint8. Its exceptions are raised here.
        """
        # A whole group, so the next batch is complete when the network has finished this one.
        ahead = max((len(group) for group in groups), default=1)
        prepared = (self.prepare(read(item)) for group in groups for item in group)
        # `closing` ends the thread where the consumer stops early or an image raises.
        with closing(prefetched(prepared, ahead)) as images:
            for group in groups:
                yield self.outputs(list(islice(images, len(group))))


def group_by_shape(shapes: Sequence[Size | None], batch: int) -> list[list[int]]:
    """Indices of images that may share a batch.

    Args:
        shapes: Network input shape of each image; None for one that could not be read, which
            belongs to no group.
        batch: Maximum images per group.

    Returns:
        Groups of indices of one shape, in the order in which the shapes first occur.
    """
    by_shape: dict[Size, list[int]] = {}
    for index, shape in enumerate(shapes):
        if shape is not None:
            by_shape.setdefault(shape, []).append(index)
    return [
        indices[start : start + batch]
        for indices in by_shape.values()
        for start in range(0, len(indices), batch)
    ]


def ms_since(start: float) -> float:
    """Milliseconds since a value of `time.perf_counter`."""
    return (time.perf_counter() - start) * 1000
