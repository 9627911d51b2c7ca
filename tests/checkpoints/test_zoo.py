from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import tiny_checkpoint
from loopback import FileServer, running_server

from dino_core.checkpoints.io import load_checkpoint
from dino_core.checkpoints.published.cache import cache_folder, cached
from dino_core.checkpoints.published.catalogue import CATALOGUE, DEFAULTS, Published, find_published
from dino_core.checkpoints.published.names import BUILT_IN
from dino_core.checkpoints.zoo import load, pull, resolve, verify, verify_file
from dino_core.errors import CheckpointError
from dino_core.files import sha256_of

URLS = Path(__file__).parents[2] / "../shared/parity/foreign/urls_detrex.json"


def test_a_path_is_itself(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "my.safetensors")
    assert resolve(path) == path and resolve(str(path)) == path
    assert load(path).meta.variant == "dino-tiny"


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
    verify_file(BUILT_IN["dino-nano"])


# --- the catalogue ---------------------------------------------------------------------------


def test_names_and_facts_of_the_catalogue() -> None:
    for name, model in CATALOGUE.items():
        assert name == model.name and name.startswith(f"{model.variant}-{model.epochs}ep")
        assert 0.49 <= model.ap < 0.6 and model.project in ("official", "detrex", "mmdet")
        assert model.url is None or model.url.endswith(f"/{model.file}")
        assert (model.url is None) == (model.project == "official")
        if model.project == "mmdet":  # publish_model.py puts the checksum's beginning there
            assert model.file.endswith(f"-{model.sha256}.pth") and len(model.sha256) == 8
    assert all(find_published(variant) is CATALOGUE[name] for variant, name in DEFAULTS.items())
    assert all(CATALOGUE[name].variant == variant for variant, name in DEFAULTS.items())
    assert find_published("dino-nano") is None
    paper = CATALOGUE["dino-r50-4scale-12ep-official"]  # arXiv 2203.03605, table 1
    assert (paper.file, paper.ap) == ("checkpoint0011_4scale.pth", 0.490)


@pytest.mark.skipif(not URLS.is_file(), reason="needs ../shared/parity")
def test_every_file_of_detrex_is_in_it_with_its_ap() -> None:
    models = {model.url: model for model in CATALOGUE.values()}
    rows = [row for row in json.loads(URLS.read_text()) if row["url"]]
    assert len(rows) == sum(model.project == "detrex" for model in models.values())
    for row in rows:
        model = models[row["url"]]
        assert model.ap == pytest.approx(float(row["ap"]) / 100)
        assert model.epochs == int(row["epochs"])


# --- pulling ---------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    monkeypatch.delenv("DINO_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("DINO_CACHE", str(tmp_path / "cache"))
    with running_server() as server:
        server.files["/tiny.safetensors"] = tiny_checkpoint(tmp_path / "tiny").read_bytes()
        yield server


@pytest.fixture
def tiny(server: FileServer, tmp_path: Path) -> Published:
    """A published file of our own form, which takes no importing worth the name."""
    return Published(
        "tiny-1ep", "dino-nano", "mmdet", "tiny.safetensors", f"{server.url}/tiny.safetensors",
        "", 0.5, 1, sha256=sha256_of(tmp_path / "tiny")[:8],
    )  # fmt: skip


def test_pulled_once_and_then_at_hand(
    tiny: Published, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    path = pull(tiny, lambda what, *_: seen.append(what))
    assert path.parent == tmp_path / "cache" / "models" / "tiny-1ep"
    assert list(dict.fromkeys(seen)) == ["fetching", "importing"]
    original, mine = load_checkpoint(tmp_path / "tiny"), load_checkpoint(path)
    assert mine.meta.provenance["name"] == "tiny-1ep" and mine.meta.provenance["url"] == tiny.url
    for name, tensor in original.state_dict.items():
        assert torch.equal(mine.state_dict[name], tensor)
    monkeypatch.setenv("DINO_OFFLINE", "1")
    assert pull(tiny) == path and len(server.requests) == 1
    assert [record.name for record in verify(tiny)] == ["tiny.safetensors", path.name]


def test_offline_and_not_here(
    tiny: Published, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINO_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="DINO_OFFLINE forbids the network"):
        pull(tiny)
    assert server.requests == [] and not cache_folder().exists()


def test_a_name_is_resolved_by_pulling(
    tiny: Published, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOGUE, "tiny-1ep", tiny)
    assert load("tiny-1ep").meta.variant == "dino-tiny"
    assert resolve("tiny-1ep") == cached("tiny-1ep").folder / "tiny-1ep.safetensors"
    assert len(server.requests) == 1


@pytest.mark.parametrize("which", ["source", "model"])
def test_changed_files_are_refused(tiny: Published, server: FileServer, which: str) -> None:
    pull(tiny)
    here = cached("tiny-1ep")
    path = here.path(getattr(here, which))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="changed since it was written") as error:
        verify(tiny)
    assert "dino models pull tiny-1ep --again" in error.value.hint
    if which == "source":
        assert pull(tiny)  # it is not needed any more
        here.path(here.model).unlink()  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="changed since it was written"):
        pull(tiny)
    pull(tiny, again=True)
    assert len(verify(tiny)) == 2 and len(server.requests) == 2


