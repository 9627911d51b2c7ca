from __future__ import annotations

from pathlib import Path

import pytest
from factories import tiny_checkpoint

from dino_core.checkpoints.zoo import BUILT_IN, load, resolve
from dino_core.errors import CheckpointError


def test_a_path_is_itself(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "my.safetensors")
    assert resolve(path) == path and resolve(str(path)) == path
    assert load(path).meta.variant == "dino-tiny"


def test_known_model_without_weights_says_where_to_get_them() -> None:
    with pytest.raises(CheckpointError, match="weights of dino-r50-4scale are not here") as error:
        resolve("dino-r50-4scale")
    assert "dino models import" in error.value.hint and "IDEA-Research" in error.value.hint


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown model 'dino-r50-4scal'") as error:
        resolve("dino-r50-4scal")
    assert "dino-r50-4scale" in error.value.hint
    with pytest.raises(CheckpointError, match="unknown model 'xyz'") as error:
        resolve("xyz")
    assert "dino-nano" in error.value.hint


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        resolve(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match="a folder"):
        resolve(tmp_path)


def test_pth_files_are_read_as_official_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_text("hello")
    with pytest.raises(CheckpointError, match=r"not written by torch\.save"):
        load(path)


@pytest.mark.skipif(not BUILT_IN["dino-nano"].is_file(), reason="no built-in model yet")
def test_built_in_model() -> None:
    assert load("dino-nano").meta.variant == "dino-nano"
