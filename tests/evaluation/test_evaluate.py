"""Evaluation of toy networks whose right answer is plain: bright rectangles on black images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import make_coco_dataset, tiny_checkpoint
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from dino_core.config import PreprocessConfig, TrainConfig
from dino_core.data.load import load_dataset, require_split
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.detections import ClassMap
from dino_core.engine.fit import run_events
from dino_core.engine.parallel.evaluate import evaluate_together
from dino_core.engine.request import RunRequest
from dino_core.errors import CheckpointError, DataError
from dino_core.evaluation.evaluate import (
    Evaluation,
    EvaluationResult,
    evaluate,
    match_classes,
    shape_groups,
    start_evaluation,
    with_val_of_training,
)
from dino_core.inference.detector import Detector
from dino_core.inference.pipeline import Pipeline
from dino_core.inference.runtimes import read_metadata

RAW = PreprocessConfig(short_side=64, max_side=96, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CLASSES = ClassMap.from_names(["red", "green"], first_id=5)


@dataclass(frozen=True)
class Output:
    logits: Tensor
    boxes_cxcywh: Tensor


class RectangleFinder(nn.Module):
    """Query c is the extent of bright pixels of channel c, relative to the unpadded image."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.padded = False

    def forward(self, images: Tensor, padding_mask: Tensor) -> Output:
        assert not self.training
        self.shapes.append(tuple(images.shape))
        self.padded |= bool(padding_mask.any())
        logits = torch.full((len(images), 2, 2), -9.0)
        boxes = torch.full((len(images), 2, 4), 0.5)
        for b, (image, mask) in enumerate(zip(images, padding_mask, strict=True)):
            height, width = int((~mask[:, 0]).sum()), int((~mask[0]).sum())
            for c in range(2):
                y, x = torch.nonzero(image[c] > 0.5, as_tuple=True)
                if len(x):
                    x0, x1 = float(x.min()), float(x.max()) + 1
                    y0, y1 = float(y.min()), float(y.max()) + 1
                    box = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
                    boxes[b, c] = box / torch.tensor([width, height, width, height])
                    logits[b, c, c] = 2.0
        return Output(logits, boxes)


def result_of(model: RectangleFinder, records: list[ImageRecord]) -> EvaluationResult:
    """As a training run evaluates its model, in one process."""
    device = torch.device("cpu")
    return evaluate_together(model, records, CLASSES, RAW, batch=2, device=device, dtype="fp32")


