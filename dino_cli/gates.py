"""`--fail-if 'person>0'`: a condition on how many objects the whole run found."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dino_core.errors import ConfigError

COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
ANY = "any"  # instead of a class name: objects of all classes


@dataclass(frozen=True)
class Gate:
    """`label comparison count`, true when the run must fail."""

    label: str
    comparison: str
    count: int

    def fails(self, counts: Mapping[str, int]) -> bool:
        """Whether the objects found, by class name, meet the condition."""
        return COMPARISONS[self.comparison](self.found(counts), self.count)

    def found(self, counts: Mapping[str, int]) -> int:
        """Number of objects that the condition is about."""
        return sum(counts.values()) if self.label == ANY else counts.get(self.label, 0)

    def __str__(self) -> str:
        return f"{self.label}{self.comparison}{self.count}"


def parse_gate(text: str) -> Gate:
    """Read a condition such as `person>0`. Raises ConfigError where it is malformed."""
    # Longer signs come first, or ">" would match the beginning of ">=". The class is matched
    # lazily, since its name may contain spaces.
    match = re.fullmatch(r"\s*(.+?)\s*(>=|<=|==|!=|>|<)\s*(\d+)\s*", text)
    if match is None:
        raise ConfigError(
            f"--fail-if {text}: expected CLASS, one of {' '.join(COMPARISONS)}, and a number",
            "e.g. --fail-if 'person>0', or 'any>0' for every class",
        )
    return Gate(match[1], match[2], int(match[3]))
