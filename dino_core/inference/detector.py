"""`Detector`: a model file and pictures in, predictions out; the same code for torch and ONNX."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino_core.config import PreprocessConfig
from dino_core.detections import ClassMap
from dino_core.errors import ConfigError, DinoError
from dino_core.inference.prediction import Prediction, failed
from dino_core.inference.sources import Frame, open_sources
from dino_core.metadata import CheckpointMeta
from dino_core.processing.postprocess import decode
from dino_core.processing.preprocess import (
    UInt8Image,
    at_image_size,
    collate,
    fit_size,
    preprocess,
    resized_size,
    to_rgb_array,
)

if TYPE_CHECKING:
    from dino_core.models.dino import Dino

ImageLike: TypeAlias = "str | Path | NDArray[np.generic] | Image.Image | Frame"

_MIN_IMAGE_SIZE = 32
_WINDOW_BATCHES = 4  # pictures looked ahead, in batches, to find some of one shape
_WINDOW_PIXELS = 100_000_000  # and no more than these, which take 300 MB


class Runtime(Protocol):
    """What runs the network."""

    @property
    def input_hw(self) -> tuple[int, int] | None:
        """Fixed input size, to which images are padded; None where every size is taken."""

    def run(
        self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(B, 3, H, W), (B, H, W) True on padding -> logits (B, Q, C), boxes_cxcywh (B, Q, 4)."""


@dataclass(frozen=True)
class _Prepared:
    """A picture as network input; `pixels` is None where it could not be read."""

    frame: Frame
    pixels: NDArray[np.float32] | None
    ms: float


