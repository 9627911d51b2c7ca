"""A tiny model, a data set of drawn shapes, and an empty folder in which each command runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories import make_coco_dataset, tiny_checkpoint


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images for training and three for validation, which no test may change."""
    return make_coco_dataset(tmp_path_factory.mktemp("data") / "shapes")
