"""A JSON file of labels, read with errors that name the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dino_core.data.formats.values import read_bytes
from dino_core.errors import DataError


def load_json(file: Path) -> Any:
    """The content of a file. Raises DataError where it cannot be read or is not valid JSON."""
    try:
        return json.loads(read_bytes(file).decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file} line {error.lineno}: not valid JSON ({error.msg})",
            "the file may be truncated; write or download it again",
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not valid JSON ({error})", "save it as UTF-8") from error
    except RecursionError as error:
        raise DataError(f"{file}: not usable JSON (nested too deeply)") from error
    except ValueError as error:  # Python converts integers of up to 4,300 digits.
        raise DataError(f"{file}: not usable JSON (a number has thousands of digits)") from error
