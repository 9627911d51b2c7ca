"""What the sources of a prediction stand for: arguments and lines of lists as items to read.

Only names and headers are examined here. What is named by a person and does not exist is refused;
what is found in a folder, pattern or list and cannot be read becomes an item with an error, so that
one bad file does not stop the rest.
"""

from __future__ import annotations

import codecs
import glob
import os
import re
import urllib.parse
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dino_core.errors import DataError, DinoError
from dino_core.files import require_regular_file
from dino_core.inference.video import VideoInfo, probe_video
from dino_core.inference.web import reachable_url
from dino_core.processing.image_files import HEIC_REMEDY, HEIC_SUFFIXES, IMAGE_SUFFIXES
from dino_core.suggestions import nearest

_VIDEOS = "mp4 avi mov mkv webm m4v mpg mpeg wmv flv ts m2ts mts 3gp ogv"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _VIDEOS.split())
STDIN = "-"

_MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
_ARCHIVES = "zip tar gz tgz bz2 tbz2 xz txz zst 7z rar"
_ARCHIVE_SUFFIXES = frozenset(f".{name}" for name in _ARCHIVES.split())
_LARGEST_LIST = 256_000_000
_UNPACK = "unpack it first, and give the folder"
_STREAMS = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp", "tcp", "mms", "mmsh")
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_WEBCAM = re.compile(r"(?:/dev/video)?([0-9]{1,4})")


@dataclass(frozen=True)
class SourceItem:
    """One image, video, webcam or URL to read, the paths on stdin, or what cannot be read.

    Attributes:
        kind: How it is read; "broken" cannot be.
        source: Path, URL, or webcam index.
        name: As `Frame.name`.
        video: Frame rate and length of a video file; None for other kinds.
        error: Why it cannot be read; None for other kinds than "broken".
    """

    kind: Literal["image", "video", "webcam", "url", "stdin", "broken"]
    source: str
    name: str
    video: VideoInfo | None = None
    error: DataError | None = None


def resolve(source: str, recursive: bool) -> list[SourceItem]:
    """The items that one argument or line stands for.

    Raises:
        ConfigError: an address is malformed.
        DataError: there is nothing of that name, a folder or pattern contains no image, a list
            cannot be read, or an address is given that is not read.
    """
    if not source.strip():
        raise DataError(
            "the name of a source is empty", "give an image, folder, video, URL or list"
        )
    if source == STDIN:
        return [SourceItem("stdin", STDIN, STDIN)]
    if re.match(r"https?:", source, re.IGNORECASE) and not os.path.lexists(source):
        return [_url_item(source)]
    try:
        path = Path(source).expanduser()
        is_folder, exists = path.is_dir(), os.path.lexists(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{source}: cannot be read ({error})") from error
    if is_folder:
        return _resolve_folder(path, recursive)
    if (webcam := _WEBCAM.fullmatch(source)) and not (exists and source.isdecimal()):
        return [SourceItem("webcam", webcam[1], f"webcam-{webcam[1]}")]
    if exists:
        if path.suffix.lower() == ".txt":
            return _resolve_list(path, recursive)
        return [_file_item(path, path.name)]
    if address := _ADDRESS.match(source):
        raise _unread_address(source, address[1].lower())
    if glob.has_magic(source):
        return _resolve_glob(source)
    raise DataError(f"{source}: no such file or folder", _nearest_path(path))


def broken_item(source: str, error: DinoError, name: str = "") -> SourceItem:
    """The item that stands for a source that cannot be read."""
    if not isinstance(error, DataError):
        error = DataError(error.message, error.hint)
    return SourceItem("broken", source, name or Path(source).name, error=error)


def _url_item(url: str) -> SourceItem:
    reachable_url(url)
    parts = urllib.parse.urlsplit(url)
    name = urllib.parse.unquote(parts.path.rsplit("/", 1)[-1]) or parts.hostname or "image"
    if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
        raise DataError(
            f"{url}: videos are not read over the network", "download it first, and give its path"
        )
    return SourceItem("url", url, name.replace("/", "_"))


def _unread_address(source: str, scheme: str) -> DataError:
    """The error for an address with another scheme than http and https."""
    if scheme in _STREAMS:
        return DataError(
            f"{source}: {scheme} streams are not read",
            f"record a part of it and predict that: ffmpeg -i '{source}' -t 60 -c copy clip.mp4",
        )
    if scheme == "file":
        path = urllib.parse.unquote(re.sub(r"^file://(localhost)?", "", source))
        return DataError(f"{source}: file addresses are not read", f"give the path: {path}")
    return DataError(
        f"{source}: {scheme} addresses are not read, only http and https",
        "download the files first, and give their path",
    )


def _file_item(path: Path, name: str) -> SourceItem:
    """A file, which exists at least as a link; broken where it cannot be read."""
    try:
        _check_file(path)
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return SourceItem("video", str(path), name, probe_video(path))
    except DataError as error:
        return broken_item(str(path), error, name)
    return SourceItem("image", str(path), name)


def _check_file(path: Path) -> int:
    """The size of a file in bytes. Raises DataError where it cannot be read."""
    try:
        size = require_regular_file(path).st_size
    except FileNotFoundError as error:
        target = os.readlink(path) if path.is_symlink() else ""
        words = f"the link leads to {target}, which does not exist" if target else "no such file"
        raise DataError(f"{path}: {words}", "restore the file, or remove the link") from error
    except OSError as error:  # a loop of links, or a folder that may not be entered
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: no permission to read it")
    if path.suffix.lower() in _ARCHIVE_SUFFIXES:
        raise DataError(f"{path}: is an archive, not an image or video", _UNPACK)
    return size


def _resolve_folder(folder: Path, recursive: bool) -> list[SourceItem]:
    items = _folder_items(folder, recursive)
    if not items:
        deeper = not recursive and _folder_items(folder, recursive=True)
        archives = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _ARCHIVE_SUFFIXES)
        hint = f"{len(deeper)} are in its subfolders: use --recursive" if deeper else ""
        if archives and not deeper:
            hint = f"it contains the archive {archives[0]}: {_UNPACK}"
        heic = sum(path.suffix.lower() in HEIC_SUFFIXES for path in folder.iterdir())
        if heic and not deeper:
            hint = f"it contains {heic} HEIC {'file' if heic == 1 else 'files'}: {HEIC_REMEDY}"
        raise DataError(f"{folder}: the folder contains no image or video", hint)
    return items


