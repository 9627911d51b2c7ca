"""`dino models verify` finds one changed byte anywhere in a model file."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from factories import TINY_INPUT, tiny_checkpoint, tiny_config

from dino_cli.app import run
from dino_core.checkpoints.checksum import check_checksum
from dino_core.checkpoints.header import meta_in, read_entries
from dino_core.checkpoints.io import load_checkpoint, save_checkpoint
from dino_core.checkpoints.published.names import BUILT_IN
from dino_core.checkpoints.zoo import verify_file
from dino_core.detections import ClassMap
from dino_core.errors import CheckpointError
from dino_core.metadata import CheckpointMeta


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "m.safetensors")


def header_length(content: bytes) -> int:
    return 8 + int(struct.unpack("<Q", content[:8])[0])


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_the_checksum_is_the_sha256_of_the_file_with_its_digits_zeroed(model: Path) -> None:
    content = model.read_bytes()
    digits = re.findall(rb'"checksum":"sha256:([0-9a-f]{64})"', content)
    assert len(digits) == 1
    assert hashlib.sha256(content.replace(digits[0], b"0" * 64)).hexdigest() == digits[0].decode()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999999])
def test_one_changed_byte_of_the_weights(model: Path, share: float) -> None:
    assert verify_file(model)
    content = model.read_bytes()
    start = header_length(content)
    flipped(model, start + int((len(content) - start) * share))
    load_checkpoint(model)  # it is a readable file all the same
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        verify_file(model)


@pytest.mark.parametrize(
    "text", [b"square", b"checksum", b"sha256", b"level_embed", b"__metadata__"]
)
def test_one_changed_byte_of_the_header(model: Path, text: bytes) -> None:
    flipped(model, model.read_bytes().index(text) + 1)
    with pytest.raises(CheckpointError):
        verify_file(model)


def test_every_byte_of_a_header(tmp_path: Path) -> None:
    """The header of a file of one tensor, so that trying all of its bytes takes no time."""
    path = tmp_path / "m.safetensors"
    meta = CheckpointMeta("tiny", tiny_config(), TINY_INPUT, ClassMap.from_names(["a", "b"]))
    save_checkpoint(path, {"w": torch.zeros(3)}, meta)
    content = path.read_bytes()

    def check(path: Path) -> None:
        entries = read_entries(path)
        meta_in(entries, path)
        assert check_checksum(path, entries)

    for place in range(len(content)):
        flipped(path, place)
        with pytest.raises(CheckpointError):
            check(path)
        path.write_bytes(content)
    check(path)


def test_a_file_without_checksum_loads_and_says_so(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with safetensors.safe_open(str(model), "pt") as file:
        metadata = {k: v for k, v in file.metadata().items() if k != "checksum"}
    safetensors.torch.save_file(safetensors.torch.load_file(model), model, metadata)
    load_checkpoint(model)
    assert verify_file(model) is False
    assert run(["models", "verify", str(model)]) == 0
    assert "carries no checksum" in capsys.readouterr().out


def test_the_command_finds_a_changed_byte(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "verify", str(model), "dino-nano"]) == 0
    assert capsys.readouterr().out == f"{model}: ok\ndino-nano: ok\n"
    flipped(model, model.stat().st_size // 2)
    assert run(["models", "verify", str(model), "--json"]) == 4
    row = json.loads(capsys.readouterr().out)["verified"][0]
    assert row["ok"] is False and "checksum" in row["error"]


def test_the_built_in_model_has_one() -> None:
    assert verify_file(BUILT_IN["dino-nano"])
