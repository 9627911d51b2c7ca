"""The folder of downloaded models: what it contains, and whether that is still intact."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dino_core.errors import CheckpointError
from dino_core.files import sha256_of, write_text

_RECORD = "record.json"


def cache_folder() -> Path:
    """Where downloaded models are kept: DINO_CACHE, else `dino` in XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get("DINO_CACHE", "").strip()
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".cache") / "dino"


@dataclass(frozen=True)
class FileRecord:
    """The state of a cached file when it was written.

    Attributes:
        name: File name in the model's folder.
        size: Size in bytes.
        sha256: Checksum of its content.
        mtime_ns: Time of its last modification. While it and the size are the same, the checksum
            need not be computed again.
        version: Version of this library that downloaded or wrote the file.
    """

    name: str
    size: int
    sha256: str
    mtime_ns: int
    version: str


@dataclass(frozen=True)
class CachedModel:
    """What the cache contains of one published model.

    Attributes:
        folder: The model's folder in the cache.
        source: The file as published; None where it is not in the cache.
        model: The model file imported from it; None where it is not in the cache.
    """

    folder: Path
    source: FileRecord | None
    model: FileRecord | None

    def path(self, record: FileRecord) -> Path:
        """The path of one of the files."""
        return self.folder / record.name


def cached(name: str) -> CachedModel:
    """What the cache contains of the published model `name`. Deleted files count as missing."""
    folder = cache_folder() / "models" / name
    try:
        content = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        records = [_record(folder, content.get(part)) for part in ("source", "model")]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return CachedModel(folder, None, None)
    return CachedModel(folder, records[0], records[1])


def _record(folder: Path, content: Any) -> FileRecord | None:
    record = FileRecord(**content) if content else None
    return record if record is not None and (folder / record.name).is_file() else None


def remember(model: CachedModel) -> None:
    """Record what the cache contains of a model. Raises OSError where that cannot be written."""
    records = {part: getattr(model, part) for part in ("source", "model")}
    content = {part: asdict(record) if record else None for part, record in records.items()}
    write_text(model.folder / _RECORD, json.dumps({"schema": 1, **content}, indent=1))


def record_of(path: Path, version: str) -> FileRecord:
    """The present state of a file.

    Args:
        path: The file.
        version: Version of this library that downloaded or wrote it.
    """
    facts = path.stat()
    return FileRecord(path.name, facts.st_size, sha256_of(path), facts.st_mtime_ns, version)


def check_unchanged(model: CachedModel, record: FileRecord, *, thoroughly: bool = False) -> None:
    """Compare a cached file with its record.

    Args:
        model: The model that the file belongs to.
        record: The file's recorded state.
        thoroughly: Compare the checksum even if size and modification time are the same.

    Raises:
        CheckpointError: the content has changed.
    """
    path = model.path(record)
    facts = path.stat()
    same = (facts.st_size, facts.st_mtime_ns) == (record.size, record.mtime_ns)
    if (thoroughly or not same) and (
        facts.st_size != record.size or sha256_of(path) != record.sha256
    ):
        raise CheckpointError(
            f"{path}: damaged or changed since it was written ({facts.st_size} bytes; then "
            f"{record.size} bytes, sha256 {record.sha256[:12]})",
            f"dino models pull {model.folder.name} --again",
        )
