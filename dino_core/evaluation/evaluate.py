"""Score a model on a data set: predictions of all images, then the COCO numbers.

Padding changes what DINO predicts (ALGORITHM, "Do better"), so a batch holds images of one resized
shape and no padding; only a model of fixed input size (ONNX) gets padded images.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dino_core.config import PreprocessConfig, TrainConfig
from dino_core.data.records import DatasetIndex, ImageRecord, SetApart
from dino_core.detections import ClassMap
from dino_core.errors import CheckpointError, DataError
from dino_core.evaluation.coco_metrics import Metrics, coco_metrics, coco_predictions
from dino_core.metadata import CheckpointMeta
from dino_core.processing.postprocess import Decoded, decode
from dino_core.processing.preprocess import (
    collate,
    fit_size,
    load_image,
    preprocess,
    resized_size,
)

if TYPE_CHECKING:
    from torch import nn

    from dino_core.inference.detector import Detector

Arrays: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]
Run: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.bool_]], Arrays]
"""images (B, 3, H, W), padding_mask (B, H, W) -> logits (B, Q, C), boxes_cxcywh (B, Q, 4)."""


@dataclass(frozen=True)
class EvaluationStarted:
    """Model and data fit together; nothing has been predicted yet.

    Attributes:
        images: Images to evaluate.
        classes: The data set's classes.
        warnings: Classes that the model lacks, and what reading the data repaired.
    """

    images: int
    classes: ClassMap
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationProgress:
    """`done` of `total` images are predicted; `ms_per_image` so far."""

    done: int
    total: int
    ms_per_image: float


@dataclass(frozen=True)
class EvaluationResult:
    """The end of an evaluation.

    Attributes:
        metrics: The numbers.
        records: The images, in data set order.
        predictions: Their predictions, class indices being the data set's.
        classes: The data set's classes.
    """

    metrics: Metrics
    records: tuple[ImageRecord, ...]
    predictions: tuple[Decoded, ...]
    classes: ClassMap

    def to_coco(self) -> list[dict[str, Any]]:
        """The content of `predictions.json`: COCO results in the data set's own ids."""
        return coco_predictions(self.records, self.predictions, self.classes)


EvaluationEvent: TypeAlias = EvaluationStarted | EvaluationProgress | EvaluationResult


def evaluate(
    model: str | Path | Detector,
    data: str | Path | DatasetIndex,
    split: str = "val",
    *,
    batch: int = 8,
    device: str = "auto",
    dtype: str = "auto",
) -> Metrics:
    """The COCO numbers of a model on one split of a data set.

    Args:
        model: A model's name, a `.safetensors` or `.onnx` file, or a loaded Detector.
        data: A data set's folder or file, or what `load_dataset` returned. Where a folder or file
            has no val split, that which the model's training set apart is taken.
        split: "train", "val" or "test".
        batch: The most images at once; they are of one shape.
        device: "auto", "cpu", "cuda", ...; a loaded Detector keeps its own.
        dtype: "auto", "fp32", "bf16" or "fp16"; a loaded Detector keeps its own.

    Raises:
        CheckpointError: the model cannot be read.
        DataError: the data cannot be read, has no such split, or shares no class with the model.
    """
    for event in evaluation_steps(model, data, split, batch=batch, device=device, dtype=dtype):
        if isinstance(event, EvaluationResult):
            return event.metrics
    raise AssertionError("an evaluation ends with its result")


def evaluation_steps(
    model: str | Path | Detector,
    data: str | Path | DatasetIndex,
    split: str = "val",
    *,
    batch: int = 8,
    device: str = "auto",
    dtype: str = "auto",
) -> Iterator[EvaluationEvent]:
    """As `evaluate`, telling what happens: one start, progress, and the result at the end."""
    from dino_core.data.load import load_dataset
    from dino_core.inference.detector import Detector

    dataset = data if isinstance(data, DatasetIndex) else load_dataset(data, val_split=0.0)
    detector = (
        model if isinstance(model, Detector) else Detector.load(model, device=device, dtype=dtype)
    )
    if not isinstance(data, DatasetIndex):
        dataset = with_val_of_training(dataset, detector.meta)
    records = split_records(dataset, split)
    columns, warnings = match_classes(detector.classes, dataset.classes)
    yield EvaluationStarted(len(records), dataset.classes, (*dataset.warnings, *warnings))
    yield from score(
        detector.runtime.run,
        records,
        dataset.classes,
        detector.preprocess,
        batch=batch,
        columns=columns,
        input_hw=detector.input_hw,
    )


