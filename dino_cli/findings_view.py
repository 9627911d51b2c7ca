"""Findings about data as people read them: grouped by severity, with remedy and first places."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from dino_cli import render

if TYPE_CHECKING:
    from dino_core.data.check.findings import Finding

_PLACES = 2
_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}


def show_findings(findings: Sequence[Finding], root: Path, stream: TextIO) -> None:
    """Print each finding with its remedy and its first places, relative to the data set."""
    terminal = render.console(stream)
    width = terminal.width if render.is_terminal(stream) else None
    severity = ""
    for finding in findings:
        if finding.severity != severity:
            severity = finding.severity
            terminal.print(f"{severity}s", style=_STYLES[severity], markup=False)
        terminal.print(f"  {finding.message}", markup=False, highlight=False)
        for line in _places(finding, root):
            for text in _wrapped(line, width):
                terminal.print(text, style="dim", markup=False, highlight=False)


def _places(finding: Finding, root: Path) -> Iterator[str]:
    if finding.hint:
        yield f"fix: {finding.hint}"
    for fault in finding.examples[:_PLACES]:
        yield fault.place.replace(f"{root}{os.sep}", "")
    more = len(finding.examples) - _PLACES
    if more > 0:
        yield f"... and {more:,} more"


def _wrapped(line: str, width: int | None) -> list[str]:
    """The line, indented, in as many lines as the terminal needs: its end says what is wrong."""
    if width is None:
        return [f"      {line}"]
    return textwrap.wrap(
        line, width, initial_indent=" " * 6, subsequent_indent=" " * 8, break_on_hyphens=False
    )
