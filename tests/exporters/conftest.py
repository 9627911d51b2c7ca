"""One export of a tiny model, shared by the tests of this folder: tracing takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from factories import make_images, tiny_checkpoint

from dino_core.checkpoints.io import build_model, load_checkpoint
from dino_core.exporters.api import ExportReport, export
from dino_core.models.dino import Dino

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@dataclass(frozen=True)
class Exported:
    """A model file, its network, two images, and its export verified on them."""

    checkpoint: Path
    model: Dino
    images: list[Path]
    report: ExportReport


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("export")
    checkpoint = tiny_checkpoint(folder / "tiny.safetensors")
    images = [
        *make_images(folder / "wide", 1, size_hw=(48, 80)),
        *make_images(folder / "tall", 1, size_hw=(90, 50)),
    ]
    report = export(checkpoint, folder / "tiny.onnx", image_size=(64, 96), batch=2, verify=images)
    return Exported(checkpoint, build_model(load_checkpoint(checkpoint)), images, report)
