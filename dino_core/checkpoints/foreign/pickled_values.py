"""What is created from a pickle: tensors, NumPy arrays and numbers, plain containers.

Sizes and shapes that a file claims are compared with the bytes it has before any memory is taken.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_core.checkpoints.foreign.pickle_machine import Malformed, PickleMachine, PureFunction

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip

_COPIES = 16  # all values together may take this multiple of the file's size
# A tiny but honest file may need more than 16 times its size, because Python objects have overhead.
_SMALL_FILE = 1 << 20
_VIEWS = 8  # all tensors together may have this multiple of the file's size as float32
_ALWAYS = 256 << 20  # bytes that expanded tensors may take, however small the file
_WIDTH = 4  # bytes of a number when it is used: half precision is converted to float32
_PLAIN_DTYPE = re.compile(r"[<>|=]?(?:\?|b1|[iuf][1248]|c8|c16)")
_MAX_DIMENSIONS = 64


class Budget:
    """Limits the memory of all values of a file, so that a few bytes cannot claim terabytes.

    Args:
        size: Size of the file in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._copies = _COPIES * max(size, _SMALL_FILE)
        self._views = _VIEWS * size + _ALWAYS

    def copy(self, count: int, what: str) -> None:
        """Raises Malformed if `count` more bytes of memory are too many."""
        self._copies -= count
        self._check(self._copies, count, what)

    def view(self, count: int, what: str) -> None:
        """Raises Malformed if another tensor that takes `count` bytes in use is too much.

        It takes no memory yet, but does when it is converted or copied: an expanded tensor has more
        elements than its storage.
        """
        self._views -= count
        self._check(self._views, count, what)

    def _check(self, left: int, count: int, what: str) -> None:
        if left < 0:
            raise Malformed(f"{what} claims {amount(count)}; the file has {amount(self._size)}")


@dataclass(frozen=True)
class Storage:
    """The memory of one or several tensors."""

    untyped: torch.UntypedStorage
    dtype: torch.dtype


@dataclass
class _DType:
    """A NumPy dtype while it is read: its letters, then its byte order."""

    code: str


def storage_of(buffer: Any, offset: int, nbytes: int, dtype: torch.dtype) -> Storage:
    """Bytes of a writable buffer as a storage, shared if they are aligned, otherwise copied."""
    if nbytes == 0:
        return Storage(torch.empty(0).untyped_storage(), dtype)
    data = torch.frombuffer(buffer, dtype=torch.uint8, count=nbytes, offset=offset)
    # torch requires aligned memory, and zip files of other writers do not align their parts.
    if data.data_ptr() % max(dtype.itemsize, 1):
        data = data.clone()
    return Storage(data.untyped_storage(), dtype)


def storage_dtype(kind: Any) -> torch.dtype:
    """The element type of one of torch's storage classes."""
    name = str(getattr(kind, "kind", "")).rpartition(".")[2]
    if name not in STORAGE_DTYPES:
        raise Malformed(f"a storage of kind '{name[:40]}'")
    return STORAGE_DTYPES[name]


def whole_number(value: Any, what: str) -> int:
    """`value`, if it is an int of at least 0. Raises Malformed otherwise."""
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise Malformed(f"{what} is no size")
    return value


def tensor_in(storage: Any, offset: Any, size: Any, stride: Any, budget: Budget) -> Tensor:
    """A tensor within `storage`. Raises Malformed if it goes beyond it."""
    if not isinstance(storage, Storage):
        raise Malformed("a tensor without a storage")
    offset = whole_number(offset, "a tensor's offset")
    shape = [whole_number(n, "a tensor's shape") for n in _list(size)]
    steps = [whole_number(n, "a tensor's stride") for n in _list(stride)]
    if len(shape) != len(steps) or len(shape) > _MAX_DIMENSIONS:
        raise Malformed("a tensor's shape and stride do not fit")
    if 0 in shape:
        return torch.empty(shape, dtype=storage.dtype)
    width, there = storage.dtype.itemsize, storage.untyped.nbytes()
    # The index of the element that is farthest from the beginning; strides are not negative.
    last = offset + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
    nbytes = math.prod(shape) * width
    if (last + 1) * width > there:
        raise Malformed(
            f"a tensor of {_shape(shape)} claims {amount(nbytes)} and reaches beyond its storage "
            f"of {amount(there)}"
        )
    budget.view(math.prod(shape) * max(width, _WIDTH), f"a tensor of {_shape(shape)}")
    return torch.empty(0, dtype=storage.dtype).set_(storage.untyped, offset, shape, steps)


def machine(budget: Budget, persistent: Callable[[Any], Any]) -> PickleMachine:
    """A reader of pickles that creates the ordinary content of checkpoints.

    Args:
        budget: What the file may take.
        persistent: As PickleMachine's.
    """
    values = _Values(budget)
    return PickleMachine(values.functions(), values.builders(), persistent)


