"""Names of output files: the source's own relative name, and never the same for two sources."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_FORBIDDEN = re.compile(r'[<>:"\\|?*\x00-\x1f]')  # what some file systems refuse


class NameBook:
    """Gives each source a relative path without suffix, unique whatever the letters' case."""

    def __init__(self) -> None:
        self._stem_of: dict[str, str] = {}
        self._taken: set[str] = set()

    def stem(self, source: str, name: str) -> str:
        """The stem of a source; the same one each time it is asked for.

        Args:
            source: What identifies it; an empty one is a new source each time.
            name: Relative path to name it after, e.g. `sub/a.jpg`.
        """
        if source and source in self._stem_of:
            return self._stem_of[source]
        path = PurePosixPath(*(safe_name(p) for p in name.split("/") if p not in ("", ".", "..")))
        plain = path.with_suffix("").as_posix() if path.suffix else path.as_posix()
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
    """One part of a path without letters that a file system may refuse."""
    return _FORBIDDEN.sub("_", part).strip() or "_"


def frame_stem(stem: str, frame: int | None) -> str:
    """The stem of one frame of a video, or `stem` of a still picture."""
    return stem if frame is None else f"{stem}_{frame:06d}"
