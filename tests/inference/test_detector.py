"""The detector: order, batches, classes, boxes in the original image, and refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from factories import CLASS_NAMES, tiny_checkpoint
from numpy.typing import NDArray
from PIL import Image

from dino_core.config import ModelConfig, PreprocessConfig
from dino_core.detections import ClassMap
from dino_core.errors import CheckpointError, ConfigError, DataError, DinoError
from dino_core.inference.detector import Detector
from dino_core.inference.sources import open_sources
from dino_core.metadata import CheckpointMeta


class Recorder:
    """A runtime with known answers: the first logit is the mean brightness of the image."""

    def __init__(self, input_hw: tuple[int, int] | None = None) -> None:
        self.input_hw = input_hw
        self.shapes: list[tuple[int, ...]] = []
        self.padded: list[bool] = []

    def run(
        self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.shapes.append(images.shape)
        self.padded.append(bool(padding_mask.any()))
        count = len(images)
        logits = np.full((count, 4, 3), -4, np.float32)
        valid = (~padding_mask).sum(axis=(1, 2))
        logits[:, 0, 1] = images.sum(axis=(1, 2, 3)) / (3 * valid)
        logits[:, 1, 0] = 5  # the column without a name
        logits[:, 2, 2] = 0
        boxes = np.tile(np.array([0.5, 0.5, 0.5, 0.5], np.float32), (count, 4, 1))
        return logits, boxes


PLAIN = PreprocessConfig(short_side=32, max_side=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CLASSES = ClassMap(("", "cat", "dog"), (0, 17, 18))
META = CheckpointMeta("fixed", ModelConfig(num_classes=3), PLAIN, CLASSES)


def gray(value: int, height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


def test_one_image() -> None:
    (result,) = Detector(Recorder(), META).predict(gray(255, 100, 200))
    assert result.labels == ["cat", "dog"]  # the nameless column, score 0.99, is never an answer
    assert result.class_ids.tolist() == [17, 18] and result.class_ids.dtype == np.int64
    np.testing.assert_allclose(result.scores, [sigmoid(1), 0.5], atol=1e-6)
    assert result.boxes_xyxy_px.tolist() == [[50, 25, 150, 75]] * 2  # of the 200x100 original
    assert (result.width, result.height, result.model) == (200, 100, "fixed")
    assert set(result.ms) == {"preprocess", "model", "postprocess"}
    assert result.image is not None and result.image.shape == (100, 200, 3)


def test_threshold_classes_and_count() -> None:
    detector = Detector(Recorder(), META)
    assert next(detector.predict(gray(255), threshold=0.6)).labels == ["cat"]
    assert next(detector.predict(gray(255), classes=["dog"])).labels == ["dog"]
    assert next(detector.predict(gray(255), max_detections=1)).labels == ["cat"]
    assert len(next(detector.predict(gray(255), threshold=0.99))) == 0
    assert len(next(detector.predict(gray(255), threshold=0.0))) == 8  # 4 queries, 2 named classes


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_results_come_in_order_and_nothing_is_padded(batch: int) -> None:
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (32, 64), (64, 32)]
    values = rng.integers(0, 256, 23)
    images = [gray(int(v), *sizes[int(rng.integers(3))]) for v in values]
    runtime = Recorder()
    results = list(Detector(runtime, META).predict(images, threshold=0.0, batch=batch))
    scores = [dict(zip(r.labels, r.scores, strict=True)) for r in results]
    for value, image, result, score in zip(values, images, results, scores, strict=True):
        assert (result.height, result.width) == image.shape[:2]
        assert result.scores.max() == pytest.approx(sigmoid(value / 255), abs=1e-5), score
    assert not any(runtime.padded)
    assert max(s[0] for s in runtime.shapes) <= batch
    if batch == 100:
        assert len(runtime.shapes) == 3  # one batch a shape


def test_a_fixed_input_is_padded_and_never_exceeded() -> None:
    runtime = Recorder((32, 64))
    images = [gray(10, 32, 64), gray(20, 64, 32), gray(30, 500, 31), gray(40, 1, 1)]
    results = list(Detector(runtime, META).predict(images, batch=4))
    assert {s[1:] for s in runtime.shapes} == {(3, 32, 64)} and len(runtime.shapes) == 1
    for value, result in zip((10, 20, 30, 40), results, strict=True):
        assert result.scores[0] == pytest.approx(sigmoid(value / 255), abs=1e-5)


def test_few_huge_images_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dino_core.inference.detector._WINDOW_PIXELS", 2 * 32 * 32)
    runtime = Recorder()
    results = list(Detector(runtime, META).predict([gray(n) for n in range(5)], batch=4))
    assert [s[0] for s in runtime.shapes] == [2, 2, 1]
    assert len(results) == 5


def test_every_kind_of_input(tmp_path: Path) -> None:
    path = tmp_path / "a ü.png"
    Image.fromarray(gray(50)).save(path)
    forms = [path, str(path), gray(50), Image.fromarray(gray(50)), str(tmp_path), gray(50)[:, :, 0]]
    results = list(Detector(Recorder(), META).predict(forms))
    assert [r.source for r in results] == [str(path), str(path), "", "", str(path), ""]
    assert len({float(r.scores[0]) for r in results}) == 1
    assert len(list(Detector(Recorder(), META).predict(path))) == 1


def test_reading_is_lazy(tmp_path: Path) -> None:
    results = Detector(Recorder(), META).predict(iter([gray(1), tmp_path / "missing.png"]))
    assert next(results).width == 32
    with pytest.raises(DataError, match=r"missing\.png: no such file"):
        next(results)


def test_unreadable_files_of_sources_become_errors(tmp_path: Path) -> None:
    Image.fromarray(gray(50)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"bad")
    Image.fromarray(gray(60)).save(tmp_path / "c.png")
    detector = Detector(Recorder(), META)
    results = list(detector.predict(open_sources([tmp_path]), batch=8))
    assert [r.error is None for r in results] == [True, False, True]
    assert [Path(r.source).name for r in results] == ["a.png", "b.png", "c.png"]
    assert "not an image" in str(results[1].error) and len(results[1]) == 0
    with pytest.raises(DataError, match="not an image"):
        list(detector.predict([str(tmp_path / "b.png")]))


def test_output_that_is_not_finite_is_an_error() -> None:
    class Broken(Recorder):
        def run(
            self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_]
        ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            logits, boxes = super().run(images, padding_mask)
            logits[0, 0, 0] = np.nan
            return logits, boxes

    with pytest.raises(DinoError, match="not finite"):
        list(Detector(Broken(), META).predict(gray(1)))


def test_settings_are_refused_at_once() -> None:
    detector = Detector(Recorder(), META)
    with pytest.raises(ConfigError, match="threshold"):
        detector.predict([], threshold=1.5)
    with pytest.raises(ConfigError, match="max_detections"):
        detector.predict([], max_detections=0)
    with pytest.raises(ConfigError, match="batch"):
        detector.predict([], batch=0)
    with pytest.raises(ConfigError, match=r"no class 'dogs'.*did you mean 'dog'"):
        detector.predict([], classes=["dogs"])
    assert list(detector.predict([])) == []


def test_image_size() -> None:
    runtime = Recorder()
    list(Detector(runtime, META, image_size=128).predict(gray(1)))
    assert runtime.shapes == [(1, 3, 64, 64)]  # short side 32 of 64 becomes 64 of 128
    with pytest.raises(ConfigError, match="at least 32"):
        Detector(Recorder(), META, image_size=8)
    with pytest.raises(ConfigError, match="32x64 only"):
        Detector(Recorder((32, 64)), META, image_size=128)


# --- loading ---------------------------------------------------------------------


def test_a_checkpoint(tmp_path: Path) -> None:
    import torch

    path = tiny_checkpoint(tmp_path / "my model.safetensors")
    detector = Detector.load(path, device="cpu")
    assert detector.name == "my model.safetensors" and detector.classes.names == CLASS_NAMES
    assert not detector.model.training
    images = [gray(v, 40, 60) for v in (10, 200)]
    results = list(detector.predict(images, threshold=0.0, batch=2))
    singly = [next(detector.predict(i, threshold=0.0)) for i in images]
    for one, other in zip(results, singly, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    assert {r.model for r in results} == {"my model.safetensors"}
    with torch.inference_mode():
        output = detector.model(torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64).bool())
    assert output.logits.shape[-1] == 2


def test_extreme_images_through_a_real_network(tmp_path: Path) -> None:
    detector = Detector.load(tiny_checkpoint(tmp_path / "a.safetensors"), device="cpu")
    images = [gray(1, 1, 1), gray(1, 10, 20_000), gray(1, 20_000, 10), gray(1, 3, 7)]
    for image, result in zip(images, detector.predict(images, threshold=0.0), strict=True):
        assert (result.height, result.width) == image.shape[:2]
        boxes = result.boxes_xyxy_px
        assert len(boxes) and (boxes >= 0).all()
        assert (boxes[:, [0, 2]] <= result.width).all() and (
            boxes[:, [1, 3]] <= result.height
        ).all()


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown model 'dino-nan'"):
        Detector.load("dino-nan")
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: no such file"):
        Detector.load(tmp_path / "gone.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"bad")
    with pytest.raises(CheckpointError, match="truncated"):
        Detector.load(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="device 'gpu'"):
        Detector.load("dino-nano", device="gpu")
    with pytest.raises(ConfigError, match="dtype 'fp8'"):
        Detector.load("dino-nano", dtype="fp8")


def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from inference.onnx_files import write_onnx

    path = write_onnx(tmp_path / "a.onnx")
    detector = Detector.load(path)
    (result,) = detector.predict(gray(255, 4, 4), threshold=0.7)  # 8x8 of 8x16: half is padding
    assert result.labels == [] and detector.name == "a.onnx"
    (result,) = detector.predict(gray(255, 4, 8), threshold=0.7)
    assert result.labels == ["cat"] * 3  # a mean of 1 for each of three queries: 0.73
    assert result.boxes_xyxy_px[0].tolist() == [6, 1, 8, 3]  # center at the right edge, clipped
    with pytest.raises(ConfigError, match="no torch module"):
        _ = detector.model
    with pytest.raises(ConfigError, match="fixed when it is exported"):
        Detector.load(path, dtype="bf16")
    with pytest.raises(ConfigError, match="8x16 only"):
        Detector.load(path, image_size=64)


def test_onnx_prediction_never_imports_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from inference.onnx_files import write_onnx

    write_onnx(tmp_path / "a.onnx")
    Image.fromarray(gray(255)).save(tmp_path / "a.png")
    program = f"""