def with_val_of_training(dataset: DatasetIndex, model: CheckpointMeta) -> DatasetIndex:
    """`dataset` with the val split that the model's training set apart, where it has none.

    Any other would hold images that the model was trained on. For a model that was not trained on
    such a set it is the one that training would make by default.
    """
    from dino_core.data.load import with_val

    default = SetApart(TrainConfig.val_split, TrainConfig.seed)
    told = model.training.get("set_apart", default._asdict())
    try:
        how = SetApart(float(told["share"]), int(told["seed"]))
        fits = 0 <= how.share < 1 and how.seed >= 0
    except (TypeError, KeyError, ValueError):
        fits = False
    if not fits:
        raise CheckpointError(f"the model's file tells its val split as {told!r:.80}")
    return with_val(dataset, how)


def torch_run(model: nn.Module, device: str, dtype: str) -> Run:
    """A torch model as a function of arrays, under inference mode and autocast."""
    import torch

    from dino_core.inference.torch_runtime import resolve_dtype, run_model

    where, arithmetic = torch.device(device), resolve_dtype(dtype)

    def run(images: NDArray[np.float32], padding_mask: NDArray[np.bool_]) -> Arrays:
        return run_model(model, images, padding_mask, where, arithmetic)

    return run


def split_records(dataset: DatasetIndex, split: str) -> tuple[ImageRecord, ...]:
    """The images of a split. Raises DataError where there are none."""
    records = dataset.splits.get(split, ())
    if not records:
        found = ", ".join(f"{name} ({len(r)})" for name, r in dataset.splits.items()) or "none"
        raise DataError(
            f"{dataset.root}: no images in split '{split}'", f"splits with images: {found}"
        )
    return records


