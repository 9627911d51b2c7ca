"""`Detector`: a model and images in, predictions out; the same code for torch and ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino_core.config import MIN_IMAGE_SIZE
from dino_core.detections import ClassMap
from dino_core.errors import ConfigError, DinoError
from dino_core.inference.pipeline import (
    Pipeline,
    PreparedImage,
    RawOutput,
    Runtime,
    group_by_shape,
    ms_since,
)
from dino_core.inference.prediction import Prediction, failed
from dino_core.inference.runtimes import open_runtime
from dino_core.inference.sources import Frame, open_sources
from dino_core.metadata import CheckpointMeta
from dino_core.processing.preprocess import at_image_size, to_rgb_array

if TYPE_CHECKING:
    from dino_core.models.dino import Dino

ImageLike: TypeAlias = "str | Path | NDArray[np.generic] | Image.Image | Frame"

# To find images of one shape for a batch, prediction looks this many batches ahead, ...
_WINDOW_BATCHES = 4
# ... but stops once the originals in the window have this many pixels, which take 300 MB.
_WINDOW_PIXELS = 100_000_000


@dataclass(frozen=True)
class _Selection:
    """Which detections are returned: arguments of `Detector.predict`, checked and resolved."""

    threshold: float
    max_detections: int
    columns: tuple[int, ...]


class Detector:
    """Finds objects in images.

    Attributes:
        runtime: What runs the network.
        meta: The metadata of the model file.
        name: The model's name as it appears in results.
        classes: Meaning of the columns of the logits.
        pipeline: From images to raw outputs, with the size and normalization of the input.
    """

    def __init__(
        self,
        runtime: Runtime,
        meta: CheckpointMeta,
        name: str | None = None,
        image_size: int | None = None,
    ) -> None:
        """Combine a runtime with its metadata; `Detector.load` does so from a file.

        Args:
            runtime: What runs the network.
            meta: The metadata of the model.
            name: The model's name in results; the variant's where None.
            image_size: Long side of the network's input in pixels; the model's own where None.

        Raises:
            ConfigError: `image_size` is too small, or the runtime's input size is fixed.
        """
        if image_size is not None and image_size < MIN_IMAGE_SIZE:
            raise ConfigError(f"image size {image_size}: must be at least {MIN_IMAGE_SIZE}")
        if image_size is not None and runtime.input_hw is not None:
            height, width = runtime.input_hw
            raise ConfigError(
                f"this model takes images of {height}x{width} only, not of size {image_size}",
                "export it again with another --image-size",
            )
        self.runtime = runtime
        self.meta = meta
        self.name = name or meta.variant
        self.classes: ClassMap = meta.classes
        preprocess = at_image_size(meta.preprocess, image_size)
        self.pipeline = Pipeline(runtime.run, preprocess, runtime.input_hw or preprocess.canvas)

    @classmethod
    def load(
        cls,
        model: str | Path = "dino-nano",
        device: str = "auto",
        dtype: str = "auto",
        *,
        image_size: int | None = None,
    ) -> Detector:
        """Load a model.

        Args:
            model: A built-in name, or a `.safetensors`, `.onnx` or official `.pth` file.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            dtype: "auto" (fp32), "fp32", "bf16" or "fp16".
            image_size: Long side of the network's input in pixels; the model's own where None.

        Raises:
            CheckpointError: the model is missing or malformed.
            ConfigError: the device, dtype or image size is not possible.
        """
        runtime, meta = open_runtime(model, device, dtype)
        path = Path(model)
        return cls(runtime, meta, path.name if path.is_file() else str(model), image_size)

    @property
    def model(self) -> Dino:
        """The torch module.

        Raises:
            ConfigError: the model is an exported file, which has none.
        """
        from dino_core.inference.torch_runtime import TorchRuntime

        if not isinstance(self.runtime, TorchRuntime):
            raise ConfigError(
                f"{self.name} is an exported file and has no torch module",
                "load the model file that it was exported from",
            )
        return self.runtime.model

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        threshold: float = 0.4,
        max_detections: int = 100,
        classes: Sequence[str] | None = None,
        batch: int = 1,
    ) -> Iterator[Prediction]:
        """Detect objects in one image or many, lazily and in order.

        Images of one resized shape share a batch. None is padded, since padding would change its
        result; only a model of fixed input size pads.

        Args:
            images: Paths (also folders, videos and URLs), (H, W, 3) RGB uint8 arrays, Pillow
                images, or frames of `open_sources`, whose unreadable images become predictions
                with an `error`.
            threshold: Lowest score that is kept.
            max_detections: Maximum detections per image.
            classes: Names of the classes to look for; all where None.
            batch: Maximum images per forward pass.

        Returns:
            One `Prediction` per image, with boxes in xyxy pixels of the original image.

        Raises:
            ConfigError: a setting is out of range, or the model has no such class.
            DataError: while iterating: a path or array is not a readable image.
        """
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold {threshold}: must be from 0 to 1")
        if max_detections < 1:
            raise ConfigError(f"max_detections {max_detections}: must be at least 1")
        if batch < 1:
            raise ConfigError(f"batch {batch}: must be at least 1")
        names = [n for n in self.classes.names if n] if classes is None else list(classes)
        columns = tuple(sorted(set(self.classes.indices_of(names))))
        selection = _Selection(threshold, max_detections, columns)
        return self._predict(_frames(images), batch, selection)

    def _predict(
        self, frames: Iterator[Frame], batch: int, selection: _Selection
    ) -> Iterator[Prediction]:
        window = batch * _WINDOW_BATCHES if batch > 1 else 1
        while chunk := [(frame, self._prepare(frame)) for frame in _take(frames, window)]:
            done: dict[int, Prediction] = {}
            shapes = [
                None if image is None else self.pipeline.input_shape(image.size_hw)
                for _, image in chunk
            ]
            for rows in group_by_shape(shapes, batch):
                members = [(f, i) for f, i in (chunk[row] for row in rows) if i is not None]
                done |= zip(rows, self._detect(members, selection), strict=True)
            for index, (frame, _) in enumerate(chunk):
                # Not `done.get(index) or ...`, since a prediction without objects is falsy.
                yield done[index] if index in done else self._failed(frame)

    def _prepare(self, frame: Frame) -> PreparedImage | None:
        return None if frame.image is None else self.pipeline.prepare(frame.image)

    def _failed(self, frame: Frame) -> Prediction:
        error = frame.error.message if frame.error else "no image"
        return failed(frame.source, frame.name, self.name, error)

    def _detect(
        self, members: Sequence[tuple[Frame, PreparedImage]], selection: _Selection
    ) -> list[Prediction]:
        """Run one batch. Raises DinoError where the network's output is not finite."""
        outputs = self.pipeline.outputs([image for _, image in members])
        if not all(output.finite for output in outputs):
            raise DinoError(
                f"{self.name}: the network's output is not finite for "
                f"{', '.join(frame.source or 'an array' for frame, _ in members)}",
                "try --dtype fp32; if that is set already, the weights are damaged",
            )
        return [
            self._prediction(frame, image, output, selection)
            for (frame, image), output in zip(members, outputs, strict=True)
        ]

    def _prediction(
        self, frame: Frame, image: PreparedImage, output: RawOutput, selection: _Selection
    ) -> Prediction:
        start = time.perf_counter()
        decoded = output.decode(
            num_select=selection.max_detections,
            threshold=selection.threshold,
            allowed_classes=selection.columns,
        )
        height, width = image.size_hw
        return Prediction(
            boxes_xyxy_px=decoded.boxes_xyxy_px,
            scores=decoded.scores,
            class_ids=np.array(self.classes.source_ids, np.int64)[decoded.class_indices],
            labels=[self.classes.names[i] for i in decoded.class_indices],
            width=width,
            height=height,
            source=frame.source,
            name=frame.name,
            model=self.name,
            image=frame.image,
            frame=frame.frame,
            time_s=frame.time_s,
            fps=frame.fps,
            ms={
                "preprocess": image.ms,
                "model": output.ms,
                "postprocess": ms_since(start),
            },
        )


def _frames(images: ImageLike | Iterable[ImageLike]) -> Iterator[Frame]:
    """Yield every accepted kind of image as a frame."""
    if isinstance(images, (str, Path, np.ndarray, Image.Image, Frame)):
        images = [images]
    for image in images:
        if isinstance(image, Frame):
            yield image
        elif isinstance(image, (str, Path)):
            for frame in open_sources([image], prefetch=0):
                if frame.error is not None:
                    raise frame.error
                yield frame
        else:
            yield Frame("", "image", to_rgb_array(image))


def _take(frames: Iterator[Frame], count: int) -> Iterator[Frame]:
    """Yield the next `count` frames, fewer where they are very large."""
    pixels = 0
    for frame in islice(frames, count):
        yield frame
        pixels += 0 if frame.image is None else frame.image.shape[0] * frame.image.shape[1]
        if pixels >= _WINDOW_PIXELS:
            return
