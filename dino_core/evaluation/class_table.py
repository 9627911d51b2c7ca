"""The AP of each class as aligned lines for a log or terminal; of many, the best and the worst."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MAX_CLASSES = 12  # with more classes, only the _ENDS best and worst are shown
_ENDS = 5


def class_lines(per_class: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a header and one line per class, best first; no lines without classes.

    Args:
        per_class: Class name to "ap", "ap50" (None without ground truth) and "boxes".
    """
    if not per_class:
        return []
    known = [name for name in per_class if per_class[name]["ap"] is not None]
    ranked = sorted(known, key=lambda name: -float(per_class[name]["ap"]))
    hidden = max(0, len(ranked) - 2 * _ENDS) if len(ranked) > _MAX_CLASSES else 0
    shown = [*ranked[:_ENDS], *ranked[-_ENDS:]] if hidden else ranked
    width = max(len(name) for name in ("class", *shown))
    lines = [f"{'class':<{width}}      AP    AP50   boxes"]
    for number, name in enumerate(shown):
        if hidden and number == _ENDS:
            lines.append(f"... {hidden} more in between ...")
        row = per_class[name]
        lines.append(f"{name:<{width}}  {row['ap']:6.3f}  {row['ap50']:6.3f}  {row['boxes']:6d}")
    unknown = [name for name in per_class if per_class[name]["ap"] is None]
    if unknown:
        more = f" and {len(unknown) - _MAX_CLASSES} more" if len(unknown) > _MAX_CLASSES else ""
        lines.append(f"no validation boxes: {', '.join(unknown[:_MAX_CLASSES])}{more}")
    return lines
