"""Files appear whole or not at all, also when the disk is full."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dino_core.errors import DinoError
from dino_core.inference.atomic import atomic_file


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
