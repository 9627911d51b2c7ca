"""What a model file says about itself, read without torch and without its weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from dino_core.errors import CheckpointError
from dino_core.metadata import METADATA_KEY, CheckpointMeta, from_json

_MAX_HEADER_BYTES = 100_000_000
_IMPORT_HINT = "a model file of another project is read with `dino models import`"


def read_metadata(path: str | Path) -> CheckpointMeta:
    """The metadata of a `.safetensors` or `.onnx` file of ours.

    Raises:
        CheckpointError: missing, unreadable, truncated, of another kind, or not ours.
    """
    path = Path(path)
    if path.suffix.lower() == ".onnx":
        from dino_core.inference.onnx_runtime import OnnxRuntime

        return OnnxRuntime(path).meta
    return _read_safetensors(path)


def _read_safetensors(path: Path) -> CheckpointMeta:
    """A safetensors file is the header's length (8 bytes), the header as JSON, the tensors."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{path}: truncated, or not a safetensors file ({size} bytes)", _IMPORT_HINT
                )
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path}: a folder, not a model file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a safetensors file", _IMPORT_HINT) from error
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path}: a safetensors file, but not one of dino's (no metadata)", _IMPORT_HINT
        )
    tensors = (v for k, v in header.items() if k != "__metadata__" and isinstance(v, dict))
    try:
        end = 8 + length + max((int(t["data_offsets"][1]) for t in tensors), default=0)
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its list of tensors is damaged", "fetch it again"
        ) from error
    if size < end:
        raise CheckpointError(f"{path}: truncated ({size} of {end} bytes)", "fetch it again")
    return from_json(str(metadata[METADATA_KEY]), str(path))
