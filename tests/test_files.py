"""Files appear completely or not at all, also when the disk is full; which files are read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dino_core.errors import CheckpointError, DataError, DinoError
from dino_core.files import (
    atomic_file,
    json_text,
    require_regular_file,
    write_error,
    write_errors,
    write_text,
)


def test_folders_are_made_and_the_file_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a ü.txt"
    for content in (b"one", b"two"):
        with atomic_file(path) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"one"
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_an_error_inside_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_file(path) as file:
        file.write(b"new" + None)  # type: ignore[operator]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


DiskFull = Callable[[int], AbstractContextManager[None]]


def test_full_disk(tmp_path: Path, disk_full_after: DiskFull) -> None:
    path = tmp_path / "a.bin"
    with (
        disk_full_after(1000),
        pytest.raises(DinoError, match=r"a\.bin: the disk is full.*--out"),
        atomic_file(path) as file,
    ):
        file.write(bytes(100_000))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DinoError, match="cannot be written"), atomic_file(tmp_path / "file" / "a"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_errors_of_a_full_disk(number: int) -> None:
    error = write_error(Path("a"), OSError(number, os.strerror(number)), CheckpointError, kept="ok")
    assert type(error) is CheckpointError
    assert error.message == "a: the disk is full; ok"
    assert error.hint == "free some space, or choose another --out"


def test_other_errors_of_writing_state_the_reason_and_the_hint_of_the_caller() -> None:
    denied = OSError(errno.EACCES, "Permission denied")
    error = write_error(Path("a"), denied, DataError, hint="choose another folder")
    assert (error.message, error.hint) == (
        "a: cannot be written (Permission denied)", "choose another folder"
    )  # fmt: skip
    assert write_error(Path("a"), ValueError("No space left"), DinoError).message == (
        "a: the disk is full; no incomplete file is left"
    )


def test_only_errors_of_the_system_are_translated() -> None:
    with pytest.raises(DataError, match="cannot be written"), write_errors(Path("a"), DataError):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(ZeroDivisionError), write_errors(Path("a")):
        raise ZeroDivisionError


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "link").symlink_to(file)
    require_regular_file(file)
    require_regular_file(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-pipe").symlink_to("pipe")
    for path, kind in (
        (tmp_path, "a folder"),
        (tmp_path / "pipe", "a named pipe"),
        (tmp_path / "to-pipe", "a named pipe"),
        (Path("/dev/zero"), "a device"),
    ):
        with pytest.raises(DataError, match=f"not a regular file but {kind}"):
            require_regular_file(path)
    with pytest.raises(FileNotFoundError):
        require_regular_file(tmp_path / "none")


def test_json_of_a_name_that_is_not_utf8() -> None:
    name = os.fsdecode(b"caf\xe9 \xc3\xbc")
    text = json_text({"name": name})
    assert text == '{"name": "caf\\udce9 \u00fc"}'
    assert os.fsencode(json.loads(text.encode())["name"]) == b"caf\xe9 \xc3\xbc"


def test_text_keeps_the_bytes_of_names(tmp_path: Path) -> None:
    write_text(tmp_path / "names.txt", os.fsdecode(b"caf\xe9 \xc3\xbc"))
    assert (tmp_path / "names.txt").read_bytes() == b"caf\xe9 \xc3\xbc"
