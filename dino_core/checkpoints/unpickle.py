"""Reading `.pth` files without executing anything: only tensors and plain containers come to life.

A pickle may name any importable object and call it. Here every name but a handful stands for an
inert object that can be made, filled and called without effect, so optimisers, argparse namespaces
and hooks of other projects are skipped over, and a malicious file does nothing.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino_core.errors import CheckpointError


class Inert:
    """Stands for any object of a class that is not let in."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> Inert:
        return Inert()

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def add(self, item: object) -> None:
        pass


class _Rebuild:
    """A function as an object without attributes, which a pickle cannot alter."""

    __slots__ = ()


class _RebuildTensor(_Rebuild):
    __slots__ = ()

    def __call__(
        self, storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
    ) -> Tensor:
        tensor = torch.empty((0,), dtype=storage.dtype)
        untyped = storage._untyped_storage
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if 0 not in size and (last + 1) * tensor.element_size() > untyped.nbytes():
            raise ValueError("a tensor reaches beyond its storage")
        return tensor.set_(untyped, offset, size, stride)


class _RebuildParameter(_Rebuild):
    __slots__ = ()

    def __call__(self, data: Tensor, *_: object) -> Tensor:
        return data


_ALIVE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("torch", "Size"): torch.Size,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # its name in the protocol that torch.save writes
}


class Unpickler(pickle.Unpickler):
    """Looks names up in the list of what may live; torch.load adds the storages."""

    def find_class(self, module: str, name: str, /) -> Any:
        alive = _ALIVE.get((module, name))
        return type(name, (Inert,), {}) if alive is None else alive


def load(file: Any, **kwargs: Any) -> Any:
    """As `pickle.load`, with this module's Unpickler (torch.load calls it for old files)."""
    return Unpickler(file, **kwargs).load()


def load_pickled(path: Path) -> Any:
    """What a `.pth` file holds: tensors on the CPU, containers, numbers, strings, inert objects.

    Raises:
        CheckpointError: missing, truncated, or not a file of `torch.save`.
    """
    try:
        if zipfile.is_zipfile(path) and _is_torchscript(path):
            raise CheckpointError(f"{path}: a TorchScript program, which is not executed")
        with path.open("rb") as file:
            return torch.load(file, "cpu", _pickle_module(), weights_only=False)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path}: a folder, not a model file") from error
    except Exception as error:  # whatever a malformed pickle provokes
        raise CheckpointError(
            f"{path}: truncated, or not written by torch.save ({type(error).__name__}: {error})"
        ) from error


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _pickle_module() -> Any:
    """This module, which has the `Unpickler` and `load` that torch.load asks of a pickle module."""
    import sys

    return sys.modules[__name__]
