"""The data set and the weights that short trainings of this folder start from."""

from __future__ import annotations

import pytest
from factories import make_coco_dataset, tiny_checkpoint

from dino_core.data.load import load_dataset
from dino_core.data.records import DatasetIndex


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    """Six images for training and three for validation, which no test may change."""
    return load_dataset(make_coco_dataset(tmp_path_factory.mktemp("coco")))


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_checkpoint(tmp_path_factory.mktemp("start") / "tiny.safetensors"))
