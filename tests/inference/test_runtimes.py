"""The table of runtimes: metadata of model files, and files that only look like models."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from factories import CLASS_NAMES, TINY_INPUT, tiny_checkpoint, tiny_config
from numpy.typing import NDArray

from dino_core.errors import CheckpointError, ConfigError
from dino_core.exporters.table import EXPORTERS
from dino_core.inference.detector import Detector
from dino_core.inference.runtimes import RUNTIMES, RuntimeKind, open_runtime, read_metadata
from dino_core.metadata import CheckpointMeta, from_json, to_json


def header(path: Path, content: object, body: bytes = b"") -> Path:
    text = json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def test_reads_what_a_checkpoint_says(tmp_path: Path) -> None:
    meta = read_metadata(tiny_checkpoint(tmp_path / "a b.safetensors"))
    assert (meta.variant, meta.model, meta.preprocess) == ("dino-tiny", tiny_config(), TINY_INPUT)
    assert meta.classes.names == CLASS_NAMES


def test_truncated_anywhere(tmp_path: Path) -> None:
    data = tiny_checkpoint(tmp_path / "a.safetensors").read_bytes()
    for size in (0, 4, 8, 200, len(data) - 1):
        (tmp_path / "b.safetensors").write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"b\.safetensors: truncated"):
            read_metadata(tmp_path / "b.safetensors")


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        read_metadata(path)
    with pytest.raises(CheckpointError, match="a folder"):
        read_metadata(tmp_path)
    path.write_bytes(b"PK\x03\x04" + bytes(1000))  # a zip, as torch writes
    with pytest.raises(CheckpointError, match=r"not a safetensors file.*dino models import"):
        read_metadata(path)
    path.write_bytes(struct.pack("<Q", 10) + b"{" * 20)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_metadata(path)
    with pytest.raises(CheckpointError, match="without the metadata of a dino model"):
        read_metadata(header(path, {"__metadata__": {"format": "pt"}}))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_metadata(header(path, [1, 2]))
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 99]}  # 2 values are 8 bytes
    with pytest.raises(CheckpointError, match="truncated, or not a safetensors file"):
        read_metadata(header(path, {"__metadata__": {"dino": "{}"}, "a": tensor}, bytes(8)))
    with pytest.raises(CheckpointError, match="upgrade"):
        read_metadata(header(path, {"__metadata__": {"dino": '{"format": 99}'}}))


def test_reading_metadata_imports_no_torch(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "a.safetensors")
    program = (
        "import sys\n"
        "from dino_core.inference.runtimes import read_metadata\n"
        f"assert read_metadata({str(path)!r}).variant == 'dino-tiny'\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_the_suffix_chooses_the_runtime_whatever_its_case(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "a.ONNX").write_bytes(b"not a graph")
    with pytest.raises(CheckpointError, match="onnxruntime cannot load it"):
        open_runtime(tmp_path / "a.ONNX", "cpu", "auto")
    with pytest.raises(CheckpointError, match="unknown model 'dino-nan'"):
        open_runtime("dino-nan", "cpu", "auto")


def test_every_export_format_can_be_predicted_with() -> None:
    assert {exporter.suffix for exporter in EXPORTERS.values()} <= set(RUNTIMES)


class Constant:
    """A runtime that finds one object of the first class in the middle of every image."""

    input_hw = None

    def run(
        self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        logits = np.full((len(images), 1, 2), -9, np.float32)
        logits[:, 0, 0] = 9
        return logits, np.full((len(images), 1, 4), 0.5, np.float32)


def test_a_row_is_all_that_a_new_kind_of_file_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = read_metadata(tiny_checkpoint(tmp_path / "tiny.safetensors"))

    def read(path: Path) -> CheckpointMeta:
        return from_json(path.read_text())

    kind = RuntimeKind(lambda path, device, dtype: (Constant(), read(Path(path))), read)
    monkeypatch.setitem(RUNTIMES, ".constant", kind)
    path = tmp_path / "a.constant"
    path.write_text(to_json(meta))
    assert read_metadata(path) == meta
    (result,) = Detector.load(path).predict(np.zeros((40, 80, 3), np.uint8))
    assert (result.model, result.labels) == ("a.constant", [CLASS_NAMES[0]])
    assert result.boxes_xyxy_px.tolist() == [[20, 10, 60, 30]]
    with pytest.raises(ConfigError, match="no torch module"):
        _ = Detector.load(path).model
