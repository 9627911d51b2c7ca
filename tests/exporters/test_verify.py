"""The comparison of an artifact with torch: it passes what is equal and fails what is not."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch

from dino_core.errors import ConfigError, DataError, ExportError
from dino_core.exporters.onnx import OnnxWithTokens
from dino_core.exporters.verify import (
    ImageParity,
    ParityReport,
    Tolerance,
    compare_detections,
    verify_artifact,
)
from dino_core.models.dino import Dino
from dino_core.processing.postprocess import Decoded

if TYPE_CHECKING:
    from tests.exporters.conftest import Exported

Box = tuple[float, float, float, float]


def verified(
    path: Path, model: Dino, images: list[Path], tolerance: Tolerance | None = None
) -> ParityReport:
    return verify_artifact(OnnxWithTokens(path), model, images, tolerance)


def found(*rows: tuple[int, float, Box]) -> Decoded:
    """Detections as (class, score, corner box)."""
    return Decoded(
        np.array([box for *_, box in rows], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float32),
        np.array([index for index, *_ in rows], np.int64),
    )


def test_the_report_of_an_equal_artifact(exported: Exported) -> None:
    report = exported.report.parity
    assert report is not None
    values = json.loads(json.dumps(report.to_dict()))
    assert values["ok"] is True
    assert values["logits_max_abs"] < 1e-4
    assert values["boxes_max_abs"] < 1e-4
    assert [Path(image["image"]) for image in values["images"]] == exported.images


def test_detections_are_compared_above_the_threshold(exported: Exported) -> None:
    # Fresh DINO heads score about 0.01 everywhere, so the threshold goes below that.
    low = Tolerance(threshold=0.003, score=0.0005)
    report = verified(exported.report.path, exported.model, exported.images[:1], low)
    assert report.ok
    (image,) = report.images
    assert image.detections == image.matched > 0
    assert image.iou is not None
    assert image.iou > 0.999


def test_other_weights_are_not_ok(exported: Exported) -> None:
    other = copy.deepcopy(exported.model)
    with torch.no_grad():
        head = other.decoder.class_embed[0]
        assert isinstance(head, torch.nn.Linear)
        head.bias += 0.25
    report = verified(exported.report.path, other, exported.images[:1])
    assert not report.ok
    assert report.images[0].logits == pytest.approx(0.25, abs=1e-4)
    assert report.images[0].boxes < 1e-4  # the box head is as it was


def test_another_choice_of_tokens_is_not_ok(exported: Exported) -> None:
    other = copy.deepcopy(exported.model)
    with torch.no_grad():
        other.query_selection.class_embed.weight.neg_()
    report = verified(exported.report.path, other, exported.images[:1])
    assert not report.ok
    assert report.images[0].selection > report.tolerance.logits
    assert report.images[0].tokens_moved > 0


def test_files_that_cannot_be_compared(exported: Exported, tmp_path: Path) -> None:
    path, model = exported.report.path, exported.model
    with pytest.raises(ConfigError, match="no images"):
        verified(path, model, [])
    with pytest.raises(DataError, match=r"none\.jpg"):
        verified(path, model, [tmp_path / "none.jpg"])
    with pytest.raises(ExportError, match=r"none\.onnx"):
        verified(tmp_path / "none.onnx", model, exported.images)
    (tmp_path / "text.onnx").write_text("hello, this is not a graph")
    with pytest.raises(ExportError, match=r"text\.onnx"):
        verified(tmp_path / "text.onnx", model, exported.images)
    proto = onnx.load(str(path))
    del proto.metadata_props[:]
    onnx.save(proto, str(tmp_path / "bare.onnx"))
    with pytest.raises(ExportError, match=r"bare\.onnx"):
        verified(tmp_path / "bare.onnx", model, exported.images)


A: Box = (0, 0, 100, 100)
B: Box = (200, 200, 300, 300)
B_SHIFTED: Box = (200, 200, 300, 299)  # IoU 0.99 with B


def test_detections_are_matched_whatever_their_order() -> None:
    answers = compare_detections(
        found((0, 0.9, A), (1, 0.8, B)), found((1, 0.85, B_SHIFTED), (0, 0.9, A)), Tolerance()
    )
    assert (answers.matched, answers.unmatched) == (2, 0)
    assert answers.iou == pytest.approx(0.99)
    assert answers.score == pytest.approx(0.05, abs=1e-6)


def test_a_class_has_to_be_the_same() -> None:
    answers = compare_detections(found((0, 0.9, A)), found((1, 0.9, A)), Tolerance())
    assert (answers.matched, answers.unmatched) == (0, 2)
    assert answers.iou is None


def test_only_detections_clear_of_the_threshold_need_a_partner() -> None:
    tolerance = Tolerance(threshold=0.3, score=0.01)
    assert compare_detections(found((0, 0.305, A)), found(), tolerance).unmatched == 0
    assert compare_detections(found((0, 0.32, A)), found(), tolerance).unmatched == 1
    assert compare_detections(found(), found((0, 0.32, A)), tolerance).unmatched == 1


def test_a_partner_just_below_the_threshold_counts() -> None:
    answers = compare_detections(found((0, 0.302, A)), found((0, 0.297, A)), Tolerance())
    assert (answers.matched, answers.unmatched) == (1, 0)


GOOD = ImageParity(
    image="a.jpg",
    logits=1e-5,
    boxes=1e-6,
    selection=1e-6,
    tokens_moved=2,
    detections=3,
    matched=3,
    unmatched=0,
    iou=0.999,
    score=1e-4,
)


@pytest.mark.parametrize(
    "bad",
    [
        {"logits": 0.1},
        {"logits": float("inf")},
        {"boxes": 0.01},
        {"selection": 0.1},
        {"unmatched": 1},
        {"iou": 0.9},
        {"score": 0.1},
    ],
)
def test_each_number_can_fail_a_report(bad: dict[str, float]) -> None:
    assert ParityReport("a.onnx", Tolerance(), (GOOD,)).ok
    assert not ParityReport("a.onnx", Tolerance(), (GOOD, replace(GOOD, **bad))).ok  # type: ignore[arg-type]


def test_the_report_holds_the_worst_of_each_number() -> None:
    worse = replace(GOOD, logits=1e-3, iou=0.985, score=None)
    values = ParityReport("a.onnx", Tolerance(), (GOOD, worse)).to_dict()
    assert values["logits_max_abs"] == 1e-3
    assert values["matched_iou_min"] == 0.985
    assert values["score_max_abs"] == 1e-4
    assert values["detections"] == 6
