"""Where results go: `--out`, else runs/VERB, runs/VERB-2, ...; a failed start leaves nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from dino_core.errors import ConfigError


class OutputFolder:
    """A result folder, created on entry; after a failure it is removed unless `keep` was called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept = False

    def keep(self) -> None:
        """Keep the folder from here on, whatever happens: it holds results."""
        self.kept = True


def free_path(verb: str, runs: Path = Path("runs")) -> Path:
    """The first of runs/VERB, runs/VERB-2, ... that does not exist."""
    # No number for the first, which is the only one in most folders.
    names = (verb if n == 1 else f"{verb}-{n}" for n in count(1))
    return next(runs / name for name in names if not (runs / name).exists())


@contextmanager
def output_folder(out: Path | None, verb: str) -> Iterator[OutputFolder]:
    """Create the result folder of a command.

    A folder that this created is removed when the block fails before `keep` or leaves it empty; one
    that existed before is never removed.

    Raises:
        ConfigError: the folder cannot be created or written.
    """
    path = out if out is not None else free_path(verb)
    # Noted before mkdir, innermost first, so that a failed start can remove exactly what it
    # created.
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Permissions do not show a read-only mount, and hours of work must not end there.
        probe = path / ".dino-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        _remove_empty(missing)
        raise ConfigError(
            f"{path}: cannot be used as result folder ({error.strerror or error})",
            "choose another with --out",
        ) from error
    folder = OutputFolder(path)
    try:
        yield folder
    except BaseException:
        # A folder that existed before may hold results of others and is never removed.
        if not folder.kept and missing:
            shutil.rmtree(path, ignore_errors=True)
        _remove_empty(missing)
        raise
    _remove_empty(missing)


def _remove_empty(folders: list[Path]) -> None:
    """Remove those of `folders` (innermost first) that are empty."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON; the file is there complete or not at all."""
    from dino_core.files import atomic_file

    with atomic_file(path) as file:
        text = json.dumps(content, ensure_ascii=False)
        file.write(text.encode("utf-8", "backslashreplace"))