def _folder_items(folder: Path, recursive: bool) -> list[SourceItem]:
    """The images and videos of a folder, sorted by path, without hidden ones."""
    files: list[Path] = []
    broken: list[SourceItem] = []
    for inner in _folders(folder) if recursive else (folder,):
        try:
            files += [
                Path(entry.path)
                for entry in os.scandir(inner)
                if not entry.name.startswith(".")
                and os.path.splitext(entry.name)[1].lower() in _MEDIA_SUFFIXES
                and not _is_folder(entry)
            ]
        except OSError as error:
            unreadable = DataError(f"{inner}: the folder cannot be read ({error.strerror})")
            if inner == folder:
                raise unreadable from error
            broken.append(broken_item(str(inner), unreadable))
    found = [_file_item(path, path.relative_to(folder).as_posix()) for path in sorted(files)]
    return sorted(found + broken, key=lambda item: Path(item.source)) if broken else found


def _folders(folder: Path) -> Iterator[Path]:
    """A folder and those below it, each once, those that links lead to after all others.

    A link may lead to a folder above it, which would never end.
    """
    waiting, behind_links = deque([folder]), deque[Path]()
    seen: set[tuple[int, int]] = set()
    while waiting or behind_links:
        inner = waiting.popleft() if waiting else behind_links.popleft()
        try:
            status = inner.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in seen:
                continue
            seen.add(identity)
            entries = [e for e in os.scandir(inner) if not e.name.startswith(".") and _is_folder(e)]
        except OSError:
            entries = []
        yield inner
        for entry in sorted(entries, key=lambda entry: entry.name):
            (behind_links if entry.is_symlink() else waiting).append(Path(entry.path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _resolve_glob(pattern: str) -> list[SourceItem]:
    matches = sorted(Path(m) for m in glob.glob(os.path.expanduser(pattern), recursive=True))
    files = [p for p in matches if p.suffix.lower() in _MEDIA_SUFFIXES and not p.is_dir()]
    if not files:
        if not matches:
            raise DataError(f"{pattern}: no file matches")
        found = "1 match" if len(matches) == 1 else f"{len(matches)} matches"
        raise DataError(f"{pattern}: no image or video among {found}")
    root = Path(os.path.commonpath([p.parent for p in files]))
    return [_file_item(path, path.relative_to(root).as_posix()) for path in files]


def _resolve_list(path: Path, recursive: bool) -> list[SourceItem]:
    """The sources in a list, one per line.

    Relative paths are resolved from the working directory, or else from the list's own folder.
    """
    size = _check_file(path)
    try:
        if size > _LARGEST_LIST:
            raise ValueError(f"it has more than {_LARGEST_LIST:,} bytes")
        lines = _list_lines(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the list cannot be read ({error})") from error
    items: list[SourceItem] = []
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry:
            continue
        try:
            items += _resolve_line(entry, path.parent, recursive)
        except DinoError as error:
            located = DataError(f"{path} line {number}: {error.message}", error.hint)
            items.append(broken_item(entry, located))
    if not items:
        raise DataError(f"{path}: the list is empty")
    return items


def _list_lines(data: bytes) -> list[str]:
    """The lines of a list of paths: UTF-8 or, after its byte order mark, UTF-16.

    Bytes that are not UTF-8 stand for themselves, because names of files may contain any.

    Raises:
        ValueError: the bytes are not text.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # Windows PowerShell's `>`
        return data.decode("utf-16").splitlines()
    if b"\0" in data:
        raise ValueError("it contains zero bytes and is not a text")
    text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    # Not str.splitlines: names may contain the line separators of Unicode.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _resolve_line(entry: str, folder: Path, recursive: bool) -> list[SourceItem]:
    if entry == STDIN or entry.lower().endswith(".txt"):  # a list could contain itself
        raise DataError(f"'{entry}' is not allowed in a list")
    beside = folder / entry
    if not os.path.lexists(entry) and os.path.lexists(beside):
        entry = str(beside)
    return resolve(entry, recursive)


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
