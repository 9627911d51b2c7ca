"""Fetching one large file: resumed, checked, whole or not there, by one process at a time.

The transfer itself is huggingface_hub's `http_get` (ranges, retries, redirects, proxies of the
environment), which is imported only then.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from dino_core.errors import CheckpointError
from dino_core.files import is_disk_full, write_error
from dino_core.network import is_offline

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with what is being done, the bytes done so far, and all of them where known."""

_RANGE_NOT_SATISFIABLE = 416
_PIECE = 1 << 18


def fetch(
    url: str,
    target: Path,
    check: Callable[[Path], None],
    progress: Progress | None = None,
) -> None:
    """Fetch `url` as `target`, going on where an earlier call stopped.

    What has come so far lies beside it as `target.part`, and stays there when the transfer breaks
    off. Call it inside `one_at_a_time`.

    Args:
        url: http or https.
        target: Where to; its folder is made. It appears when the file is complete and checked.
        check: Raises CheckpointError for a file that is not the right one.
        progress: Is told how it goes.

    Raises:
        CheckpointError: offline, no such file, the transfer broke off, the disk is full, or what
            came is not what `check` wants (it is deleted).
    """
    check_online(url, target)
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        while True:
            begun = part.stat().st_size if part.exists() else 0
            with part.open("ab") as file:
                _transfer(url, file, begun, progress)
                os.fsync(file.fileno())
            try:
                check(part)
            except CheckpointError as error:
                part.unlink()
                if begun:  # perhaps of another version of the file: all of it again
                    continue
                raise CheckpointError(
                    f"{url}: what came is not the right file: {error.message}",
                    "it was not kept; try again later, or choose another of `dino models list`",
                ) from error
            os.replace(part, target)
            return
    except OSError as error:
        raise _write_error(error, target) from error


def check_online(url: str, target: Path) -> None:
    """Raises CheckpointError where DINO_OFFLINE forbids to fetch `target`."""
    if is_offline():
        raise CheckpointError(
            f"{target} is not here, and DINO_OFFLINE forbids the network",
            f"unset DINO_OFFLINE, or fetch {url} on another machine and `dino models import` it",
        )


def _transfer(url: str, file: Any, begun: int, progress: Progress | None) -> None:
    """Append what is missing of the file at `url`."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    try:
        with _quietly_in_small_pieces():
            http_get(
                url,
                file,
                resume_size=begun,
                headers={"Accept-Encoding": "identity"},  # with another there are no ranges
                displayed_filename=Path(file.name).stem,
                tqdm_class=_bar(progress),
            )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if begun and status == _RANGE_NOT_SATISFIABLE:  # there is no more of it
            return
        raise CheckpointError(
            f"{url}: the server answered {status} {error.response.reason_phrase}",
            "try again later, or choose another of `dino models list`",
        ) from error
    except OSError as error:
        if is_disk_full(error) or error.errno == errno.EACCES:
            raise
        raise _broken_off(url, file, error) from error
    except Exception as error:  # of the HTTP library, which differs between versions
        raise _broken_off(url, file, error) from error


@contextlib.contextmanager
def _quietly_in_small_pieces() -> Iterator[None]:
    """Let http_get write every quarter of a megabyte, not every 10 MB, and log no retries.

    What it has not written is lost when the connection breaks or the process ends.
    """
    from huggingface_hub import constants

    log = logging.getLogger("huggingface_hub.file_download")
    size, level = constants.DOWNLOAD_CHUNK_SIZE, log.level
    constants.DOWNLOAD_CHUNK_SIZE = _PIECE
    log.setLevel(logging.CRITICAL)  # the error at the end says it
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = size
        log.setLevel(level)


def _broken_off(url: str, file: Any, error: Exception) -> CheckpointError:
    file.flush()
    size = os.fstat(file.fileno()).st_size
    reason = str(error) or type(error).__name__
    if size == 0:
        return CheckpointError(
            f"{url}: cannot be fetched ({reason})",
            "check the network and HTTPS_PROXY, or fetch it elsewhere and `dino models import` it",
        )
    return CheckpointError(
        f"{url}: the transfer broke off after {size / 1e6:.1f} MB ({reason})",
        "the same command goes on from there",
    )


def _bar(progress: Progress | None) -> Any:
    """What http_get shows its progress with: a class in the manner of tqdm, which only counts."""

    class Bar:
        def __init__(self, *, initial: int = 0, total: int | None = None, **_: object) -> None:
            self.done, self.total = initial, total
            self.update(0)

        def update(self, count: int = 1) -> None:
            self.done += count
            if progress is not None:
                progress("fetching", self.done, self.total)

        def close(self) -> None:
            pass

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    return Bar


def _write_error(error: OSError, target: Path) -> CheckpointError:
    return write_error(
        target.parent,
        error,
        CheckpointError,
        kept="the part downloaded so far is kept",
        hint="free some space, or move the cache with DINO_CACHE=FOLDER; the same command resumes",
    )


@contextlib.contextmanager
def one_at_a_time(folder: Path, progress: Progress | None = None) -> Iterator[None]:
    """Keep other processes from doing the same in `folder` meanwhile; wait for one that does.

    Raises: CheckpointError when the folder cannot be written.
    """
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if progress is not None:
                progress("waiting for another process that fetches it", 0, None)
            lock.acquire()
    except OSError as error:
        raise _write_error(error, folder / ".lock") from error
    try:
        yield
    finally:
        lock.release()
