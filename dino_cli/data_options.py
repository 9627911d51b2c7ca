"""Options of the commands that read labeled data; the table of formats names the choices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dino_cli import options
from dino_core.data.formats.table import FORMATS

_TITLES = ", ".join(each.title for each in FORMATS.values())


def data_argument(**settings: Any) -> Any:
    """The argument DATA, whose help names the formats."""
    help = f"Labeled data, a folder or file: {_TITLES}."
    return typer.Argument(metavar="DATA", help=help, **settings)


Data = Annotated[Path, data_argument()]
Format = Annotated[
    str | None,
    options.one_of("--format", FORMATS, "Format of the data; default: recognized by itself."),
]
To = Annotated[str, options.one_of("--to", FORMATS, "Format to write.")]
