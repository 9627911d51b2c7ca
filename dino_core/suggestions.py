"""Hints for a name that is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint `did you mean ...` for an unknown name; empty if no known name is similar."""
    match = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else ""


def nearest_or_all(name: str, known: Iterable[str]) -> str:
    """As `nearest`; the known names if none is similar."""
    known = list(known)
    return nearest(name, known) or f"known: {', '.join(known)}"
