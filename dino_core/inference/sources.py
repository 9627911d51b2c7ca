"""The sources of a prediction (files, folders, globs, videos, webcams, URLs, lists) as frames.

`open_sources` checks everything that can be checked without decoding images. Images are decoded
during iteration, in a thread of their own; one that cannot be read becomes a frame with an error.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from dino_core.errors import DataError, DinoError
from dino_core.inference.prefetch import prefetched
from dino_core.inference.resolve import SourceItem, broken_item, resolve
from dino_core.inference.video import read_video, read_webcam
from dino_core.inference.web import fetch
from dino_core.processing.preprocess import UInt8Image, decode_image, load_image

_LONGEST_LINE = 1 << 16


@dataclass(frozen=True)
class Frame:
    """One image or video frame, or the reason why it could not be read.

    Attributes:
        source: The path, URL or device as given, or the path found in a given folder.
        name: Relative path that outputs are named after: from the given folder, or the file's name.
        image: (H, W, 3) RGB uint8, upright; None where there is an error.
        error: Why the image could not be read.
        frame: Frame number in a video, from 0; None for a still image.
        time_s: Time of that frame in seconds.
        fps: Frames per second of the output video.
        index: Position in the whole stream, from 0.
    """

    source: str
    name: str
    image: UInt8Image | None = None
    error: DataError | None = None
    frame: int | None = None
    time_s: float | None = None
    fps: float | None = None
    index: int = 0


@dataclass(frozen=True)
class Sources:
    """Checked sources, which are read in order when iterated.

    Attributes:
        items: What will be read.
        every: Every n-th frame of a video or webcam is used.
        prefetch: Images decoded ahead in a thread; 0 decodes in the calling thread.
    """

    items: tuple[SourceItem, ...]
    every: int = 1
    prefetch: int = 2

    @property
    def total(self) -> int | None:
        """Number of frames; None where it cannot be known (stdin, webcam)."""
        count = 0
        for item in self.items:
            if item.kind in ("stdin", "webcam"):
                return None
            if item.video is None:
                # An image or a URL is one frame.
                count += 1
            elif item.video.frames is None:
                return None
            else:
                count += -(-item.video.frames // self.every)  # rounded up
        return count

    def without(self, done: Collection[str]) -> Sources:
        """The same sources without the still images whose `source` is in `done`."""
        # Videos are always predicted again, because a record does not show whether all of their
        # frames were done.
        kept = (i for i in self.items if i.kind not in ("image", "url") or i.source not in done)
        return replace(self, items=tuple(kept))

    def __iter__(self) -> Iterator[Frame]:
        frames = self._read()
        if self.prefetch > 0:
            # Reading runs in another thread from here on, `_read` and everything below it.
            frames = prefetched(frames, self.prefetch)
        for index, frame in enumerate(frames):
            yield replace(frame, index=index)

    def _read(self) -> Iterator[Frame]:
        for item in self.items:
            yield from _read_item(item, self.every)


def open_sources(
    sources: Iterable[str | Path],
    *,
    recursive: bool = False,
    every: int = 1,
    prefetch: int = 2,
) -> Sources:
    """Resolve and check sources.

    Args:
        sources: Any mix of images, folders, glob patterns, videos, webcam indices, http(s) URLs,
            `-` (paths on stdin, one per line) and `.txt` lists of paths.
        recursive: Also search the subfolders of a folder.
        every: Use every n-th frame of a video or webcam.
        prefetch: Images decoded ahead in a thread.

    Raises:
        ConfigError: a URL is malformed.
        DataError: a path does not exist, a folder or pattern contains no image, a list cannot be
            read, or a URL is given while offline. A file that exists and cannot be read, or a
            missing line of a list, is a frame with an error instead.
    """
    if every < 1:
        raise DataError(f"every {every}: expected a number of at least 1")
    items = [item for source in sources for item in resolve(str(source), recursive)]
    if not items:
        raise DataError("no source given", "give an image, folder, video, URL or list")
    return Sources(tuple(items), every, prefetch)


def _read_item(item: SourceItem, every: int) -> Iterator[Frame]:
    if item.kind in ("image", "url"):
        yield _read_still(item)
    elif item.kind == "stdin":
        yield from _read_stdin(every)
    elif item.kind == "broken":
        yield Frame(item.source, item.name, error=item.error)
    else:
        yield from _read_moving(item, every)


def _read_still(item: SourceItem) -> Frame:
    source = item.source
    try:
        image = decode_image(fetch(source), source) if item.kind == "url" else load_image(source)
        return Frame(source, item.name, image)
    except DataError as error:
        return Frame(item.source, item.name, error=error)


def _read_stdin(every: int) -> Iterator[Frame]:
    """Frames of the paths and URLs on stdin. A bad one becomes a frame with an error.

    Raises:
        DataError: stdin is closed or contains no path.
    """
    empty = True
    for entry in _stdin_lines():
        empty = False
        try:
            items = resolve(entry, recursive=False)
        except DinoError as error:
            items = [broken_item(entry, error)]
        for item in items:
            yield from _read_item(item, every)
    if empty:
        raise DataError("stdin: no path was given", "write one path per line into the pipe")


def _stdin_lines() -> Iterator[str]:
    """The lines of stdin that are not blank, as soon as each is complete."""
    if sys.stdin is None or sys.stdin.closed:
        raise DataError("stdin: it is closed", "write one path per line into the pipe")
    stream = _stdin_bytes()
    while line := stream.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise DataError(
                f"stdin: a line is longer than {_LONGEST_LINE:,} bytes",
                "write one path per line into the pipe, not the content of images",
            )
        text = line if isinstance(line, str) else line.decode("utf-8", "surrogateescape")
        text = text.removeprefix("\ufeff").rstrip("\r\n")
        if text.strip():
            yield text


def _stdin_bytes() -> IO[Any]:
    """Stdin as bytes, because names of files need not be valid in the encoding of the terminal."""
    try:
        # Not `sys.stdin.buffer`: Python closes that when it ends, and aborts if another thread is
        # still reading from it, as after an interrupt.
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except (AttributeError, OSError):  # a program replaced sys.stdin by an object without a file
        return getattr(sys.stdin, "buffer", sys.stdin)


def _read_moving(item: SourceItem, every: int) -> Iterator[Frame]:
    frames = (
        read_webcam(int(item.source), every)
        if item.kind == "webcam"
        else read_video(Path(item.source), every)
    )
    # The output has every n-th frame only, and must not run n times as fast.
    fps = item.video.fps / every if item.video else None
    try:
        for moving in frames:
            yield Frame(
                item.source,
                item.name,
                moving.image,
                frame=moving.number,
                time_s=moving.time_s,
                fps=fps,
            )
    except DataError as error:
        yield Frame(item.source, item.name, error=error)
