"""What people read: messages, tables, progress; plain lines where there is no terminal.

stdout is data, so everything here except `print_table` goes to stderr.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from dino_core.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PLAIN_INTERVAL_S = 10.0  # between progress lines in a log


def note(text: str) -> None:
    """Print a line for people on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning on stderr; yellow on a terminal."""
    text = printable(text)
    if is_terminal(sys.stderr):
        # markup=False, since a path may hold brackets, which rich takes for its tags.
        console(sys.stderr).print(f"warning: {text}", style="yellow", markup=False, highlight=False)
    else:
        note(f"warning: {text}")


def counted(number: int, one: str, many: str = "") -> str:
    """The number with its noun, e.g. "1 image", "2,000 images"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can move its cursor."""
    import os

    # Emacs and some CI systems are terminals by name, but cannot move the cursor.
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def console(stream: TextIO) -> Console:
    """A rich console; rich itself honors NO_COLOR."""
    from rich.console import Console

    # rich would otherwise break lines of a log at 80 columns.
    return Console(file=stream, soft_wrap=not is_terminal(stream))


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    stream: TextIO | None = None,
) -> None:
    """A table whose first column is text and left-aligned, the others right-aligned."""
    stream = stream or sys.stdout
    cells = [["-" if value is None else str(value) for value in row] for row in rows]
    if is_terminal(stream):
        from rich import box
        from rich.table import Table

        table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
        longest = max((len(row[0]) for row in cells), default=0)
        for index, column in enumerate(columns):  # the first column names the row and is not cut
            least = min(longest, 40) if index == 0 else None
            table.add_column(column, justify="right" if index else "left", min_width=least)
        for row in cells:
            table.add_row(*row)
        console(stream).print(table)
        return
    for line in plain_table(columns, cells, title):
        print(line, file=stream)


def plain_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = ""
) -> list[str]:
    """The lines of an aligned table without colors or borders."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = [title] if title else []
    for row in (columns, *rows):
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *rest]).rstrip())
    return lines


def duration(seconds: float) -> str:
    """`75.2` as `1m15s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Ticker:
    """Progress of a long command: a live bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, what: str, total: int | None, bar: tuple[Progress, TaskID] | None) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self._bar = bar
        self._start = self._last = time.monotonic()

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Count `steps` more as done; `detail` follows the numbers."""
        self.done += steps
        now = time.monotonic()
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=self.done, detail=self._text(now, detail))
        # A log gets a line now and then instead of one per image.
        elif now - self._last >= PLAIN_INTERVAL_S:
            self._last = now
            note(f"{self._count()} {self._text(now, detail)}")

    def warn(self, text: str) -> None:
        """A warning above the bar."""
        if self._bar is None:
            warn(text)
        else:
            text = printable(text)
            self._bar[0].console.print(f"warning: {text}", style="yellow", markup=False)

    def rate(self) -> float:
        """Units per second since the start."""
        return self.done / max(time.monotonic() - self._start, 1e-9)

    def _count(self) -> str:
        return f"{self.done}/{self.total} {self.what}" if self.total else f"{self.done} {self.what}"

    def _text(self, now: float, detail: str) -> str:
        rate = self.done / max(now - self._start, 1e-9)
        parts = [f"{rate:.1f}/s"]
        if self.total and rate > 0:
            parts.append(f"ETA {duration((self.total - self.done) / rate)}")
        return "  ".join([*parts, detail] if detail else parts)


@contextmanager
def ticker(what: str, total: int | None) -> Iterator[Ticker]:
    """Show the progress of `total` units (None: unknown) called `what` while the block runs."""
    if not is_terminal(sys.stderr):
        yield Ticker(what, total, None)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(what),
        TextColumn("{task.fields[detail]}"),
    )
    # transient: the bar disappears at the end, and the results remain.
    with Progress(*columns, console=console(sys.stderr), transient=True) as progress:
        yield Ticker(what, total, (progress, progress.add_task("", total=total, detail="")))
