"""What names stand for, against the catalogue's entries and files made here."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino_core.checkpoints.published.cache import CachedModel, cached, record_of, remember
from dino_core.checkpoints.published.catalogue import CATALOGUE, DEFAULTS, published_model
from dino_core.checkpoints.published.names import (
    BUILT_IN,
    fetched_models,
    find_model,
    list_models,
)
from dino_core.checkpoints.zoo import resolve
from dino_core.errors import CheckpointError
from dino_core.variants import VARIANTS


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DINO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "published", "weights"),
    [
        ("dino-nano", None, "built in"),
        ("dino-r50-4scale", "dino-r50-4scale-12ep-mmdet", "pull"),
        ("dino-r50-4scale-12ep-official", "dino-r50-4scale-12ep-official", "by hand"),
        ("dino-eva01-4scale-12ep-detrex", "dino-eva01-4scale-12ep-detrex", "unsupported"),
        ("dino-eva01-4scale", None, "none"),
    ],
)
def test_names_without_a_cached_file(name: str, published: str | None, weights: str) -> None:
    found = find_model(name)
    assert (found.published.name if found.published else None) == published
    assert (found.name, found.weights) == (name, weights)
    assert found.path == BUILT_IN.get(name)


def test_a_cached_model_is_found_under_both_its_names() -> None:
    folder = cached("dino-r50-4scale-12ep-mmdet").folder
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    remember(CachedModel(folder, None, record_of(folder / "model.safetensors", "0.1")))
    for name in ("dino-r50-4scale", "dino-r50-4scale-12ep-mmdet"):
        found = find_model(name)
        assert (found.path, found.weights) == (folder / "model.safetensors", "cached")
    assert fetched_models() == ["dino-r50-4scale-12ep-mmdet"]


def test_a_file_goes_before_a_name_that_is_spelled_like_it() -> None:
    Path("dino-nano").write_bytes(b"anything")
    found = find_model("dino-nano")
    assert (found.path, found.published, found.variant) == (Path("dino-nano"), None, None)
    assert resolve("dino-nano") == Path("dino-nano")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("dino-r50-4scal", "unknown model 'dino-r50-4scal'", "did you mean 'dino-r50-4scale'"),
        ("xyz", "unknown model 'xyz'", "known: dino-nano"),
        ("gone.pth", "gone.pth: no such file", ""),
        (".", ".: a folder, not a model file", "best.safetensors"),
    ],
)
def test_what_is_no_model(name: str, message: str, hint: str) -> None:
    for find in (find_model, resolve):
        with pytest.raises(CheckpointError) as error:
            find(name)
        assert error.value.message == message and hint in error.value.hint


def test_networks_that_this_version_lacks_have_no_file() -> None:
    with pytest.raises(CheckpointError, match="this version has no network dino-eva01-4scale"):
        resolve("dino-eva01-4scale")


def test_the_list_has_each_network_once_and_on_request_each_file() -> None:
    short = [model.name for model in list_models()]
    assert len(short) == len(set(short)) and set(short) == {*VARIANTS, *DEFAULTS}
    every = [model.name for model in list_models(every_file=True)]
    assert len(every) == len(set(every)) and set(every) == {*short, *CATALOGUE}


def test_published_models_by_name() -> None:
    assert published_model("dino-r50-4scale").name == DEFAULTS["dino-r50-4scale"]
    with pytest.raises(CheckpointError, match="no published model is called 'dino-nano'"):
        published_model("dino-nano")
