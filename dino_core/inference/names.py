"""Names of output files: each source's own relative name, made unique."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

# What some file systems refuse, and bytes that are not UTF-8, which Python keeps as surrogates.
_FORBIDDEN = re.compile(r'[<>:"\\|?*\x00-\x1f\x7f\ud800-\udfff]')


class NameBook:
    """Gives each source a relative path without suffix that no other source has.

    Paths that differ only in case count as the same, because some file systems treat them so.
    """

    def __init__(self) -> None:
        self._stem_of: dict[str, str] = {}
        self._taken: set[str] = set()

    def stem(self, source: str, name: str) -> str:
        """The stem of a source, the same on every call.

        Args:
            source: Identifies the source; an empty string is a new source on each call.
            name: Relative path that the stem is made from, e.g. `sub/a.jpg`.
        """
        if source and source in self._stem_of:
            return self._stem_of[source]
        path = PurePosixPath(*(safe_name(p) for p in name.split("/") if p not in ("", ".", "..")))
        plain = path.with_suffix("").as_posix() if path.suffix else path.as_posix()
        # a.jpg and a.png become "a" and "a.png"; only then are numbers used.
        candidates = [plain if plain not in ("", ".") else "image", path.as_posix()]
        number = 2
        while (stem := candidates.pop(0)).casefold() in self._taken:
            if not candidates:
                candidates.append(f"{plain}-{number}")
                number += 1
        self._taken.add(stem.casefold())
        if source:
            self._stem_of[source] = stem
        return stem


def safe_name(part: str) -> str:
    """One part of a path, with an underscore for each character that some file system refuses."""
    return _FORBIDDEN.sub("_", part).strip() or "_"


def frame_stem(stem: str, frame: int | None) -> str:
    """The stem of one frame of a video; `stem` itself for a still image."""
    return stem if frame is None else f"{stem}_{frame:06d}"
