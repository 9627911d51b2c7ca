"""Score a model on a data set: predict all images, then compute the COCO numbers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dino_core.config import TrainConfig
from dino_core.data.records import DatasetIndex, ImageRecord, SetApart
from dino_core.detections import ClassMap
from dino_core.errors import CheckpointError, DataError
from dino_core.evaluation.coco_metrics import Metrics, coco_metrics, coco_predictions
from dino_core.inference.pipeline import Pipeline, group_by_shape
from dino_core.metadata import CheckpointMeta
from dino_core.processing.postprocess import Decoded
from dino_core.processing.preprocess import load_image

if TYPE_CHECKING:
    from dino_core.inference.detector import Detector


@dataclass(frozen=True)
class EvaluationProgress:
    """Progress after one batch.

    Attributes:
        done: Images predicted so far.
        total: Images to predict.
        ms_per_image: Average milliseconds per image so far, reading included.
    """

    done: int
    total: int
    ms_per_image: float


@dataclass(frozen=True)
class EvaluationResult:
    """The metrics of an evaluation and what they were computed from.

    Attributes:
        metrics: The COCO numbers.
        records: The images, in data set order.
        predictions: Their predictions, with the data set's class indices.
        classes: The data set's classes.
    """

    metrics: Metrics
    records: tuple[ImageRecord, ...]
    predictions: tuple[Decoded, ...]
    classes: ClassMap

    def to_coco(self) -> list[dict[str, Any]]:
        """The content of `predictions.json`: COCO results with the data set's own ids."""
        return coco_predictions(self.records, self.predictions, self.classes)


class Evaluation:
    """One evaluation: iterate over it to follow its progress, then `finish` returns the result.

        evaluation = start_evaluation("dino-nano", "data/")
        for progress in evaluation:
            print(progress.done, "of", progress.total)
        print(evaluation.finish().metrics.ap)

    The iteration may be left out or left early; `finish` predicts whatever images are left.

    Attributes:
        records: The images to evaluate.
        classes: The data set's classes.
        warnings: What the caller should show before the evaluation, e.g. classes that the model
            lacks.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        records: Sequence[ImageRecord],
        classes: ClassMap,
        *,
        batch: int = 8,
        columns: NDArray[np.int64] | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        """Prepare the evaluation; nothing is predicted yet.

        Args:
            pipeline: The network and its input.
            records: The images with their boxes.
            classes: The data set's classes.
            batch: Maximum images per forward pass.
            columns: (C,) data set class index of each column of the network, -1 for none; None
                where they are equal.
            warnings: Stored as `warnings`.
        """
        self.records = tuple(records)
        self.classes = classes
        self.warnings = warnings
        self._pipeline = pipeline
        self._columns = columns
        self._groups = shape_groups(pipeline, records, batch)
        self._groups_done = 0
        self._predictions: dict[int, Decoded] = {}
        self._seconds = 0.0

    def __iter__(self) -> Iterator[EvaluationProgress]:
        """Predict the images that are left, with one progress value after each batch.

        Raises:
            DataError: an image cannot be read.
        """
        left = self._groups[self._groups_done :]
        for found, seconds in predict_groups(self._pipeline, self.records, left, self._columns):
            self._predictions.update(found)
            self._seconds += seconds
            self._groups_done += 1
            done = len(self._predictions)
            yield EvaluationProgress(done, len(self.records), 1000 * self._seconds / done)

    def finish(self) -> EvaluationResult:
        """Predict the images that are left and compute the metrics.

        Raises:
            DataError: an image cannot be read.
        """
        for _ in self:
            pass
        ordered = tuple(self._predictions[i] for i in range(len(self.records)))
        return scored(self.records, ordered, self.classes, self._seconds)


def scored(
    records: Sequence[ImageRecord],
    predictions: tuple[Decoded, ...],
    classes: ClassMap,
    seconds: float,
) -> EvaluationResult:
    """The result of an evaluation; `seconds` is what the predictions of all images took."""
    ms = 1000 * seconds / len(records) if records else None
    metrics = coco_metrics(records, predictions, classes, ms_per_image=ms)
    return EvaluationResult(metrics, tuple(records), predictions, classes)


def evaluate(
    model: str | Path | Detector,
    data: str | Path | DatasetIndex,
    split: str = "val",
    *,
    batch: int = 8,
    device: str = "auto",
    dtype: str = "auto",
) -> Metrics:
    """Compute the COCO numbers of a model on one split of a data set.

    Args:
        model: A model's name, a `.safetensors` or `.onnx` file, or a loaded Detector.
        data: A data set's folder or file, or what `load_dataset` returned. Where a folder or file
            has no val split, the images that the model's training set apart are used.
        split: "train", "val" or "test".
        batch: Maximum images per forward pass; a batch holds images of one shape.
        device: "auto", "cpu", "cuda", ...; a loaded Detector keeps its own.
        dtype: "auto", "fp32", "bf16" or "fp16"; a loaded Detector keeps its own.

    Raises:
        CheckpointError: the model cannot be read.
        DataError: the data cannot be read, has no such split, or shares no class with the model.
    """
    evaluation = start_evaluation(model, data, split, batch=batch, device=device, dtype=dtype)
    return dataclasses.replace(evaluation.finish().metrics, warnings=evaluation.warnings)


def start_evaluation(
    model: str | Path | Detector,
    data: str | Path | DatasetIndex,
    split: str = "val",
    *,
    batch: int = 8,
    device: str = "auto",
    dtype: str = "auto",
) -> Evaluation:
    """Load model and data for an evaluation whose progress the caller follows.

    Arguments and errors are those of `evaluate`.
    """
    from dino_core.data.load import load_dataset, require_split
    from dino_core.inference.detector import Detector

    dataset = data if isinstance(data, DatasetIndex) else load_dataset(data, val_split=0.0)
    detector = (
        model if isinstance(model, Detector) else Detector.load(model, device=device, dtype=dtype)
    )
    if not isinstance(data, DatasetIndex):
        dataset = with_val_of_training(dataset, detector.meta)
    records = require_split(dataset, split)
    columns, warnings = match_classes(detector.classes, dataset.classes)
    return Evaluation(
        detector.pipeline,
        records,
        dataset.classes,
        batch=batch,
        columns=columns,
        warnings=(*dataset.warnings, *warnings),
    )


def with_val_of_training(dataset: DatasetIndex, model: CheckpointMeta) -> DatasetIndex:
    """Return `dataset` with the val split that the model's training set apart, if it has none.

    Any other split would contain images that the model was trained on. For a model that was not
    trained on such a data set, the split is the one that training would make by default.

    Raises:
        CheckpointError: the split recorded in the model's file is malformed.
    """
    from dino_core.data.load import with_val

    default = SetApart(TrainConfig.val_split, TrainConfig.seed)
    recorded = model.training.get("set_apart", default._asdict())
    try:
        how = SetApart(float(recorded["share"]), int(recorded["seed"]))
        valid = 0 <= how.share < 1 and how.seed >= 0
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise CheckpointError(
            f"the model's file records its val split as {recorded!r:.80}; expected a share from 0 "
            "to 1 and a seed",
            "add a val split to the data",
        )
    return with_val(dataset, how)


def match_classes(
    model_classes: ClassMap, data_classes: ClassMap
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Match the columns of the model with the data set's classes by name.

    Returns:
        columns: (C,) data set class index of each column, -1 where the data set has no such class.
        warnings: One warning about the classes that the model lacks, whose objects count as missed;
            empty where it lacks none.

    Raises:
        DataError: model and data have no class name in common.
    """
    index = {name: i for i, name in enumerate(data_classes.names) if name}
    columns = np.array([index.get(name, -1) for name in model_classes.names], np.int64)
    alike = _alike_but_for_case(model_classes.names, index)
    if not (columns >= 0).any():
        raise DataError(
            "the model and the data have no class name in common: the model knows "
            f"{_some(model_classes.names)}; the data has {_some(data_classes.names)}",
            f"write the data's classes as the model does: {alike}"
            if alike
            else "train a model on this data, or rename its classes",
        )
    known = set(model_classes.names)
    missing = [name for name in data_classes.names if name and name not in known]
    if not missing:
        return columns, ()
    warning = (
        f"the model knows {len(index) - len(missing)} of the data's {len(index)} classes; objects "
        f"of the others count as missed: {_some(missing)}"
    )
    if alike:
        warning += f"; some differ in capitals only: {alike}"
    return columns, (warning,)