class Detector:
    """Finds objects in pictures.

    Attributes:
        runtime: What runs the network.
        meta: What the model file says about itself.
        name: The model's name as it stands in results.
        classes: What the columns of the logits mean.
        preprocess: How pictures become network input.
        input_hw: The size to which pictures are padded; None where each keeps its own.
    """

    def __init__(
        self,
        runtime: Runtime,
        meta: CheckpointMeta,
        name: str | None = None,
        image_size: int | None = None,
    ) -> None:
        """Put a runtime and its metadata together; `Detector.load` does so from a file.

        Raises:
            ConfigError: `image_size` is too small, or the runtime's input size is fixed.
        """
        if image_size is not None and image_size < _MIN_IMAGE_SIZE:
            raise ConfigError(f"image size {image_size}: must be at least {_MIN_IMAGE_SIZE}")
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
        self.preprocess: PreprocessConfig = at_image_size(meta.preprocess, image_size)
        self.input_hw: tuple[int, int] | None = runtime.input_hw or self.preprocess.canvas

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
            ConfigError: the device, dtype or image size cannot be.
        """
        path = Path(model)
        if path.suffix.lower() == ".onnx":
            return cls._load_onnx(path, device, dtype, image_size)
        from dino_core.checkpoints.io import build_model
        from dino_core.checkpoints.zoo import load
        from dino_core.inference.torch_runtime import TorchRuntime, resolve_device, resolve_dtype

        resolve_device(device)  # refused before the weights are read
        resolve_dtype(dtype)
        checkpoint = load(model)
        runtime = TorchRuntime(build_model(checkpoint), device, dtype)
        name = path.name if path.is_file() else str(model)
        return cls(runtime, checkpoint.meta, name, image_size)

    @classmethod
    def _load_onnx(cls, path: Path, device: str, dtype: str, image_size: int | None) -> Detector:
        from dino_core.inference.onnx_runtime import OnnxRuntime

        if dtype not in ("auto", "fp32"):
            raise ConfigError(
                f"{path}: the dtype of an ONNX file is fixed when it is exported, not '{dtype}'"
            )
        runtime = OnnxRuntime(path, device)
        return cls(runtime, runtime.meta, path.name, image_size)

    @property
    def model(self) -> Dino:
        """The torch module. Raises ConfigError for an ONNX model, which has none."""
        model = getattr(self.runtime, "model", None)
        if model is None:
            raise ConfigError(f"{self.name} runs in ONNX Runtime and has no torch module")
        return cast("Dino", model)

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        threshold: float = 0.4,
        max_detections: int = 100,
        classes: Sequence[str] | None = None,
        batch: int = 1,
    ) -> Iterator[Prediction]:
        """Detect in one picture or many, lazily and in their order.

        Pictures of one resized shape share a batch; none is padded, since that would change its
        result (only a model of fixed input size pads).

        Args:
            images: Paths (also folders, videos and URLs), (H, W, 3) RGB uint8 arrays, Pillow
                images, or frames of `open_sources`, whose unreadable pictures become predictions
                with an `error`.
            threshold: The lowest score kept.
            max_detections: The most detections of a picture.
            classes: Names of the classes to look for; all where None.
            batch: The most pictures at a time.

        Raises:
            ConfigError: a setting is out of range, or the model has no such class.
            DataError: while iterating: a path or array is not a readable picture.
        """
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold {threshold}: must be from 0 to 1")
        if max_detections < 1:
            raise ConfigError(f"max_detections {max_detections}: must be at least 1")
        if batch < 1:
            raise ConfigError(f"batch {batch}: must be at least 1")
        names = [n for n in self.classes.names if n] if classes is None else list(classes)
        columns = sorted(set(self.classes.indices_of(names)))
        return self._predict(_frames(images), threshold, max_detections, columns, batch)

    def _predict(
        self,
        frames: Iterator[Frame],
        threshold: float,
        max_detections: int,
        columns: list[int],
        batch: int,
    ) -> Iterator[Prediction]:
        window = batch * _WINDOW_BATCHES if batch > 1 else 1
        while chunk := [self._prepare(frame) for frame in _take(frames, window)]:
            done: dict[int, Prediction] = {}
            for rows in _batches([p.pixels for p in chunk], batch, self.input_hw):
                done |= self._detect(chunk, rows, threshold, max_detections, columns)
            for index, prepared in enumerate(chunk):
                # Not `done.get(index) or`: a prediction without objects is falsy.
                yield done[index] if index in done else self._failed(prepared.frame)

    def _prepare(self, frame: Frame) -> _Prepared:
        if frame.image is None:
            return _Prepared(frame, None, 0.0)
        start = time.perf_counter()
        size_hw = resized_size(_size_hw(frame.image), self.preprocess)
        if self.input_hw is not None:
            size_hw = fit_size(size_hw, self.input_hw)
        pixels = preprocess(frame.image, self.preprocess, size_hw)
        return _Prepared(frame, pixels, _ms_since(start))

    def _failed(self, frame: Frame) -> Prediction:
        error = frame.error.message if frame.error else "no picture"
        return failed(frame.source, frame.name, self.name, error)

    def _detect(
        self,
        chunk: list[_Prepared],
        rows: list[int],
        threshold: float,
        max_detections: int,
        columns: list[int],
    ) -> dict[int, Prediction]:
        """Predictions of `rows` of `chunk`, which go through the network together."""
        start = time.perf_counter()
        pixels = [cast("NDArray[np.float32]", chunk[row].pixels) for row in rows]
        logits, boxes = self.runtime.run(*collate(pixels, self.input_hw))
        model_ms = _ms_since(start) / len(rows)
        if not (np.isfinite(logits).all() and np.isfinite(boxes).all()):
            raise DinoError(
                f"{self.name}: the network's output is not finite for "
                f"{', '.join(chunk[row].frame.source or 'an array' for row in rows)}",
                "try --dtype fp32; if it is that already, the weights are damaged",
            )
        found: dict[int, Prediction] = {}
        for place, row in enumerate(rows):
            start = time.perf_counter()
            frame = chunk[row].frame
            image = cast(UInt8Image, frame.image)
            decoded = decode(
                logits[place],
                boxes[place],
                _size_hw(image),
                num_select=max_detections,
                threshold=threshold,
                allowed_classes=columns,
            )
            found[row] = Prediction(
                boxes_xyxy_px=decoded.boxes_xyxy_px,
                scores=decoded.scores,
                class_ids=np.array(self.classes.source_ids, np.int64)[decoded.class_indices],
                labels=[self.classes.names[i] for i in decoded.class_indices],
                width=image.shape[1],
                height=image.shape[0],
                source=frame.source,
                name=frame.name,
                model=self.name,
                image=image,
                frame=frame.frame,
                time_s=frame.time_s,
                fps=frame.fps,
                ms={
                    "preprocess": chunk[row].ms,
                    "model": model_ms,
                    "postprocess": _ms_since(start),
                },
            )
        return found


def _frames(images: ImageLike | Iterable[ImageLike]) -> Iterator[Frame]:
    """Every accepted form of pictures as frames."""
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
    """The next `count` frames, fewer where they are very large."""
    pixels = 0
    for frame in islice(frames, count):
        yield frame
        pixels += 0 if frame.image is None else frame.image.shape[0] * frame.image.shape[1]
        if pixels >= _WINDOW_PIXELS:
            return


def _batches(
    pixels: Sequence[NDArray[np.float32] | None], batch: int, input_hw: tuple[int, int] | None
) -> Iterator[list[int]]:
    """Rows that may share a batch: of one shape, or of any where all are padded anyway."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(pixels):
        if image is not None:
            groups.setdefault(input_hw or image.shape, []).append(row)
    for rows in groups.values():
        for start in range(0, len(rows), batch):
            yield rows[start : start + batch]


def _size_hw(image: UInt8Image) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000
