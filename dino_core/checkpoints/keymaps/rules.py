"""Renaming by rules, which are data: full-match patterns with their replacements."""

from __future__ import annotations

import re

Rules = tuple[tuple[str, str], ...]
"""The first pattern that matches a whole name gives the new name."""


def renamed(name: str, rules: Rules) -> str | None:
    """The new name; None where no rule knows `name`."""
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return None
