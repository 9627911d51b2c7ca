"""ONNX files: what is refused, and batches of any count through a fixed batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from inference.onnx_files import META, write_onnx

from dino_core.errors import CheckpointError, ConfigError
from dino_core.inference.onnx_runtime import OnnxRuntime
from dino_core.inference.runtimes import read_metadata


@pytest.mark.parametrize("batch", [1, 2, "batch"])
@pytest.mark.parametrize("count", [1, 3])
def test_answers_worked_out_by_hand(tmp_path: Path, batch: int | str, count: int) -> None:
    runtime = OnnxRuntime(write_onnx(tmp_path / "a.onnx", batch))
    images = np.zeros((count, 3, 8, 16), np.float32)
    images += np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1)
    images[:, 1] += 10
    mask = np.zeros((count, 8, 16), np.bool_)
    mask[:, 4:] = True
    logits, boxes = runtime.run(images, mask)
    assert logits.shape == (count, 3, 2) and boxes.shape == (count, 3, 4)
    for row in range(count):
        assert logits[row].tolist() == [[row, row - 1], [row + 10, row + 9], [row, row - 1]]
    assert (boxes == 0.5).all()


def test_what_it_knows_about_itself(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "ä b.onnx")
    runtime = OnnxRuntime(path)
    assert runtime.meta == META and read_metadata(path) == META
    assert runtime.input_hw == (8, 16) and runtime.input_batch == 1
    free = OnnxRuntime(write_onnx(tmp_path / "b.onnx", "n", ("h", "w")))
    assert free.input_hw is None and free.input_batch is None


def test_files_that_are_not_models(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.onnx: no such file"):
        OnnxRuntime(tmp_path / "gone.onnx")
    with pytest.raises(CheckpointError, match="a folder"):
        OnnxRuntime(tmp_path)
    for content in (b"", b"not onnx", write_onnx(tmp_path / "a.onnx").read_bytes()[:300]):
        (tmp_path / "b.onnx").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"b\.onnx"):
            OnnxRuntime(tmp_path / "b.onnx")


def test_foreign_onnx_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"without the metadata of a dino model.*dino export"):
        OnnxRuntime(write_onnx(tmp_path / "a.onnx", metadata=""))
    with pytest.raises(CheckpointError, match="metadata is not JSON"):
        OnnxRuntime(write_onnx(tmp_path / "a.onnx", metadata="{"))
    with pytest.raises(CheckpointError, match=r"inputs x, padding_mask"):
        OnnxRuntime(write_onnx(tmp_path / "a.onnx", names=("x", "padding_mask")))


def test_devices(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "a.onnx")
    OnnxRuntime(path, "cpu", threads=1)
    with pytest.raises(ConfigError, match="cpu or cuda"):
        OnnxRuntime(path, "mps")


def test_cuda_without_it(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(ConfigError, match="has no CUDA"):
        OnnxRuntime(write_onnx(tmp_path / "a.onnx"), "cuda:0")