def pipeline_of(model: RectangleFinder, input_hw: tuple[int, int] | None = None) -> Pipeline:
    model.eval()

    def run(
        images: NDArray[np.float32], padding_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        output = model(torch.from_numpy(images), torch.from_numpy(padding_mask))
        return output.logits.numpy(), output.boxes_cxcywh.numpy()

    return Pipeline(run, RAW, input_hw)


def make_record(
    folder: Path, image_id: int, size_wh: tuple[int, int], boxes: dict[int, tuple[int, ...]]
) -> ImageRecord:
    """A black PNG with a rectangle of color channel c for each class c."""
    width, height = size_wh
    pixels = np.zeros((height, width, 3), np.uint8)
    for channel, (x0, y0, x1, y1) in boxes.items():
        pixels[y0:y1, x0:x1, channel] = 255
    path = folder / f"{image_id}.png"
    Image.fromarray(pixels).save(path)
    corners = np.array(list(boxes.values()), np.float32).reshape(-1, 4)
    return ImageRecord(
        image_id=image_id,
        path=path,
        width=width,
        height=height,
        boxes_xyxy_px=corners,
        class_indices=np.array(list(boxes), np.int64),
        is_crowd=np.zeros(len(boxes), bool),
        areas=(corners[:, 2:] - corners[:, :2]).prod(axis=1),
    )


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    """Five images of three shapes, interleaved; sides that resize exactly; one image is empty."""
    return [
        make_record(tmp_path, 11, (128, 128), {0: (20, 40, 60, 100)}),
        make_record(tmp_path, 7, (192, 128), {1: (10, 10, 150, 90)}),
        make_record(tmp_path, 30, (128, 128), {0: (0, 0, 40, 40), 1: (60, 60, 120, 126)}),
        make_record(tmp_path, 4, (128, 192), {}),
        make_record(tmp_path, 9, (128, 128), {1: (32, 32, 96, 96)}),
    ]


def test_rectangles_are_found_in_original_pixels(records: list[ImageRecord]) -> None:
    metrics = result_of(RectangleFinder(), records).metrics
    assert metrics.ap == pytest.approx(1.0)
    assert metrics.images == 5
    assert metrics.per_class["green"].boxes == 3
    assert metrics.ms_per_image is not None
    assert metrics.ms_per_image > 0


def test_batches_hold_one_shape_and_no_padding(records: list[ImageRecord]) -> None:
    model = RectangleFinder()
    result_of(model, records)
    assert sorted(model.shapes) == [(1, 3, 64, 64), (1, 3, 64, 96), (1, 3, 96, 64), (2, 3, 64, 64)]
    assert not model.padded


def test_groups_cover_every_image_once(records: list[ImageRecord]) -> None:
    free, fixed = pipeline_of(RectangleFinder()), pipeline_of(RectangleFinder(), (96, 96))
    groups = shape_groups(free, records, batch=2)
    assert sorted(i for group in groups for i in group) == [0, 1, 2, 3, 4]
    assert shape_groups(fixed, records, 4) == [[0, 1, 2, 3], [4]]
    assert shape_groups(free, [], 2) == []


def test_a_fixed_input_size_is_padded_to(records: list[ImageRecord]) -> None:
    model = RectangleFinder()
    result = Evaluation(pipeline_of(model, (80, 80)), records, CLASSES, batch=3).finish()
    assert {shape[2:] for shape in model.shapes} == {(80, 80)}
    assert model.padded
    # The 192-wide image shrinks to 80 x 53 pixels, so its box is 1.2 px coarse: IoU is above 0.75.
    assert result.metrics.ap75 == pytest.approx(1.0)


def test_progress_counts_up_to_all_images(records: list[ImageRecord]) -> None:
    evaluation = Evaluation(pipeline_of(RectangleFinder()), records, CLASSES, batch=2)
    done = [progress.done for progress in evaluation]
    assert done == sorted(set(done))
    assert done[-1] == 5
    assert evaluation.finish().metrics.ap == pytest.approx(1.0)


@pytest.mark.parametrize("watched", [0, 1, 4])
def test_finish_predicts_the_images_that_are_left(records: list[ImageRecord], watched: int) -> None:
    model = RectangleFinder()
    evaluation = Evaluation(pipeline_of(model), records, CLASSES, batch=2)
    for number, _ in enumerate(evaluation, start=1):
        if number == watched:
            break
    assert evaluation.finish().metrics.ap == pytest.approx(1.0)
    assert sum(shape[0] for shape in model.shapes) == 5  # each image once


def test_finish_repeats_the_error_of_an_unreadable_image(records: list[ImageRecord]) -> None:
    records[2].path.unlink()
    evaluation = Evaluation(pipeline_of(RectangleFinder()), records, CLASSES, batch=2)
    for run in (list, Evaluation.finish):
        with pytest.raises(DataError, match=r"30\.png: no such file"):
            run(evaluation)


def test_predictions_are_in_data_set_order_and_ids(records: list[ImageRecord]) -> None:
    result = result_of(RectangleFinder(), records)
    rows = [row for row in result.to_coco() if row["score"] > 0.5]
    assert [(row["image_id"], row["category_id"]) for row in rows] == [
        (11, 5),
        (7, 6),
        (30, 5),
        (30, 6),
        (9, 6),
    ]
    assert rows[0]["bbox"] == pytest.approx([20, 40, 40, 60], abs=0.01)


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_kept(records: list[ImageRecord], training: bool) -> None:
    model = RectangleFinder().train(training)
    result_of(model, records[:1])
    assert model.training is training


def test_a_file_of_another_size_than_stated_is_run_alone(records: list[ImageRecord]) -> None:
    stated = replace(records[1], width=128, height=128)  # the file is 192 x 128
    model = RectangleFinder()
    metrics = result_of(model, [records[0], stated]).metrics
    assert metrics.ap == pytest.approx(1.0)
    assert not model.padded


def test_a_missing_image_is_an_error_and_not_a_lower_score(records: list[ImageRecord]) -> None:
    records[2].path.unlink()
    with pytest.raises(DataError, match=r"30\.png"):
        result_of(RectangleFinder(), records)


def test_columns_are_matched_by_name(records: list[ImageRecord]) -> None:
    # The model's columns are green and red: the other way round than in the data.
    columns, warnings = match_classes(ClassMap.from_names(["green", "red"]), CLASSES)
    assert columns.tolist() == [1, 0]
    assert warnings == ()
    pipeline = pipeline_of(RectangleFinder())
    result = Evaluation(pipeline, records, CLASSES, columns=columns).finish()
    best = [p.class_indices[0] for p in result.predictions]
    assert [best[i] for i in (0, 1, 4)] == [1, 0, 0]  # the data says 0, 1, 1: column 0 is green


def test_a_class_that_the_model_lacks_counts_as_missed(records: list[ImageRecord]) -> None:
    columns, warnings = match_classes(ClassMap.from_names(["red", "blue"]), CLASSES)
    assert columns.tolist() == [0, -1]
    assert len(warnings) == 1
    assert "knows 1 of the data's 2 classes" in warnings[0]
    assert warnings[0].endswith("missed: green")
    pipeline = pipeline_of(RectangleFinder())
    result = Evaluation(pipeline, records, CLASSES, columns=columns).finish()
    assert result.metrics.per_class["red"].ap == pytest.approx(1.0)
    assert result.metrics.per_class["green"].ap == pytest.approx(0.0)
    assert result.metrics.ap == pytest.approx(0.5)


def test_unused_slots_match_nothing() -> None:
    columns, _ = match_classes(
        ClassMap(("", "red"), (0, 1)), ClassMap(("", "red", "green"), (0, 3, 8))
    )
    assert columns.tolist() == [-1, 1]


def test_no_class_in_common_is_an_error() -> None:
    with pytest.raises(DataError, match=r"cat, dog; the data has red, green"):
        match_classes(ClassMap.from_names(["cat", "dog"]), CLASSES)


def test_a_missing_split_names_those_there(records: list[ImageRecord]) -> None:
    dataset = DatasetIndex(Path("set"), "coco", CLASSES, {"train": tuple(records), "val": ()})
    assert len(require_split(dataset, "train")) == 5
    with pytest.raises(DataError, match=r"split 'val'.*train \(5\), val \(0\)"):
        require_split(dataset, "val")


def test_a_model_file_on_a_data_set(tmp_path: Path) -> None:
    """The public function: names, paths, a loaded Detector and a loaded data set mean the same."""
    model = tiny_checkpoint(tmp_path / "tiny.safetensors")
    data = make_coco_dataset(tmp_path / "data")
    metrics = evaluate(model, data, batch=2, device="cpu")
    assert metrics.images == 3
    assert list(metrics.per_class) == ["square", "disc"]
    assert sum(c.boxes for c in metrics.per_class.values()) == 2 + 1 + 2  # as the factory draws
    again = evaluate(Detector.load(model, device="cpu"), load_dataset(data), "val")
    assert again.ap == pytest.approx(metrics.ap, abs=1e-6)
    assert evaluate(model, data, "train").images == 6


def test_warnings_name_the_classes_that_the_model_lacks(tmp_path: Path) -> None:
    classes = ClassMap.from_names(["disc", "triangle"])
    model = tiny_checkpoint(tmp_path / "tiny.safetensors", classes)
    data = make_coco_dataset(tmp_path / "data")
    evaluation = start_evaluation(model, data)
    assert len(evaluation.records) == 3
    assert any(w.endswith("missed: square") for w in evaluation.warnings)
    result = evaluation.finish()
    assert result.metrics.per_class["square"].ap == pytest.approx(0.0)
    assert {row["category_id"] for row in result.to_coco()} == {2}  # disc, in the data's own ids


def test_a_wrong_split_or_model_is_an_error(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "tiny.safetensors")
    data = make_coco_dataset(tmp_path / "data")
    with pytest.raises(DataError, match="split 'test'"):
        evaluate(model, data, "test")
    with pytest.raises(CheckpointError, match="no such file"):
        evaluate(tmp_path / "other.safetensors", data)


@pytest.mark.parametrize(("share", "seed"), [(0.3, 7), (0.2, 1)])
def test_the_images_that_training_set_apart(tmp_path: Path, share: float, seed: int) -> None:
    data = make_coco_dataset(tmp_path / "data", [("train", 10)])
    dataset = load_dataset(data, val_split=share, seed=seed)
    start = str(tiny_checkpoint(tmp_path / "tiny.safetensors"))
    recipe = TrainConfig(steps=1, batch=2, device="cpu", dtype="fp32", plots=False)
    list(run_events(RunRequest(recipe, dataset, tmp_path / "run", model=start)))
    listed = (tmp_path / "run" / "val.txt").read_text().splitlines()
    assert listed == [str(record.path) for record in dataset.splits["val"]]
    for model, wanted in (
        (tmp_path / "run" / "last.safetensors", dataset),
        (Path(start), load_dataset(data)),  # never trained on it: the split of the default
    ):
        result = start_evaluation(model, data).finish()
        assert [r.image_id for r in result.records] == [r.image_id for r in wanted.splits["val"]]


@pytest.mark.parametrize(
    "recorded", [3, {}, {"share": 2.0, "seed": 1}, {"share": float("nan"), "seed": 1}]
)
def test_a_file_that_records_no_possible_split(tmp_path: Path, recorded: object) -> None:
    dataset = load_dataset(make_coco_dataset(tmp_path, [("train", 4)]), val_split=0)
    meta = read_metadata(tiny_checkpoint(tmp_path / "tiny.safetensors"))
    with pytest.raises(CheckpointError, match="records its val split as"):
        with_val_of_training(dataset, replace(meta, training={"set_apart": recorded}))