def test_a_touched_file_is_still_the_same(tiny: Published) -> None:
    path = pull(tiny)
    path.touch()
    assert pull(tiny) == path


def test_a_deleted_model_is_imported_again_without_the_network(
    tiny: Published, server: FileServer
) -> None:
    pull(tiny).unlink()
    assert pull(tiny).is_file() and len(server.requests) == 1


def test_wrong_checksum(tiny: Published, server: FileServer) -> None:
    with pytest.raises(CheckpointError, match="published is 00000000"):
        pull(replace(tiny, sha256="00000000"))
    assert not cached("tiny-1ep").source
    assert [p.name for p in cached("tiny-1ep").folder.iterdir()] == [".lock"]


def test_without_a_checksum_the_structure_counts(tiny: Published, server: FileServer) -> None:
    server.files["/tiny.safetensors"] = b"<html>Please log in</html>"
    with pytest.raises(CheckpointError, match="a web page, not a model file"):
        pull(replace(tiny, sha256=""))
    server.files["/x.pth"] = b"<html>Please log in</html>"
    with pytest.raises(CheckpointError, match="a web page, not a model file"):
        pull(replace(tiny, sha256="", file="x.pth", url=f"{server.url}/x.pth"))


def test_what_cannot_be_pulled(tiny: Published, server: FileServer) -> None:
    with pytest.raises(CheckpointError, match="no network dino-other"):
        pull(replace(tiny, variant="dino-other"))
    with pytest.raises(CheckpointError, match="Google Drive") as error:
        pull(CATALOGUE["dino-r50-4scale-12ep-official"])
    assert "dino models import checkpoint0011_4scale.pth" in error.value.hint
    with pytest.raises(CheckpointError, match="not in the cache"):
        verify(tiny)
    assert server.requests == []


def test_a_record_that_is_spoilt_counts_as_none(tiny: Published, server: FileServer) -> None:
    pull(tiny)
    (cached("tiny-1ep").folder / "record.json").write_text("[1")
    assert cached("tiny-1ep").model is None
    pull(tiny)
    assert len(server.requests) == 2


def test_a_file_of_the_official_form_is_imported(server: FileServer, tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden"
    keys = json.loads((golden / "keys_4scale_r50.json").read_text())
    state = {name: torch.tensor(0.5).expand(shape) for name, shape in keys.items()}
    torch.save({"model": state, "args": argparse.Namespace(lr=1)}, tmp_path / "r50.pth")
    server.files["/r50.pth"] = (tmp_path / "r50.pth").read_bytes()
    published = Published(
        "r50-1ep", "dino-r50-4scale", "official", "r50.pth", f"{server.url}/r50.pth", "", 0.5, 1
    )
    path = pull(published)
    meta = load_checkpoint(path).meta
    assert meta.variant == "dino-r50-4scale" and meta.provenance["layout"] == "official"
    assert meta.provenance["sha256"] == sha256_of(tmp_path / "r50.pth")


def test_verify_finds_what_is_no_number(tmp_path: Path) -> None:
    from dino_core.checkpoints.io import save_checkpoint

    original = load_checkpoint(tiny_checkpoint(tmp_path / "x.safetensors"))
    state = {name: tensor.clone() for name, tensor in original.state_dict.items()}
    state["level_embed"][0, 0] = float("nan")
    save_checkpoint(tmp_path / "y.safetensors", state, original.meta)
    with pytest.raises(CheckpointError, match="level_embed has NaN or infinite values"):
        verify_file(tmp_path / "y.safetensors")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DINO_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("DINO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "dino"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "dino"
