"""Downloads one large file: resumable, verified, by one process at a time.

The transfer itself is `http_get` of huggingface_hub, which handles range requests, retries,
redirects and proxies. It is imported only when something is downloaded.
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
"""Called with what is being done, the bytes done so far, and the total where it is known."""

_RANGE_NOT_SATISFIABLE = 416
_PIECE = 1 << 18


def fetch(
    url: str,
    target: Path,
    check: Callable[[Path], None],
    progress: Progress | None = None,
) -> None:
    """Download `url` to `target`, resuming an interrupted download.

    The part downloaded so far is in `target.part` beside it, and is kept when the download is
    interrupted. Call this inside `one_at_a_time`.

    Args:
        url: An http or https URL.
        target: The file to write, which appears once it is complete and verified. Its folder is
            created.
        check: Raises CheckpointError if a file is not the expected one.
        progress: Called while bytes arrive.

    Raises:
        CheckpointError: the network is forbidden, the server has no such file, the transfer was
            interrupted, the disk is full, or `check` refuses the file (which is then deleted).
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
                # The part of an earlier call may be of another version of the file. Nothing is
                # resumed the second time, so this repeats at most once.
                if begun:
                    continue
                raise CheckpointError(
                    f"{url}: the downloaded file is not the expected one: {error.message}",
                    "it was deleted; try again later, or choose another model of "
                    "`dino models list`",
                ) from error
            os.replace(part, target)
            return
    except OSError as error:
        raise _write_error(error, target) from error


def check_online(url: str, target: Path) -> None:
    """Raise CheckpointError if DINO_OFFLINE forbids the download of `target`."""
    if is_offline():
        raise CheckpointError(
            f"{target} does not exist, and DINO_OFFLINE forbids the network",
            f"unset DINO_OFFLINE, or download {url} on another machine and import it with "
            "`dino models import`",
        )


def _transfer(url: str, file: Any, begun: int, progress: Progress | None) -> None:
    """Append what is missing of the file at `url`, after the first `begun` bytes."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    try:
        with _quietly_in_small_pieces():
            http_get(
                url,
                file,
                resume_size=begun,
                # Range requests count bytes of the encoded content, so nothing may be compressed.
                headers={"Accept-Encoding": "identity"},
                displayed_filename=Path(file.name).stem,
                tqdm_class=_bar(progress),
            )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if begun and status == _RANGE_NOT_SATISFIABLE:  # the file was complete already
            return
        raise CheckpointError(
            f"{url}: the server answered {status} {error.response.reason_phrase}",
            "try again later, or choose another model of `dino models list`",
        ) from error
    except OSError as error:
        if is_disk_full(error) or error.errno == errno.EACCES:
            raise
        raise _interrupted(url, file, error) from error
    except Exception as error:  # huggingface_hub uses requests or httpx, depending on its version
        raise _interrupted(url, file, error) from error


@contextlib.contextmanager
def _quietly_in_small_pieces() -> Iterator[None]:
    """Make http_get write after every 256 KiB instead of every 10 MB, and log no retries.

    Bytes that it has not written are lost when the connection breaks or the process ends. Its
    function has no parameter for either.
    """
    from huggingface_hub import constants

    log = logging.getLogger("huggingface_hub.file_download")
    size, level = constants.DOWNLOAD_CHUNK_SIZE, log.level
    constants.DOWNLOAD_CHUNK_SIZE = _PIECE
    log.setLevel(logging.CRITICAL)  # the error of the last attempt is raised and reported
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = size
        log.setLevel(level)


def _interrupted(url: str, file: Any, error: Exception) -> CheckpointError:
    file.flush()
    size = os.fstat(file.fileno()).st_size
    reason = str(error) or type(error).__name__
    if size == 0:
        return CheckpointError(
            f"{url}: cannot be downloaded ({reason})",
            "check the network and HTTPS_PROXY, or download it elsewhere and import it with "
            "`dino models import`",
        )
    return CheckpointError(
        f"{url}: the download was interrupted after {size / 1e6:.1f} MB ({reason})",
        "the same command resumes it",
    )


def _bar(progress: Progress | None) -> Any:
    """A class with the part of tqdm's interface that http_get uses; it reports to `progress`."""

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
    """Hold the lock of `folder`, after waiting for another process that holds it.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if progress is not None:
                progress("waiting for another process that downloads it", 0, None)
            lock.acquire()
    except OSError as error:
        raise _write_error(error, folder / ".lock") from error
    try:
        yield
    finally:
        lock.release()
