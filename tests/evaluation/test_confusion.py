"""Confusion matrices counted by hand, and their diagonal against the curves' true positives."""

from __future__ import annotations

import numpy as np
import pytest
from scored_boxes import found, random_case, truth

from dino_core.detections import ClassMap
from dino_core.evaluation.confusion import confusion_matrix

TWO = ClassMap.from_names(["cat", "dog"])
BOX, FAR, THIRD = (10.0, 10.0, 50.0, 60.0), (300.0, 300.0, 340.0, 350.0), (500.0, 9.0, 540.0, 59.0)


def test_every_kind_of_entry_by_hand() -> None:
    records = [truth((0, BOX), (1, FAR), (1, THIRD)), truth((0, BOX))]
    predictions = [
        found((0, 0.9, BOX), (0, 0.8, FAR), (1, 0.7, (100, 100, 150, 150)), (0, 0.2, THIRD)),
        found(),
    ]
    matrix = confusion_matrix(records, predictions, TWO, threshold=0.5)
    assert matrix.counts.tolist() == [
        [1, 0, 1],  # cats: one found, one missed in the second image
        [1, 0, 1],  # dogs: one taken for a cat, one missed (its detection scores too low)
        [0, 1, 0],  # one dog invented
    ]


def test_the_right_class_comes_before_a_better_score_of_the_wrong_one() -> None:
    predictions = [found((1, 0.9, BOX), (0, 0.6, BOX))]
    matrix = confusion_matrix([truth((0, BOX))], predictions, TWO, threshold=0.5)
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_crowds_count_on_neither_side() -> None:
    crowd = (200.0, 200.0, 400.0, 400.0)
    records = [truth((0, BOX), (0, crowd), crowd=(False, True))]
    predictions = [found((0, 0.9, FAR), (0, 0.8, BOX))]
    matrix = confusion_matrix(records, predictions, TWO, threshold=0.5)
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_unnamed_slots_are_left_out() -> None:
    classes = ClassMap(("", "cat"), (0, 1))
    matrix = confusion_matrix([truth((1, BOX))], [found((1, 0.9, BOX))], classes, threshold=0.5)
    assert matrix.names == ("cat",)
    assert matrix.counts.tolist() == [[1, 0], [0, 0]]


def test_nothing_at_all() -> None:
    assert not confusion_matrix([truth()], [found()], TWO, 0.5).counts.any()


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.8])
def test_every_object_and_every_counted_detection_is_there_once(threshold: float) -> None:
    records, predictions = random_case(3)
    records = [
        truth(*zip(r.class_indices.tolist(), r.boxes_xyxy_px.tolist(), strict=True))
        for r in records
    ]
    matrix = confusion_matrix(records, predictions, ClassMap.from_names("abcd"), threshold)
    objects = np.bincount(np.concatenate([r.class_indices for r in records]), minlength=4)
    assert matrix.counts[:4].sum(axis=1).tolist() == objects.tolist()
    # At most 100 per class and image, as in COCO's evaluation.
    detections = [
        sum(
            min(100, int(((p.class_indices == c) & (p.scores >= np.float32(threshold))).sum()))
            for p in predictions
        )
        for c in range(4)
    ]
    assert matrix.counts[:, :4].sum(axis=0).tolist() == detections
