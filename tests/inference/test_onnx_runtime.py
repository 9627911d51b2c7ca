"""ONNX files: what is refused, and batches of any count through a fixed batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from inference.onnx_files import META, write_constant_onnx, write_onnx
from onnx import TensorProto

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


def answer(path: Path) -> list[int]:
    """Open a file, run it on one image of its size, and return the shape of the logits."""
    runtime = OnnxRuntime(path)
    height, width = runtime.input_hw or (8, 16)
    images = np.zeros((1, 3, height, width), np.float32)
    return list(runtime.run(images, np.zeros((1, height, width), np.bool_))[0].shape)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(
    ("logits", "boxes"),
    [
        ((1, 5, 7), (1, 5, 4)),  # other classes than in the metadata
        ((1, 5, 1), (1, 5, 4)),
        ((5, 2), (1, 5, 4)),
        ((1, 5, 2), (1, 5, 3)),
        ((1, 5, 2), (1, 3, 4)),  # fewer boxes than queries
        ((1, 0, 2), (1, 0, 4)),
        ((0, 5, 2), (0, 5, 4)),
        ((2, 5, 2), (2, 5, 4)),  # for one image
    ],
)
def test_outputs_that_contradict_the_metadata(
    tmp_path: Path, logits: tuple[int, ...], boxes: tuple[int, ...], declared: bool
) -> None:
    assert answer(write_constant_onnx(tmp_path / "a.onnx", declared=declared)) == [1, 5, 2]
    path = write_constant_onnx(tmp_path / "b.onnx", logits, boxes, declared=declared)
    with pytest.raises(CheckpointError, match=r"b\.onnx: its output is not that of a detector"):
        answer(path)


def test_outputs_that_are_no_floats(tmp_path: Path) -> None:
    assert answer(write_constant_onnx(tmp_path / "a.onnx", logits_type=TensorProto.DOUBLE))
    path = write_constant_onnx(tmp_path / "b.onnx", logits_type=TensorProto.INT64)
    with pytest.raises(CheckpointError, match=r"logits \[1, 5, 2\] tensor\(int64\)"):
        OnnxRuntime(path)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ((10**9, 3, 32, 32), "more than 4096 pixels a side or 512 MiB"),
        ((10**9, 3, "h", "w"), "more than 4096 pixels a side or 512 MiB"),
        ((1, 3, 10**9, 10**9), "more than 4096 pixels a side or 512 MiB"),
        (("b", 3, 5000, 32), "more than 4096 pixels a side"),
        ((0, 3, 32, 32), "its input is not that of a detector"),
        ((1, 3, 0, 32), "its input is not that of a detector"),
        ((1, 4, 32, 32), "its input is not that of a detector"),
        ((1, 3, 32), "its input is not that of a detector"),
    ],
)
def test_inputs_that_no_image_fits(
    tmp_path: Path, images: tuple[int | str, ...], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        OnnxRuntime(write_constant_onnx(tmp_path / "a.onnx", images=images))


def test_mask_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its input is not that of a detector"):
        OnnxRuntime(write_constant_onnx(tmp_path / "a.onnx", mask=(1, 8, 8)))


def test_errors_of_onnxruntime_name_no_codes(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"not onnx")
    with pytest.raises(CheckpointError, match=r"\(Protobuf parsing failed\.\)"):
        OnnxRuntime(tmp_path / "a.onnx")
    runtime = OnnxRuntime(write_onnx(tmp_path / "b.onnx"))
    with pytest.raises(CheckpointError, match=r"cannot run it for images of shape \(1, 3, 4, 4\)"):
        runtime.run(np.zeros((1, 3, 4, 4), np.float32), np.zeros((1, 4, 4), np.bool_))


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