class _Values:
    """The pure functions of one file, which share its budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def functions(self) -> Mapping[str, PureFunction]:
        table: dict[str, PureFunction] = {
            "collections.OrderedDict": self.ordered_dict,
            "builtins.set": self.set,
            "__builtin__.set": self.set,  # its name in the protocol that torch.save writes
            "builtins.frozenset": self.frozen_set,
            "__builtin__.frozenset": self.frozen_set,
            "builtins.bytes": self.no_bytes,
            "__builtin__.bytes": self.no_bytes,
            "torch.Size": self.size,
            "_codecs.encode": self.encode,  # bytes, in that protocol
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": self.first,
            "torch._utils._rebuild_parameter_with_state": self.first,
            "torch._tensor._rebuild_from_type_v2": self.tensor_of_subclass,
            "numpy.dtype": self.dtype,
        }
        # The module was renamed, and files keep the name of the version that wrote them.
        for core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
            table[f"{core}.multiarray._reconstruct"] = self.new_array
            table[f"{core}.multiarray.scalar"] = self.scalar
            table[f"{core}.numeric._frombuffer"] = self.array
        return table

    def builders(self) -> Mapping[type, Callable[[Any, Any], None]]:
        return {np.ndarray: self.fill_array, _DType: self.set_byte_order}

    def ordered_dict(self, items: Any = ()) -> OrderedDict[Any, Any]:
        pairs = _list(items)
        if not all(type(p) in (list, tuple) and len(p) == 2 and type(p[0]) is str for p in pairs):
            raise Malformed("an OrderedDict of what is no pairs")
        # About what an entry of a dictionary takes.
        self._budget.copy(100 * len(pairs), "an OrderedDict")
        return OrderedDict(pairs)

    def set(self, items: Any = ()) -> set[Any]:
        values = _list(items)
        self._budget.copy(100 * len(values), "a set")
        return {v for v in values if type(v) in (str, bytes, float, bool) or _is_small(v)}

    def frozen_set(self, items: Any = ()) -> frozenset[Any]:
        return frozenset(self.set(items))

    def size(self, values: Any = ()) -> tuple[int, ...]:
        return tuple(whole_number(v, "torch.Size") for v in _list(values))

    def no_bytes(self) -> bytes:
        return b""  # protocols without bytes write this for empty ones

    def encode(self, text: Any, encoding: Any = "") -> bytes:
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise Malformed("text that stands for no bytes")
        self._budget.copy(len(text), "a text")
        return text.encode("latin-1")

    def first(self, value: Any, *_: Any) -> Any:
        return value

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        return tensor_in(storage, offset, size, stride, self._budget)

    def tensor_of_subclass(self, function: Any, _: Any, arguments: Any, *__: Any) -> Any:
        # The function comes from the file, so it may only be one that is in the table anyway.
        if function not in (self.tensor, self.first) or type(arguments) is not tuple:
            raise Malformed("a tensor of an unknown kind")
        return function(*arguments)

    def dtype(self, code: Any, *_: Any) -> _DType:
        return _DType(code if type(code) is str else "")

    def set_byte_order(self, dtype: _DType, state: Any) -> None:
        order = state[1] if type(state) is tuple and len(state) > 1 else ""
        if order in ("<", ">") and dtype.code[:1] not in ("<", ">"):
            dtype.code = order + dtype.code.lstrip("|=")

    def new_array(self, *_: Any) -> np.ndarray[Any, Any]:
        return np.empty(0, np.uint8)

    def fill_array(self, array: np.ndarray[Any, Any], state: Any) -> None:
        """Fill an array with its content; an array of Python objects stays empty."""
        if type(state) is not tuple or len(state) != 5:
            raise Malformed("an array without content")
        _, shape, dtype, fortran, raw = state
        # An array of dtype object: its elements are whatever the pickle holds.
        if type(raw) is list:
            return
        # Checked and copied by our own code first. `__setstate__` then gets only values that are
        # consistent.
        filled = self.array(raw, dtype, shape, "F" if fortran is True else "C")
        state = (1, filled.shape, filled.dtype, fortran is True, filled.tobytes("A"))
        array.__setstate__(state)

    def array(self, raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
        if type(raw) is str:  # written by Python 2
            raw = raw.encode("latin-1")
        kind, sizes = _numpy_dtype(dtype), [whole_number(n, "an array's shape") for n in shape]
        if type(raw) not in (bytes, bytearray) or len(sizes) > _MAX_DIMENSIONS // 2:
            raise Malformed("an array of no bytes")
        if math.prod(sizes) * kind.itemsize != len(raw):
            raise Malformed(
                f"an array of {_shape(sizes)} claims {amount(math.prod(sizes) * kind.itemsize)} "
                f"and has {amount(len(raw))}"
            )
        self._budget.copy(2 * len(raw), "an array")
        flat = np.frombuffer(raw, kind).copy()
        return flat.reshape(sizes, order="F" if order == "F" else "C")

    def scalar(self, dtype: Any, raw: Any = b"") -> Any:
        """A Python number; for NumPy types that have none, the bytes."""
        if type(raw) is str:
            raw = raw.encode("latin-1")
        if type(raw) is not bytes or not isinstance(dtype, _DType):
            return None
        if not _PLAIN_DTYPE.fullmatch(dtype.code):
            return raw
        kind = _numpy_dtype(dtype)
        if len(raw) != kind.itemsize:
            raise Malformed("a number of the wrong length")
        return np.frombuffer(raw, kind)[0].item()


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """A dtype of plain numbers. Raises Malformed for others."""
    if not isinstance(dtype, _DType) or not _PLAIN_DTYPE.fullmatch(dtype.code):
        raise Malformed("an array of what are no numbers")
    return np.dtype(dtype.code)


def _list(values: Any) -> list[Any]:
    if type(values) not in (list, tuple):
        raise Malformed("no list where one belongs")
    return list(values)


def _is_small(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 62


def _shape(sizes: Iterable[int]) -> str:
    return "x".join(str(n) for n in sizes) or "one value"


def amount(count: int) -> str:
    """A number of bytes in a readable unit, however large."""
    for exponent, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**exponent:
            whole = count // 10**exponent
            return f"{whole} {unit}" if whole < 10**6 else f"more than {10**6} {unit}"
    return f"{count} bytes"
