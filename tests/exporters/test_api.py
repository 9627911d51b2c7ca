"""`export()`: the report and the refusals."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dino_core.config import PreprocessConfig
from dino_core.errors import CheckpointError, ConfigError, ExportError
from dino_core.exporters.api import default_input_hw, export
from dino_core.exporters.exporter import Exporter, ExportSettings
from dino_core.exporters.onnx import OnnxWithTokens
from dino_core.exporters.table import EXPORTERS
from dino_core.exporters.verify import VerifiedRuntime
from dino_core.metadata import CheckpointMeta, from_json, to_json
from dino_core.models.dino import Dino

if TYPE_CHECKING:
    from tests.exporters.conftest import Exported


def test_the_report_says_what_was_written(exported: Exported) -> None:
    report = exported.report
    assert report.path.is_file()
    assert report.bytes == report.path.stat().st_size
    assert (report.format, report.input_hw, report.batch) == ("onnx", (64, 96), 2)
    assert report.parity is not None
    assert report.parity.ok


def test_nothing_else_is_left_in_the_folder(exported: Exported) -> None:
    files = {p.name for p in exported.report.path.parent.iterdir() if p.is_file()}
    assert files == {"tiny.safetensors", "tiny.onnx"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "openvino"}, "format 'openvino'.*available: onnx"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"opset": 11}, "opset 11"),
        ({"image_size": (16, 64)}, "16x64"),
        ({"batch": 0}, "batch 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_work(
    exported: Exported, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(exported.checkpoint, tmp_path / "out.onnx", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_another_suffix_is_refused(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.onnx.*out\.onnx"):
        export(exported.checkpoint, tmp_path / "out.pt")


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        export(tmp_path / "none.safetensors", tmp_path / "out.onnx")


def test_missing_packages_are_named_with_the_extra(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"onnx, onnxscript, onnxruntime.*dino-detector\[onnx\]"):
        export(exported.checkpoint, tmp_path / "a.onnx")


def test_the_default_size_is_the_models_own() -> None:
    assert default_input_hw(PreprocessConfig(short_side=384, max_side=384)) == (384, 384)
    assert default_input_hw(PreprocessConfig()) == (800, 1333)
    assert default_input_hw(PreprocessConfig(canvas=(320, 416))) == (320, 416)


def test_a_row_is_all_that_a_new_format_needs(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(model: Dino, meta: CheckpointMeta, out: Path, settings: ExportSettings) -> None:
        out.write_text(to_json(meta))

    def runtime(path: Path) -> VerifiedRuntime:
        return OnnxWithTokens(exported.report.path)

    monkeypatch.setitem(EXPORTERS, "text", Exporter(".txt", (), "text", write, runtime))
    out = tmp_path / "a.txt"
    report = export(
        exported.checkpoint, out, "text", image_size=(64, 96), verify=exported.images[:1]
    )
    assert (report.format, report.opset, report.bytes) == ("text", None, out.stat().st_size)
    assert report.parity is not None
    assert report.parity.ok
    assert from_json(out.read_text()).preprocess.canvas == (64, 96)
    with pytest.raises(ConfigError, match=r"must end in \.txt"):
        export(exported.checkpoint, tmp_path / "a.onnx", "text")
    with pytest.raises(ConfigError, match="text has no operator sets"):
        export(exported.checkpoint, out, "text", opset=18)


def test_the_public_name_is_the_function() -> None:
    from dino_core import export as public

    assert public is export
