"""A JSON file of labels, read with errors that name the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dino_core.errors import DataError


def load_json(file: Path) -> Any:
    """The content of a file. Raises DataError where it cannot be read or is not valid JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file} line {error.lineno}: not valid JSON ({error.msg})",
            "the file may be truncated; write or download it again",
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON ({error})") from error