import sys
from pathlib import Path
import dino_core
from dino_core import Detector
from dino_core.inference.runtimes import read_metadata
from dino_core.inference.outputs.table import OUTPUTS
from dino_core.inference.outputs.writers import Writers
from dino_core.inference.sources import open_sources
folder = Path({str(tmp_path)!r})
read_metadata(folder / "a.onnx")
detector = Detector.load(folder / "a.onnx")
sources = open_sources([folder / "a.png"])
with Writers(OUTPUTS, folder / "out", detector.classes) as writers:
    for prediction in detector.predict(sources, threshold=0.1):
        assert len(prediction) == 6, prediction
        writers.add(prediction)
heavy = {{"torch", "torchvision", "timm", "typer", "rich"}} & set(sys.modules)
assert not heavy, heavy
"""
    environment = dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "images" / "a.jpg").exists()


def test_canvas_pads_every_image_to_one_size() -> None:
    """Boxes stay relative to the image, not to the canvas."""
    from dataclasses import replace

    runtime = Recorder()
    meta = replace(META, preprocess=replace(PLAIN, short_side=64, canvas=(64, 64)))
    images = [gray(255, 100, 200), gray(255, 50, 25)]
    first, second = Detector(runtime, meta).predict(images, batch=2)
    assert runtime.shapes == [(2, 3, 64, 64)]
    assert runtime.padded == [True]
    assert first.boxes_xyxy_px[0].tolist() == [50, 25, 150, 75]
    assert second.boxes_xyxy_px[0].tolist() == [6.25, 12.5, 18.75, 37.5]


def test_canvas_follows_the_image_size() -> None:
    from dataclasses import replace

    runtime = Recorder()
    meta = replace(META, preprocess=replace(PLAIN, short_side=64, canvas=(64, 64)))
    list(Detector(runtime, meta, image_size=96).predict(gray(0, 200, 100)))
    assert runtime.shapes == [(1, 3, 96, 96)]
