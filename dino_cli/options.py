"""Option types that several commands share, so that one name means one thing everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dino_core.errors import ConfigError
from dino_core.suggestions import nearest_or_all

# Plain help: rich would take longer to import than everything else `dino --help` does.
SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100},
}

RuntimeDtype = Literal["auto", "fp32", "bf16", "fp16"]

Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="DEVICE", help="Where to compute: auto, cpu, cuda, cuda:1 or mps."
    ),
]
Dtype = Annotated[
    RuntimeDtype, typer.Option("--dtype", help="Data type of the network's computation.")
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Images per forward pass.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable JSON on stdout.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Result folder; default: runs/COMMAND, runs/COMMAND-2, ...",
        show_default=False,
    ),
]


def examples(*lines: str) -> str:
    """The `epilog` of a command: example lines that the help does not rewrap."""
    return "Examples:\n\n\b\n" + "\n".join(f"  {line}" for line in lines)


def one_of(option: str, known: Iterable[str], help: str) -> Any:
    """An option that takes one of `known`, which help and shell completion list."""
    names = tuple(known)

    def checked(value: str | None) -> str | None:
        if value is not None:
            _require_known(value, names, option)
        return value

    def completed(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return typer.Option(
        option,
        metavar="|".join(names),
        help=help,
        callback=checked,
        autocompletion=completed,
        show_default=False,
    )


def _require_known(name: str, known: tuple[str, ...], option: str) -> None:
    if name not in known:
        raise ConfigError(f"{option}: unknown name '{name}'", nearest_or_all(name, known))


def comma_separated(text: str | None) -> list[str] | None:
    """`a, b` as ["a", "b"]; None stays None."""
    if text is None:
        return None
    # Empty parts are dropped, so that a trailing comma does no harm.
    return [part.strip() for part in text.split(",") if part.strip()]


def choices(text: str, known: tuple[str, ...], option: str) -> list[str]:
    """The names of a comma-separated list. Raises ConfigError with the nearest known name."""
    chosen = comma_separated(text) or []
    for name in chosen:
        _require_known(name, known, option)
    if not chosen:
        raise ConfigError(f"{option}: nothing chosen", f"known: {', '.join(known)}")
    return chosen


def size_hw(text: str | None, option: str = "--image-size") -> tuple[int, int] | None:
    """`H,W`, `HxW` or `N` (square) as (H, W). Raises ConfigError where it is none of them."""
    if text is None:
        return None
    parts = text.lower().replace("x", ",").split(",")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise ConfigError(f"{option} {text}: expected H,W in pixels", f"e.g. {option} 384,512")
    # A single number is both height and width.
    return (numbers[0], numbers[-1])
