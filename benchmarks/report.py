"""What all benchmarks share: options, the description of the machine, tables, goals and JSON.

A row is one measurement. The end of a key is its unit: `_s` is seconds, `_gb` 10^9 bytes, `_gflop`
10^9 operations, `_per_s` per second, `fraction` a fraction of 1, `exponent` an exponent. Any other
number is a ratio. `goal` holds limits of keys of the same row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]

SCHEMA = 1
AT_LEAST = (
    "ratio",
    "gain_on_fp32",
    "images_per_s",
)  # goals that are lower limits; all others are upper limits


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def options(docstring: str | None, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every script has."""
    parser = argparse.ArgumentParser(description=(docstring or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=min(2, cores()))
    parser.add_argument("--repeats", type=int, default=repeats, help="runs after a warm-up")
    parser.add_argument("--tiny", action="store_true", help="a quick try with tiny models")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser


def machine(threads: int, allocator: str) -> dict[str, Any]:
    """Describe the machine."""
    return {
        "cpu": _processor(),
        "cores": cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "threads": threads,
        "allocator": allocator,
    }


def _processor() -> str:
    """Return the processor's name, which `platform` does not find on Linux."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def headline(subject: str, args: argparse.Namespace, allocator: str) -> None:
    """Print what is measured, and on which machine."""
    where = machine(args.threads, allocator)
    print(f"{subject}; {where['cpu']}, {args.threads} of {where['cores']} cores as threads,")
    print(f"torch {where['torch']}, allocator {allocator}, medians of {args.repeats}\n")


def write(args: argparse.Namespace, rows: Sequence[Row], allocator: str) -> None:
    """Write the rows as JSON to `--out`, if it is given."""
    if args.out is None:
        return
    content = {
        "schema": SCHEMA,
        "machine": machine(args.threads, allocator),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "rows": rows,
    }
    args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    """Return the rows as Markdown. `columns` maps titles to keys, which a row may lack."""
    padded = []
    for title, key in columns.items():
        cells = [_cell(row, key) for row in rows]
        text = key == "goal" or any(isinstance(row.get(key), str) for row in rows)
        width = max(map(len, [title, *cells]))
        rule = "-" * width if text else "-" * (width - 1) + ":"
        padded.append([f"{c:{'<' if text else '>'}{width}}" for c in (title, rule, *cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*padded, strict=True))


def quantity(key: str, value: float) -> str:
    """Format a number with the unit that its key ends with."""
    if key.endswith("_per_s"):
        return f"{value:.1f}"
    if key.endswith("_gflop"):
        return f"{value:.1f} GFLOP"
    if key.endswith("_s"):
        return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
    if key.endswith("_gb"):
        return f"{value:.2f} GB" if value >= 0.1 else f"{value * 1e3:.1f} MB"
    if key.endswith("exponent"):
        return f"{value:.2f}"
    if key.endswith("fraction"):
        return f"{value:.0%}"
    return f"{value:.2f}x"


def _cell(row: Row, key: str) -> str:
    value = row.get(key)
    if key == "goal":
        return _goal(row)
    return quantity(key, value) if isinstance(value, (int, float)) else value or ""


def _goal(row: Row) -> str:
    parts = []
    for key, limit in row.get("goal", {}).items():
        lower = key in AT_LEAST
        met = row[key] >= limit if lower else row[key] <= limit
        sign = ">=" if lower else "<="
        parts.append(f"{sign} {quantity(key, limit)}{'' if met else ' (missed)'}")
    return ", ".join(parts)
