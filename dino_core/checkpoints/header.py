"""The metadata of a `.safetensors` model file, read from its header without torch and weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors

from dino_core.checkpoints.foreign_kinds import (
    check_kind,
    looks_pickled,
    of_another_project,
    project_of_tensors,
)
from dino_core.errors import CheckpointError
from dino_core.metadata import METADATA_KEY, CheckpointMeta, from_json

_IMPORT_HINT = "the .pth files of other DINO code are read with `dino models import`"


def check_file(path: Path) -> None:
    """Check that a path is a file that may be a model before it is opened as one.

    Raises:
        CheckpointError: nothing is there, or a folder, a pipe, a device, or a file of another kind.
    """
    try:
        if path.is_dir():
            raise CheckpointError(
                f"{path}: a folder, not a model file", "give a file in it, e.g. best.safetensors"
            )
        if not path.exists():
            raise CheckpointError(f"{path}: no such file")
        if not path.is_file():  # reading a pipe or a device may never end
            raise CheckpointError(
                f"{path}: not a regular file", "copy its content to a file and give that"
            )
        check_kind(path)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be read ({reason})") from error


def read_header(path: Path) -> CheckpointMeta:
    """Read the metadata of a model file.

    Raises:
        CheckpointError: the file is missing, unreadable, truncated, of another kind, not one of
            ours, or of a newer version.
    """
    return meta_in(read_entries(path), path)


def read_entries(path: Path) -> dict[str, str]:
    """Read the string metadata of a safetensors file.

    The library compares the size of the file with its list of tensors, so a truncated file is
    found although no tensor is read.

    Raises:
        CheckpointError: the file is missing, unreadable, truncated or of another kind.
    """
    check_file(path)
    with read_errors(path), safetensors.safe_open(str(path), framework="numpy") as file:
        return dict(file.metadata() or {})


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Raise what the safetensors library raises for a malformed file as a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except safetensors.SafetensorError as error:
        size = path.stat().st_size
        if looks_pickled(path):
            raise CheckpointError(
                f"{path}: a file of torch.save, not a safetensors file",
                "rename it so that it ends in .pth, or convert it with `dino models import`",
            ) from error
        raise CheckpointError(
            f"{path}: truncated, or not a safetensors file ({size} bytes)",
            f"get it again; {_IMPORT_HINT}",
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: has tensors that this version of PyTorch cannot read ({error})"
        ) from error


def meta_in(entries: Mapping[str, str], path: Path) -> CheckpointMeta:
    """The description of the model in the metadata of its file. Raises like `read_header`."""
    if METADATA_KEY not in entries:
        with read_errors(path), safetensors.safe_open(str(path), framework="numpy") as file:
            project = project_of_tensors(file.keys())
        if project is not None:
            raise of_another_project(path, project)
        raise CheckpointError(
            f"{path}: a safetensors file without the metadata of a dino model", _IMPORT_HINT
        )
    return from_json(entries[METADATA_KEY], str(path))
