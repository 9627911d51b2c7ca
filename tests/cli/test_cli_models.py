"""`dino models` and `--model NAME` against a real server on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories import make_images, tiny_checkpoint
from loopback import FileServer, running_server

from dino_cli.app import run
from dino_core.checkpoints.published.catalogue import CATALOGUE, Published
from dino_core.files import sha256_of

Capture = pytest.CaptureFixture[str]
NAME = "dino-tiny-1ep-mmdet"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    """Serves one published file, which the catalogue has for the time of the test."""
    monkeypatch.delenv("DINO_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("DINO_CACHE", str(tmp_path / "cache"))
    with running_server() as server:
        source = tiny_checkpoint(tmp_path / "source")
        server.files["/tiny.safetensors"] = source.read_bytes()
        published = Published(
            NAME, "dino-nano", "mmdet", "tiny.safetensors", f"{server.url}/tiny.safetensors",
            "page", 0.5, 1, sha256=sha256_of(source)[:8], note="for tests",
        )  # fmt: skip
        monkeypatch.setitem(CATALOGUE, NAME, published)
        yield server


def test_predict_pulls_imports_and_predicts(
    server: FileServer, tmp_path: Path, capsys: Capture
) -> None:
    make_images(tmp_path / "photos")
    command = ["predict", "photos", "--model", NAME, "--json", "--save", "jsonl"]
    assert run(command) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["model"] for line in out.splitlines()] == [NAME] * 2
    assert f"fetching: {NAME} from {server.url}" in err and "importing" in err
    assert run(command) == 0
    assert "fetching" not in capsys.readouterr().err and len(server.requests) == 1


def test_pull_path_info_list_and_verify(server: FileServer, capsys: Capture) -> None:
    assert run(["models", "path", NAME]) == 4
    assert f"dino models pull {NAME}" in capsys.readouterr().err
    assert run(["models", "info", NAME]) == 0
    before = capsys.readouterr().out
    assert "file: None" in before and 'file: "tiny.safetensors"' in before

    assert run(["models", "pull", NAME]) == 0
    path = capsys.readouterr().out.strip()
    assert path.endswith(f"{NAME}.safetensors") and Path(path).is_file()
    assert run(["models", "pull", NAME, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "name": NAME, "file": path}

    assert run(["models", "path", NAME]) == 0
    assert capsys.readouterr().out.strip() == path
    assert run(["models", "path"]) == 0
    assert path.startswith(capsys.readouterr().out.strip())

    assert run(["models", "info", NAME, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["file"] == path and facts["variant"] == "dino-tiny"
    assert facts["license"].startswith("Apache-2.0") and facts["note"] == "for tests"
    assert facts["provenance"]["url"] == f"{server.url}/tiny.safetensors"

    assert run(["models", "list", "--all", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert (rows[NAME]["weights"], rows[NAME]["ap"]) == ("cached", 0.5)
    assert rows["dino-r50-4scale"]["weights"] == "pull"
    assert rows["dino-r50-4scale-12ep-official"]["weights"] == "by hand"
    assert rows["dino-eva01-4scale-12ep-detrex"]["weights"] == "unsupported"

    assert run(["models", "verify"]) == 0
    assert capsys.readouterr().out == f"{NAME}: ok\n"
    data = bytearray(Path(path).read_bytes())
    data[-1] ^= 1
    Path(path).write_bytes(data)
    assert run(["models", "verify", "dino-nano", NAME, "--json"]) == 4
    out, err = capsys.readouterr()
    assert [row["ok"] for row in json.loads(out)["verified"]] == [True, False]
    assert "--again" in err
    assert run(["predict", "x.png", "--model", NAME]) in (3, 4)
    assert run(["models", "pull", NAME, "--again"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pull", "dino-r50-4scal"], "did you mean 'dino-r50-4scale'"),
        (["pull", "dino-r50-4scale-12ep-official"], "by hand"),
        (["pull", "dino-eva01-4scale-12ep-detrex"], "no network dino-eva01-4scale"),
        (["verify", NAME], "is not in the cache"),
        (["verify", "gone.pth"], "no such file"),
        (["verify", "dino-tiny-4scal"], "unknown model"),
        (["pull", "gone.pth"], "no published model"),
        (["path", "nonsense"], "unknown model"),
    ],
)
def test_what_cannot_be_done(
    server: FileServer, capsys: Capture, arguments: list[str], words: str
) -> None:
    assert run(["models", *arguments]) == 4
    assert words in "".join(capsys.readouterr())


def test_nothing_fetched_yet(server: FileServer, capsys: Capture) -> None:
    assert run(["models", "verify"]) == 0
    assert "no model has been downloaded yet" in capsys.readouterr().err


def test_offline(server: FileServer, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINO_OFFLINE", "1")
    assert run(["models", "pull", NAME, "--json"]) == 4
    out, err = capsys.readouterr()
    assert json.loads(out)["error"] == 4 and "DINO_OFFLINE" in err