def match_classes(
    model_classes: ClassMap, data_classes: ClassMap
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Which of the data set's classes each column of the model means, by name.

    Returns:
        (C,) the data set's class index of each column, -1 where it has none; and a warning for
        classes that the model lacks, whose objects then count as missed.

    Raises:
        DataError: no class name in common.
    """
    index = {name: i for i, name in enumerate(data_classes.names) if name}
    columns = np.array([index.get(name, -1) for name in model_classes.names], np.int64)
    if not (columns >= 0).any():
        raise DataError(
            "the model and the data have no class name in common: the model knows "
            f"{_some(model_classes.names)}; the data has {_some(data_classes.names)}",
            "train a model on this data, or rename its classes",
        )
    known = set(model_classes.names)
    missing = [name for name in data_classes.names if name and name not in known]
    if not missing:
        return columns, ()
    warning = (
        f"the model knows {len(index) - len(missing)} of the data's {len(index)} classes; objects "
        f"of the others count as missed: {_some(missing)}"
    )
    return columns, (warning,)


def _some(names: Sequence[str], limit: int = 8) -> str:
    named = [name for name in names if name]
    rest = f" and {len(named) - limit} more" if len(named) > limit else ""
    return ", ".join(named[:limit]) + rest


def score(
    run: Run,
    records: Sequence[ImageRecord],
    classes: ClassMap,
    config: PreprocessConfig,
    *,
    batch: int = 8,
    columns: NDArray[np.int64] | None = None,
    input_hw: tuple[int, int] | None = None,
) -> Iterator[EvaluationProgress | EvaluationResult]:
    """Predict every image and compare: progress after each batch, then the result.

    Args:
        run: The network.
        records: The images with their boxes.
        classes: The data set's classes.
        config: The network's input.
        batch: The most images at once.
        columns: Class index of each of the network's columns, -1 for none; None: they are equal.
        input_hw: Size to which images are padded; None where each keeps its own.
    """
    predictions: dict[int, Decoded] = {}
    seconds = 0.0
    groups = shape_groups(records, config, batch, input_hw)
    for found, spent in predict_groups(run, records, groups, config, input_hw, columns):
        predictions.update(found)
        seconds += spent
        ms_per_image = 1000 * seconds / len(predictions)
        yield EvaluationProgress(len(predictions), len(records), ms_per_image)
    ordered = tuple(predictions[i] for i in range(len(records)))
    ms = 1000 * seconds / len(records) if records else None
    metrics = coco_metrics(records, ordered, classes, ms_per_image=ms)
    yield EvaluationResult(metrics, tuple(records), ordered, classes)


def predict_groups(
    run: Run,
    records: Sequence[ImageRecord],
    groups: Sequence[Sequence[int]],
    config: PreprocessConfig,
    input_hw: tuple[int, int] | None,
    columns: NDArray[np.int64] | None = None,
) -> Iterator[tuple[dict[int, Decoded], float]]:
    """Predict the images of each group together: index to prediction, and the seconds it took."""
    with ThreadPoolExecutor(max_workers=1) as reader:

        def read(group: Sequence[int]) -> list[_Input]:
            return [_read(records[i], config, input_hw) for i in group]

        waiting = reader.submit(read, groups[0]) if groups else None
        for number, group in enumerate(groups):
            started = time.perf_counter()
            assert waiting is not None
            inputs = waiting.result()
            if number + 1 < len(groups):
                waiting = reader.submit(read, groups[number + 1])
            decoded = _predict(run, inputs, columns, input_hw)
            yield dict(zip(group, decoded, strict=True)), time.perf_counter() - started


def shape_groups(
    records: Sequence[ImageRecord],
    config: PreprocessConfig,
    batch: int,
    input_hw: tuple[int, int] | None = None,
) -> list[list[int]]:
    """Indices of the images that go through the network together: at most `batch` of one shape."""
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        by_shape[input_hw or resized_size((record.height, record.width), config)].append(index)
    return [
        indices[start : start + batch]
        for indices in by_shape.values()
        for start in range(0, len(indices), batch)
    ]


@dataclass(frozen=True)
class _Input:
    """One image as the network sees it, and its original (height, width)."""

    pixels: NDArray[np.float32]
    size_hw: tuple[int, int]


def _read(
    record: ImageRecord, config: PreprocessConfig, input_hw: tuple[int, int] | None
) -> _Input:
    image = load_image(record.path)
    size_hw = (image.shape[0], image.shape[1])
    resized = resized_size(size_hw, config)
    if input_hw is not None:
        resized = fit_size(resized, input_hw)
    return _Input(preprocess(image, config, resized), size_hw)


def _predict(
    run: Run,
    inputs: Sequence[_Input],
    columns: NDArray[np.int64] | None,
    input_hw: tuple[int, int] | None,
) -> list[Decoded]:
    """Decode the network's output for each image."""
    if input_hw is None and len({i.pixels.shape for i in inputs}) > 1:
        # The data set states another size than the file has: one by one, never padded.
        return [d for i in inputs for d in _predict(run, [i], columns, None)]
    images, padding_mask = collate([i.pixels for i in inputs], input_hw)
    logits, boxes = run(images, padding_mask)
    return [
        _in_data_classes(decode(logits[n], boxes[n], i.size_hw), columns)
        for n, i in enumerate(inputs)
    ]


def _in_data_classes(decoded: Decoded, columns: NDArray[np.int64] | None) -> Decoded:
    """Rename columns to the data set's classes; objects of classes it lacks are left out.

    They are left out after the best 300 were chosen, as the published evaluation does with the
    unused columns of its heads.
    """
    if columns is None:
        return decoded
    indices = columns[decoded.class_indices]
    kept = indices >= 0
    return Decoded(decoded.boxes_xyxy_px[kept], decoded.scores[kept], indices[kept])