def _alike_but_for_case(known: Iterable[str], names: Iterable[str]) -> str:
    """Names that differ from the model's only in case, as "person instead of Person"."""
    by_case = {name.casefold(): name for name in known if name}
    pairs = [(by_case.get(name.casefold(), name), name) for name in names]
    return ", ".join(f"{own} instead of {name}" for own, name in pairs[:50] if own != name)


def _some(names: Sequence[str], limit: int = 8) -> str:
    named = [name for name in names if name]
    rest = f" and {len(named) - limit} more" if len(named) > limit else ""
    return ", ".join(named[:limit]) + rest


def shape_groups(pipeline: Pipeline, records: Sequence[ImageRecord], batch: int) -> list[list[int]]:
    """Indices of the images that go through the network together: at most `batch` of one shape."""
    shapes = [pipeline.input_shape((record.height, record.width)) for record in records]
    return group_by_shape(shapes, batch)


def predict_groups(
    pipeline: Pipeline,
    records: Sequence[ImageRecord],
    groups: Sequence[Sequence[int]],
    columns: NDArray[np.int64] | None = None,
) -> Iterator[tuple[dict[int, Decoded], float]]:
    """Predict one group of images after the other.

    Args:
        pipeline: The network and its input.
        records: All images.
        groups: Indices of the images of each batch.
        columns: As for `Evaluation`.

    Yields:
        The predictions of one group by image index, and the seconds spent on it: waiting for its
        images, the network, and decoding.

    Raises:
        DataError: an image cannot be read.
    """
    outputs_of_groups = pipeline.outputs_of_groups(groups, lambda i: load_image(records[i].path))
    started = time.perf_counter()
    for group, outputs in zip(groups, outputs_of_groups, strict=True):
        decoded = [_in_data_classes(output.decode(), columns) for output in outputs]
        yield dict(zip(group, decoded, strict=True)), time.perf_counter() - started
        started = time.perf_counter()


def _in_data_classes(decoded: Decoded, columns: NDArray[np.int64] | None) -> Decoded:
    """Rename columns to the data set's classes and drop objects of classes that it lacks.

    They are dropped after the best 300 were chosen, as the published evaluation does with the
    unused columns of its heads.
    """
    if columns is None:
        return decoded
    indices = columns[decoded.class_indices]
    kept = indices >= 0
    return Decoded(decoded.boxes_xyxy_px[kept], decoded.scores[kept], indices[kept])
