"""The sources of a prediction (files, folders, globs, videos, webcams, URLs, lists) as frames.

`open_sources` checks everything that can be checked without decoding images. Images are decoded
during iteration, in a thread of their own; one that cannot be read becomes a frame with an error.
"""

from __future__ import annotations

import glob
import os
import re
import sys
import urllib.parse
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dino_core.config import nearest
from dino_core.errors import DataError
from dino_core.inference.prefetch import prefetched
from dino_core.inference.video import VideoInfo, probe_video, read_video, read_webcam
from dino_core.inference.web import fetch
from dino_core.network import is_offline
from dino_core.processing.image_files import IMAGE_SUFFIXES
from dino_core.processing.preprocess import UInt8Image, decode_image, load_image

_VIDEOS = "mp4 avi mov mkv webm m4v mpg mpeg wmv flv ts m2ts mts 3gp ogv"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _VIDEOS.split())
STDIN = "-"


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
class SourceItem:
    """One image, video, webcam or URL to read, or the paths on stdin.

    Attributes:
        kind: How it is read.
        source: Path, URL, or webcam index.
        name: As `Frame.name`.
        video: Frame rate and length of a video file; None for other kinds.
    """

    kind: Literal["image", "video", "webcam", "url", "stdin"]
    source: str
    name: str
    video: VideoInfo | None = None


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
        DataError: a path does not exist or is unreadable, a folder or pattern contains no image,
            a video cannot be decoded, or a URL is given while offline.
    """
    if every < 1:
        raise DataError(f"every {every}: expected a number of at least 1")
    items = [item for source in sources for item in _resolve(str(source), recursive)]
    if not items:
        raise DataError("no source given", "give an image, folder, video, URL or list")
    return Sources(tuple(items), every, prefetch)


def _resolve(source: str, recursive: bool) -> list[SourceItem]:
    if source == STDIN:
        return [SourceItem("stdin", STDIN, STDIN)]
    if re.match(r"https?://", source, re.IGNORECASE):
        return [_url_item(source)]
    path = Path(source).expanduser()
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: cannot be read ({error})") from error
    if is_folder:
        return _resolve_folder(path, recursive)
    if exists:
        # A list of paths, since no image or video has this suffix.
        if path.suffix.lower() == ".txt":
            return _resolve_list(path, recursive)
        return [_file_item(path, path.name)]
    if source.isdecimal():  # after files and folders: a folder may be called 0
        return [SourceItem("webcam", source, f"webcam-{source}")]
    # After existing files, whose names may contain brackets. A shell that finds no match passes the
    # pattern on as it is.
    if glob.has_magic(source):
        return _resolve_glob(source)
    raise DataError(f"{source}: no such file or folder", _nearest_path(path))


def _url_item(url: str) -> SourceItem:
    parts = urllib.parse.urlsplit(url)
    if not parts.hostname:
        raise DataError(f"{url}: the URL has no host")
    if is_offline():
        raise DataError(f"{url}: the network is forbidden", "unset DINO_OFFLINE to allow it")
    name = urllib.parse.unquote(parts.path.rsplit("/", 1)[-1]) or parts.hostname
    return SourceItem("url", url, name.replace("/", "_"))


def _file_item(path: Path, name: str) -> SourceItem:
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: no permission to read it")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return SourceItem("video", str(path), name, probe_video(path))
    return SourceItem("image", str(path), name)


def _resolve_folder(folder: Path, recursive: bool) -> list[SourceItem]:
    files = _media_files(folder, recursive)
    if not files:
        deeper = not recursive and _media_files(folder, recursive=True)
        raise DataError(
            f"{folder}: the folder contains no image or video",
            f"{len(deeper)} are in its subfolders: use --recursive" if deeper else "",
        )
    return [_file_item(path, path.relative_to(folder).as_posix()) for path in files]


def _media_files(folder: Path, recursive: bool) -> list[Path]:
    """The images and videos of a folder, sorted by path, without hidden ones."""
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename}: the folder cannot be read ({error.strerror})"
        ) from error

    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        # In place, which is how os.walk is kept from going deeper.
        folders[:] = [f for f in folders if recursive and not f.startswith(".")]
        found += [
            Path(root, file)
            for file in files
            if not file.startswith(".")
            and os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
        ]
    return sorted(found)


def _resolve_glob(pattern: str) -> list[SourceItem]:
    matches = sorted(Path(m) for m in glob.glob(os.path.expanduser(pattern), recursive=True))
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    files = [p for p in matches if p.is_file() and p.suffix.lower() in known]
    if not files:
        if not matches:
            raise DataError(f"{pattern}: no file matches")
        found = "1 match" if len(matches) == 1 else f"{len(matches)} matches"
        raise DataError(f"{pattern}: no image or video among {found}")
    # Results mirror the folders below the deepest common one, so names cannot collide.
    root = Path(os.path.commonpath([p.parent for p in files]))
    return [_file_item(path, path.relative_to(root).as_posix()) for path in files]


def _resolve_list(path: Path, recursive: bool) -> list[SourceItem]:
    """The sources in a list, one per line.

    Relative paths are resolved from the working directory, or else from the list's own folder.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list cannot be read ({error})") from error
    items: list[SourceItem] = []
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry:
            continue
        if entry == STDIN or entry.lower().endswith(".txt"):  # a list could contain itself
            raise DataError(f"{path} line {number}: '{entry}' is not allowed in a list")
        beside = path.parent / entry
        # The working directory comes first, as for arguments on the command line.
        if not os.path.exists(entry) and os.path.exists(beside):
            entry = str(beside)
        try:
            items += _resolve(entry, recursive)
        except DataError as error:
            raise DataError(f"{path} line {number}: {error.message}", error.hint) from error
    if not items:
        raise DataError(f"{path}: the list is empty")
    return items


def _nearest_path(path: Path) -> str:
    """A hint: the most similar name in the deepest folder of `path` that exists."""
    parent = path
    while not parent.exists() and parent != parent.parent:
        child, parent = parent.name, parent.parent
    try:
        suggestion = nearest(child, sorted(os.listdir(parent)))
    except OSError:
        return ""
    return suggestion or f"looked in {parent.resolve()}"


def _read_item(item: SourceItem, every: int) -> Iterator[Frame]:
    if item.kind == "image":
        yield _read_still(item.source, item.name)
    elif item.kind == "url":
        yield _read_url(item)
    elif item.kind == "stdin":
        yield from _read_stdin()
    else:
        yield from _read_moving(item, every)


def _read_still(source: str, name: str) -> Frame:
    try:
        return Frame(source, name, load_image(source))
    except DataError as error:
        return Frame(source, name, error=error)


def _read_url(item: SourceItem) -> Frame:
    try:
        return Frame(item.source, item.name, decode_image(fetch(item.source), item.source))
    except DataError as error:
        return Frame(item.source, item.name, error=error)


def _read_stdin() -> Iterator[Frame]:
    """Frames of the paths and URLs on stdin. A bad one becomes a frame with an error."""
    # Read line by line, so that results appear while the other program still writes paths.
    for line in sys.stdin:
        # Only the line's end: a path may end in a space.
        entry = line.rstrip("\r\n")
        if not entry.strip():
            continue
        try:
            items: Sequence[SourceItem] = _resolve(entry, recursive=False)
        except DataError as error:
            yield Frame(entry, Path(entry).name, error=error)
            continue
        for item in items:
            yield from _read_item(item, every=1)


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
