"""The torch runtime: numpy in and out, devices and types by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from factories import tiny_config

from dino_core.errors import ConfigError
from dino_core.inference.detector import Detector
from dino_core.inference.torch_runtime import TorchRuntime, resolve_device, resolve_dtype
from dino_core.models.dino import Dino


def inputs() -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 96)).astype(np.float32)
    return images, np.zeros((2, 64, 96), np.bool_)


def make(dtype: str = "auto") -> TorchRuntime:
    torch.manual_seed(0)
    return TorchRuntime(Dino(tiny_config()), "cpu", dtype)


def test_equals_the_module() -> None:
    runtime = make()
    assert not runtime.model.training
    images, mask = inputs()
    logits, boxes = runtime.run(images, mask)
    with torch.inference_mode():
        output = runtime.model(torch.from_numpy(images), torch.from_numpy(mask))
    assert np.array_equal(logits, output.logits.numpy())
    assert np.array_equal(boxes, output.boxes_cxcywh.numpy())
    assert logits.dtype == boxes.dtype == np.float32


def test_bfloat16_gives_float32_results() -> None:
    logits, boxes = make("bf16").run(*inputs())
    assert logits.dtype == boxes.dtype == np.float32
    assert np.isfinite(logits).all() and np.isfinite(boxes).all()


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="device 'gpu' is unknown"):
        resolve_device("gpu")
    with pytest.raises(ConfigError, match=r"sees \d+ CUDA GPUs"):
        resolve_device("cuda:99")
    with pytest.raises(ConfigError, match="not supported"):
        resolve_device("meta")
    if not torch.backends.mps.is_available():
        with pytest.raises(ConfigError, match="not available"):
            resolve_device("mps")


def test_dtypes() -> None:
    assert resolve_dtype("auto") is torch.float32
    assert resolve_dtype("bf16") is torch.bfloat16
    with pytest.raises(ConfigError, match="dtype 'int8' is unknown"):
        resolve_dtype("int8")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_cuda_equals_cpu() -> None:
    images, mask = inputs()
    expected = make().run(images, mask)
    torch.manual_seed(0)
    found = TorchRuntime(Dino(tiny_config()), "cuda").run(images, mask)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-2)  # TF32 convolutions


def test_the_same_detections_with_one_two_and_four_threads() -> None:
    """Sums split among threads differ in the last bits, nothing else."""
    photos = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))
    detector = Detector.load("dino-nano", "cpu", "fp32")
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(list(detector.predict(photos, threshold=0.3)))
    finally:
        torch.set_num_threads(before)
    assert sum(len(result.scores) for result in found[0]) >= len(photos)
    for others in found[1:]:
        for expected, given in zip(found[0], others, strict=True):
            assert given.labels == expected.labels
            np.testing.assert_allclose(given.scores, expected.scores, atol=1e-5)
            np.testing.assert_allclose(given.boxes_xyxy_px, expected.boxes_xyxy_px, atol=0.01)
