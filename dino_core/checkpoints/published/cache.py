"""The folder of fetched models: what lies there, and whether it is still what was put there."""

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
    """Where fetched models are kept: DINO_CACHE, else dino in XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get("DINO_CACHE", "").strip()
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".cache") / "dino"


@dataclass(frozen=True)
class FileRecord:
    """A file as it was when it was written.

    Attributes:
        name: In the model's folder.
        size: In bytes.
        sha256: Of its content.
        mtime_ns: When it was last changed; spares the checksum of a file nobody touched.
        version: Of this library, which wrote or fetched it.
    """

    name: str
    size: int
    sha256: str
    mtime_ns: int
    version: str


@dataclass(frozen=True)
class CachedModel:
    """What the cache holds of one published model.

    Attributes:
        folder: Where.
        source: The published file; None: not there.
        model: The same as ours; None: not there.
    """

    folder: Path
    source: FileRecord | None
    model: FileRecord | None

    def path(self, record: FileRecord) -> Path:
        """Where that file is."""
        return self.folder / record.name


def cached(name: str) -> CachedModel:
    """What is here of the published model `name`; files that somebody deleted are not."""
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
    """Write down what the cache holds of a model. Raises OSError."""
    records = {part: getattr(model, part) for part in ("source", "model")}
    content = {part: asdict(record) if record else None for part, record in records.items()}
    write_text(model.folder / _RECORD, json.dumps({"schema": 1, **content}, indent=1))


def record_of(path: Path, version: str) -> FileRecord:
    """A file as it is now."""
    facts = path.stat()
    return FileRecord(path.name, facts.st_size, sha256_of(path), facts.st_mtime_ns, version)


def check_unchanged(model: CachedModel, record: FileRecord, *, thoroughly: bool = False) -> None:
    """Compare a file with what was written down when it came.

    Args:
        model: Of which it is.
        record: What was written down.
        thoroughly: By its checksum even if its size and time of change are the same.

    Raises: CheckpointError when it has been changed.
    """
    path = model.path(record)
    facts = path.stat()
    same = (facts.st_size, facts.st_mtime_ns) == (record.size, record.mtime_ns)
    if (thoroughly or not same) and (
        facts.st_size != record.size or sha256_of(path) != record.sha256
    ):
        raise CheckpointError(
            f"{path}: is broken or has been changed since it was put there (then "
            f"{record.size} bytes, sha256 {record.sha256[:12]})",
            f"dino models pull {model.folder.name} --again",
        )
