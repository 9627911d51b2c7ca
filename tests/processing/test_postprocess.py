"""The decode against the official post-processing's recorded outputs and hand-worked numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dino_core.processing.postprocess import decode

GOLDEN = Path(__file__).parents[1] / "golden" / "golden_4scale_r50.npz"


@pytest.mark.skipif(not GOLDEN.exists(), reason="golden numbers are not in this checkout")
@pytest.mark.parametrize(("index", "size_hw"), [(0, (352, 480)), (1, (416, 320))])
def test_equals_the_official_post_processing(index: int, size_hw: tuple[int, int]) -> None:
    with np.load(GOLDEN) as golden:
        decoded = decode(golden["pred_logits"][index], golden["pred_boxes"][index], size_hw)
        assert np.array_equal(decoded.class_indices, golden[f"post_labels_{index}"])
        limit = np.array([size_hw[1], size_hw[0]] * 2, np.float32)  # the official code clips later
        assert np.array_equal(decoded.boxes_xyxy_px, golden[f"post_boxes_{index}"].clip(0, limit))
        # one unit in the last place: exp() of numpy and torch round differently
        np.testing.assert_allclose(decoded.scores, golden[f"post_scores_{index}"], atol=6e-8)


def logit(score: float) -> float:
    return float(np.log(score / (1 - score)))


LOGITS = np.array(
    [[logit(0.9), logit(0.2)], [logit(0.3), logit(0.8)], [logit(0.5), logit(0.1)]], np.float32
)
BOXES = np.array([[0.5, 0.5, 0.2, 0.4], [0.25, 0.25, 0.5, 0.5], [0.95, 0.95, 0.2, 0.2]], np.float32)


def test_hand_worked_numbers() -> None:
    decoded = decode(LOGITS, BOXES, (100, 200), threshold=0.4)
    np.testing.assert_allclose(decoded.scores, [0.9, 0.8, 0.5], atol=1e-6)
    assert decoded.class_indices.tolist() == [0, 1, 0]
    expected = [[80, 30, 120, 70], [0, 0, 100, 50], [170, 85, 200, 100]]  # the last one clipped
    np.testing.assert_allclose(decoded.boxes_xyxy_px, expected, atol=1e-4)
    assert decoded.boxes_xyxy_px.dtype == np.float32
    assert decoded.class_indices.dtype == np.int64


def test_one_query_may_answer_with_several_classes() -> None:
    decoded = decode(LOGITS, BOXES, (100, 200), num_select=5)
    np.testing.assert_allclose(decoded.scores, [0.9, 0.8, 0.5, 0.3, 0.2], atol=1e-6)
    assert decoded.class_indices.tolist() == [0, 1, 0, 0, 1]


def test_the_last_class_is_not_lost() -> None:
    logits = np.full((4, 3), -5, np.float32)
    logits[2, 2] = 5
    assert decode(logits, np.zeros((4, 4), np.float32), (9, 9), num_select=1).class_indices == [2]


def test_allowed_classes_keep_their_own_indices() -> None:
    decoded = decode(LOGITS, BOXES, (100, 200), allowed_classes=[1], threshold=0.15)
    assert decoded.class_indices.tolist() == [1, 1]
    np.testing.assert_allclose(decoded.scores, [0.8, 0.2], atol=1e-6)
    assert len(decode(LOGITS, BOXES, (100, 200), allowed_classes=[]).scores) == 0


def test_ties_keep_query_order_and_huge_logits_stay_finite() -> None:
    logits = np.array([[0, 1e30], [-1e30, 1e30]], np.float32)
    decoded = decode(logits, np.zeros((2, 4), np.float32), (9, 9), num_select=4)
    assert decoded.scores.tolist() == [1, 1, 0.5, 0]
    assert decoded.class_indices.tolist() == [1, 1, 0, 0]


def test_nothing_above_the_threshold() -> None:
    decoded = decode(LOGITS, BOXES, (100, 200), threshold=0.99)
    assert decoded.boxes_xyxy_px.shape == (0, 4)
