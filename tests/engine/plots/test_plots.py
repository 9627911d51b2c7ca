"""The drawings at their limits, and the numbers in them that can be checked."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import TINY_INPUT
from PIL import Image
from scored_boxes import found, random_case, truth

from dino_core.config import PreprocessConfig
from dino_core.data.records import DatasetIndex, ImageRecord, boxes_by_class
from dino_core.detections import ClassMap
from dino_core.engine.plots.curves import draw_curves, running_mean, series
from dino_core.engine.plots.figure import render
from dino_core.engine.plots.labels import draw_labels
from dino_core.engine.plots.pictures import choose_samples, grid, network_view, sample_sheet
from dino_core.engine.plots.scores import draw_confusion, draw_precision_recall
from dino_core.evaluation.confusion import confusion_matrix
from dino_core.evaluation.precision_recall import precision_recall
from dino_core.processing.preprocess import normalize

BOX = (10.0, 10.0, 50.0, 60.0)


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return image


@pytest.mark.parametrize("classes", [1, 4, 20, 75])
def test_scores_of_few_and_many_classes(classes: int) -> None:
    records, predictions = random_case(0, classes=max(2, classes))
    names = ClassMap.from_names(f"class {n}" for n in range(max(2, classes)))
    curves = precision_recall(records, predictions, names)
    opened(draw_precision_recall(curves, "step 1"))
    opened(draw_confusion(confusion_matrix(records, predictions, names, 0.3), "step 1"))


def test_scores_of_nothing() -> None:
    names = ClassMap.from_names(["cat"])
    opened(draw_precision_recall(precision_recall([truth()], [found()], names), "step 1"))
    opened(draw_confusion(confusion_matrix([truth()], [found()], names, 0.3), "step 1"))


def test_labels_of_images_without_boxes_and_of_rare_classes() -> None:
    names = ClassMap.from_names(["cat", "dog", "never"])
    records = [truth(*[(0, BOX)] * 70), truth((1, BOX)), truth()]
    dataset = DatasetIndex(Path(), "coco", names, {"train": tuple(records), "val": (truth(),)})
    assert boxes_by_class(records, 3).tolist() == [70, 1, 0]
    opened(draw_labels(dataset, TINY_INPUT))
    opened(draw_labels(replace(dataset, splits={"train": (truth(),)}), TINY_INPUT))


def test_a_crowd_is_not_counted_as_an_object() -> None:
    assert boxes_by_class([truth((0, BOX), (0, BOX), crowd=(False, True))], 1).tolist() == [1]


def test_curves_of_broken_and_missing_rows() -> None:
    rows = [
        {"event": "step", "step": 1, "loss": 2.0, "lr": 1e-4},
        {"event": "step", "step": 2, "loss": float("nan"), "lr": 1e-4},
        {"event": "warning", "step": 2, "message": "left out"},
        {"event": "evaluation", "step": 2, "ap": None, "ap50": None, "ap75": None},
    ]
    opened(draw_curves(rows))
    opened(draw_curves([]))
    many = [{"event": "step", "step": n, "loss": 1 / n, "lr": 1e-4} for n in range(1, 100)]
    opened(draw_curves([*many, {"event": "evaluation", "step": 99, "ap": 0.2, "ap50": 0.3}]))


def test_series_and_running_mean() -> None:
    rows = [{"step": 1, "ap": 0.5}, {"step": 2, "ap": None}, {"step": 3}, {"step": 4, "ap": 1}]
    steps, values = series(rows, "ap")
    assert steps.tolist() == [1, 4] and values.tolist() == [0.5, 1.0]
    smooth = running_mean(np.array([1.0, 3.0, np.nan, 5.0, 1.0]), 3)
    assert smooth.tolist() == [2.0, 2.0, 4.0, 3.0, 3.0]  # neighbors within the ends, finite ones


def test_settings_of_the_user_do_not_reach_a_figure_and_are_kept() -> None:
    import matplotlib

    def draw(figure: object) -> None:
        assert matplotlib.rcParams["text.usetex"] is False

    with matplotlib.rc_context({"text.usetex": True, "figure.facecolor": "black"}):
        image = opened(render((2, 1), draw))
        assert matplotlib.rcParams["text.usetex"] is True
    assert image.convert("RGB").getpixel((5, 5)) == (255, 255, 255)


def test_the_networks_view_shows_the_pixels_and_stripes_on_padding() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (240, 300, 3)).astype(np.uint8)
    config = PreprocessConfig()
    image = np.zeros((3, 320, 480), np.float32)  # 480: the size of a tile, so nothing is resized
    image[:, :240, :300] = normalize(pixels, config)
    mask = np.ones((320, 480), bool)
    mask[:240, :300] = False
    box = np.array([[0.5, 0.5, 0.5, 0.5]], np.float32)
    view = network_view(image, mask, box, ["cat"], config)
    assert view.shape == (320, 480, 3)
    np.testing.assert_array_equal(view[200:235, 10:290], pixels[200:235, 10:290])  # no box there
    assert set(np.unique(view[250:, 310:])) == {60, 90}
    changed = (view[:240, :300] != pixels).any(axis=2)
    assert changed[60, 80:220].all() and changed[179, 80:220].all()  # the box: 75..225, 60..180


def test_a_grid_keeps_every_picture_whole() -> None:
    pictures = [np.full((50 + 10 * n, 90, 3), 10 + n, np.uint8) for n in range(5)]
    page = grid(pictures, "five")
    for n, picture in enumerate(pictures):
        assert int((page == 10 + n).all(axis=2).sum()) >= picture.shape[0] * picture.shape[1]


def sample_record(path: Path, labels: list[int]) -> ImageRecord:
    record = truth(*((label, BOX) for label in labels))
    return replace(record, path=path)


def test_a_sample_shows_truth_left_and_predictions_right(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480), (0, 0, 0)).save(tmp_path / "a.png")
    record = sample_record(tmp_path / "a.png", [0])
    sheet = sample_sheet(record, found((0, 0.9, BOX), (0, 0.1, (300, 300, 400, 400))), ["cat"], 0.5)
    left, right = sheet[30:, :640], sheet[30:, 648:]
    assert left.any() and right.any()
    assert not right[250:].any()  # the detection below the threshold is not drawn


def test_samples_show_many_classes_and_are_always_the_same() -> None:
    records = [truth((0, BOX)) for _ in range(50)] + [truth((1, BOX)), truth((2, BOX)), truth()]
    chosen = choose_samples(records, 8)
    assert len(chosen) == len(set(chosen)) == 8 and chosen == sorted(chosen)
    assert {50, 51} <= set(chosen)
    assert chosen == choose_samples(records, 8)
    assert choose_samples(records[:3], 8) == [0, 1, 2]
    assert choose_samples([truth(), truth()], 8) == [0, 1]
    assert choose_samples([], 8) == []
