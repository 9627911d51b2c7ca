"""Files: written completely or not at all, checked before they are read, and their checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from dino_core.errors import DataError, DinoError

ErrorT = TypeVar("ErrorT", bound=DinoError)

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
_DISK_FULL_WORDS = ("no space", "quota", "file too large")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is in a folder by its name: "..", but no links, are resolved."""
    inside, outside = os.path.abspath(path), os.path.abspath(folder)
    return inside.startswith(os.path.join(outside, ""))


@contextlib.contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file that takes its name when the block ends and vanishes if the block raises.

    An existing file is replaced in one step: it is still intact if the program is killed or the
    disk fills up in between. Missing folders are created.

    Args:
        path: The file to write.
        durable: Flush to the disk first, so that the file also survives a power failure. This
            takes a few milliseconds.

    Raises:
        OSError: the file cannot be written. See `atomic_file` for an error to show to people.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(path)
    try:
        with part.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        # Atomic on POSIX and on Windows, unlike os.rename, which fails there if the file exists.
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """As `whole_file`, for results of a command.

    Raises:
        DinoError: the file cannot be written, for example because the disk is full.
    """
    with write_errors(path), whole_file(path) as file:
        yield file


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write `text` as UTF-8, completely or not at all. Arguments and errors as for `whole_file`.

    Names of files keep their bytes where these are not UTF-8.
    """
    with whole_file(path, durable=durable) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def part_path(path: Path) -> Path:
    """The hidden file in the same folder that holds the content while `path` is being written."""
    # Replacing is atomic only within one file system, hence the same folder. The process id keeps
    # two processes that write the same result apart.
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def require_regular_file(path: Path) -> os.stat_result:
    """Check that `path`, or what it links to, is a regular file, without opening it.

    Opening a named pipe waits for a writer, and a device such as /dev/zero has no end.

    Returns: Its status, for example its size.

    Raises:
        DataError: it is a folder, named pipe, device or socket.
        OSError: it does not exist or cannot be examined.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kinds = (words for is_kind, words in _KINDS if is_kind(status.st_mode))
        kind = next(kinds, "something else")
        raise DataError(f"{path}: not a regular file but {kind}", "copy its content into a file")
    return status


def part_owner(path: Path) -> int | None:
    """The process that writes this part file (see `part_path`); None where it is no part file."""
    match = re.fullmatch(r"\..+\.([0-9]{1,9})\.part", path.name, re.DOTALL)
    return int(match[1]) if match else None


def is_abandoned(part: Path) -> bool:
    """Whether this is a part file whose process was killed, or that this one has yet to begin."""
    owner = part_owner(part)
    if owner is None or os.name != "posix":  # elsewhere, signal 0 would end the process
        return False
    try:
        os.kill(owner, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    # In a container that was started again, this process has the number of the one before.
    return owner == os.getpid()


def json_text(value: object) -> str:
    """`value` as JSON that can be written as UTF-8, whatever names of files it contains.

    Python keeps a byte that is not UTF-8 as a lone surrogate. It is written as its JSON escape,
    which `json.loads` and `os.fsencode` turn into that byte again.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()


def sha256_of(path: Path) -> str:
    """The SHA-256 checksum of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_error(
    path: Path,
    error: Exception,
    kind: type[ErrorT],
    *,
    kept: str = "no incomplete file is left",
    hint: str | None = None,
) -> ErrorT:
    """The error to raise for a failed write.

    Args:
        path: The file or folder that could not be written.
        error: What the system or a library raised.
        kind: Class of the error.
        kept: What became of the data, stated when the disk is full.
        hint: What to do; None suggests to free space or to choose another `--out`.
    """
    if is_disk_full(error):
        return kind(
            f"{path}: the disk is full; {kept}",
            "free some space, or choose another --out" if hint is None else hint,
        )
    reason = getattr(error, "strerror", None) or error
    return kind(
        f"{path}: cannot be written ({reason})", "choose another --out" if hint is None else hint
    )


@contextlib.contextmanager
def write_errors(
    path: Path,
    kind: type[DinoError] = DinoError,
    *,
    kept: str = "no incomplete file is left",
    hint: str | None = None,
) -> Iterator[None]:
    """Raise an OSError of the block as `write_error` describes it."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error, kind, kept=kept, hint=hint) from error


def is_disk_full(error: Exception) -> bool:
    """Whether a write failed because of the disk's size, a quota or a limit on file sizes."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _DISK_FULL
    # safetensors passes the system's message on in an exception of its own, without the number.
    return any(words in str(error).lower() for words in _DISK_FULL_WORDS)
