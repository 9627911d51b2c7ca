"""Reads `.pth` files without executing anything: only tensors and plain containers are created.

It reads every format that `torch.save` ever wrote, and bare pickles, from a memory map of the file:

- zip (since torch 1.6): `NAME/data.pkl`, whose persistent ids name the uncompressed parts
  `NAME/data/KEY`. These stay on disk until they are used.
- "legacy" (since torch 0.1.10, or with `_use_new_zipfile_serialization=False`): five pickles (magic
  number, version, machine, content, keys), then for each key its length and bytes.
- tar (before that): `storages`, `tensors`, `pickle`.
"""

from __future__ import annotations

import io
import mmap
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import torch

from dino_core.checkpoints.foreign.pickle_machine import Inert, Malformed
from dino_core.checkpoints.foreign.pickled_values import (
    Budget,
    Storage,
    amount,
    machine,
    storage_dtype,
    storage_of,
    tensor_in,
    whole_number,
)
from dino_core.checkpoints.foreign_kinds import looks_like_safetensors
from dino_core.checkpoints.header import check_file
from dino_core.errors import CheckpointError

__all__ = ["Inert", "check_pickled", "load_pickled"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_ZIP_START = b"PK\x03\x04"
_ZIP_HEADER = struct.Struct("<26xHH")  # of a local file header: lengths of name and extra field
_TAR_MARK = slice(257, 262)
_INT64 = struct.Struct("<q")


def load_pickled(path: Path) -> Any:
    """The content of a `.pth` or `.pkl` file: CPU tensors, containers, numbers, inert objects.

    Tensors may be views of the file that are read when they are used, so it must not change
    meanwhile.

    Raises:
        CheckpointError: The file is missing, empty, truncated, of another kind, or claims more
            bytes than it has.
    """
    return _guarded(path, _read)


def check_pickled(path: Path) -> None:
    """Read a whole file, and compare the checksums of its parts if it has any.

    Raises: CheckpointError like `load_pickled`, or if bytes are damaged.
    """

    def read(buffer: mmap.mmap) -> None:
        _read(buffer)
        if buffer[:4] == _ZIP_START:
            for info, start in _Archive(buffer).parts.values():
                if zlib.crc32(memoryview(buffer)[start : start + info.file_size]) != info.CRC:
                    raise Malformed(f"the bytes of {info.filename} are damaged")

    _guarded(path, read)


def _guarded(path: Path, read: Callable[[mmap.mmap], Any]) -> Any:
    check_file(path)
    try:
        if looks_like_safetensors(path):
            raise CheckpointError(
                f"{path}: a safetensors file, not one of torch.save",
                "one that dino wrote needs no import; rename it so that it ends in .safetensors",
            )
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise CheckpointError(f"{path}: is empty", "fetch it again")
            # A private, writable mapping: torch wants writable memory, changes never reach the
            # file, and pages are read only when a tensor is used.
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return read(buffer)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a malformed file can cause any exception
        reason = str(error)[:300] or type(error).__name__
        raise CheckpointError(
            f"{path}: truncated, or not written by torch.save ({reason})",
            "fetch the file again; nothing in it was executed",
        ) from error


def _read(buffer: mmap.mmap) -> Any:
    if buffer[:4] == _ZIP_START:
        return _read_zip(buffer)
    if buffer[_TAR_MARK] == b"ustar":
        return _read_tar(buffer)
    return _read_legacy(buffer)


class _Archive:
    """The parts of a zip file: name to entry and offset of its first byte in the file."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self.parts: dict[str, tuple[zipfile.ZipInfo, int]] = {}
        total = 0
        with zipfile.ZipFile(cast(Any, buffer)) as archive:
            for info in archive.infolist():
                name = info.filename
                # Stored parts need no memory of their own, and exclude zip bombs.
                if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                    raise Malformed(
                        f"{name} is compressed or encrypted, which torch.save does not do; it "
                        f"claims {info.file_size} bytes"
                    )
                begin = info.header_offset
                if buffer[begin : begin + 4] != _ZIP_START:
                    raise Malformed(f"{name} is not where the table of contents says")
                # The local header has a name and an extra field of its own lengths, which may
                # differ from those in the table of contents.
                begin += 30 + sum(_ZIP_HEADER.unpack(buffer[begin : begin + 30]))
                total += info.file_size
                # The sum as well: entries that overlap could claim the same bytes many times.
                if begin + info.file_size > len(buffer) or total > len(buffer):
                    raise Malformed(
                        f"{name} claims {info.file_size} bytes, the file has {len(buffer)}"
                    )
                self.parts[name] = (info, begin)


def _read_zip(buffer: mmap.mmap) -> Any:
    archive = _Archive(buffer)
    names = [n for n in archive.parts if n == "data.pkl" or n.endswith("/data.pkl")]
    if not names:
        raise Malformed("a zip file without data.pkl")
    # The outermost one, as an archive may be packed into another.
    folder = min(names, key=len).removesuffix("data.pkl")
    if f"{folder}constants.pkl" in archive.parts:
        raise Malformed("a TorchScript program, which is not executed")

    def bytes_of(name: str) -> bytes:
        info, start = archive.parts[folder + name]
        return buffer[start : start + info.file_size]

    if f"{folder}byteorder" in archive.parts and bytes_of("byteorder") != b"little":
        raise Malformed("written on a big-endian machine")
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Any:
        kind, key, count = _storage_id(identity)
        if key not in storages:
            info, start = archive.parts[f"{folder}data/{key}"]
            dtype = storage_dtype(kind)
            # The pickle states a length as well, which must not exceed the archive's.
            _check_claim(count * dtype.itemsize, info.file_size)
            storages[key] = storage_of(buffer, start, count * dtype.itemsize, dtype)
        return storages[key]

    return machine(Budget(len(buffer)), persistent).load(io.BytesIO(bytes_of("data.pkl")))


def _read_legacy(buffer: mmap.mmap) -> Any:
    """A legacy file, or a bare pickle if it does not begin with the magic number."""
    storages: dict[str, Storage] = {}
    claimed = 0

    def persistent(identity: Any) -> Any:
        nonlocal claimed
        if type(identity) is tuple and identity and identity[0] in ("module", b"module"):
            return Inert("module")
        kind, key, count = _storage_id(identity)
        if key not in storages:
            dtype = storage_dtype(kind)
            # Before anything is allocated: the bytes follow only behind the pickles.
            claimed += count * dtype.itemsize
            _check_claim(claimed, len(buffer))
            storages[key] = Storage(torch.empty(count, dtype=dtype).untyped_storage(), dtype)
        return _view(storages[key], identity[5] if len(identity) > 5 else None)

    reader = machine(Budget(len(buffer)), persistent)
    first = reader.load(buffer)
    # No magic number, so this was the content itself: a bare pickle.
    if type(first) is not int or first != _LEGACY_MAGIC:
        return first
    # Values of the writer's machine, which its tensors do not depend on.
    for _ in ("protocol version", "machine"):
        reader.load(buffer)
    content = reader.load(buffer)
    keys = reader.load(buffer)
    if type(keys) is not list or set(map(str, keys)) != storages.keys():
        raise Malformed("its list of storages is not that of its content")
    for key in keys:
        storage = storages[str(key)]
        width = storage.dtype.itemsize
        nbytes = _INT64.unpack(buffer.read(8))[0] * width
        # The storage was allocated by the pickle's claim and must be filled exactly.
        if nbytes != storage.untyped.nbytes():
            raise Malformed(f"storage {key[:40]} has {nbytes} bytes, its tensors claim others")
        _fill(storage, buffer, nbytes)
    return content


def _fill(storage: Storage, buffer: mmap.mmap, nbytes: int) -> None:
    """Copy the next `nbytes` of the file into `storage`."""
    start = buffer.tell()
    _check_claim(start + nbytes, len(buffer))
    if nbytes:
        data = torch.frombuffer(buffer, dtype=torch.uint8, count=nbytes, offset=start)
        torch.empty(0, dtype=torch.uint8).set_(storage.untyped).copy_(data)
    buffer.seek(start + nbytes)


def _view(storage: Storage, view: Any) -> Storage:
    """The part of a storage that (key, offset, count) names; all of it for None."""
    if view is None:
        return storage
    _, offset, count = view
    width = storage.dtype.itemsize
    begin = whole_number(offset, "a storage's offset") * width
    end = begin + whole_number(count, "a storage's length") * width
    _check_claim(end, storage.untyped.nbytes())
    return Storage(storage.untyped[begin:end], storage.dtype)


def _read_tar(buffer: mmap.mmap) -> Any:
    parts: dict[str, bytes] = {}
    with closing(tarfile.open(fileobj=cast(Any, buffer), mode="r:")) as archive:
        for member in archive:
            begin, end = member.offset_data, member.offset_data + member.size
            if not member.isreg() or member.issparse() or end > len(buffer):
                raise Malformed(f"{member.name[:40]} claims {member.size} bytes or is no file")
            if member.name in ("storages", "tensors", "pickle"):
                parts[member.name] = buffer[begin:end]
    found: dict[Any, Any] = {}

    def persistent(identity: Any) -> Any:
        return Inert("module") if type(identity) is tuple else found[int(identity)]

    budget = Budget(len(buffer))
    reader = machine(budget, persistent)
    storages = _tar_storages(parts["storages"], reader.load)
    tensors = io.BytesIO(parts["tensors"])
    for _ in range(whole_number(reader.load(tensors), "the number of tensors")):
        key, storage, _ = reader.load(tensors)
        # A 32-bit number with padding, then sizes, strides and the offset as 64-bit numbers.
        (dimensions,) = struct.unpack("<i4x", tensors.read(8))
        numbers = struct.unpack(f"<{2 * dimensions + 1}q", tensors.read(16 * dimensions + 8))
        size, stride = numbers[:dimensions], numbers[dimensions:-1]
        found[key] = tensor_in(storages[storage], numbers[-1], size, stride, budget)
    return reader.load(io.BytesIO(parts["pickle"]))


def _tar_storages(part: bytes, load: Callable[[Any], Any]) -> dict[Any, Storage]:
    """Key to storage: the number of them, each one's description and bytes, and views of them."""
    storages: dict[Any, Storage] = {}
    file = io.BytesIO(part)
    for _ in range(whole_number(load(file), "the number of storages")):
        key, _, kind = load(file)
        dtype = storage_dtype(kind)
        nbytes = whole_number(_INT64.unpack(file.read(8))[0], "a storage's length") * dtype.itemsize
        _check_claim(file.tell() + nbytes, len(part))
        storages[key] = storage_of(bytearray(file.read(nbytes)), 0, nbytes, dtype)
    for key, root, offset, count in load(file):
        storages[key] = _view(storages[root], (None, offset, count))
    return storages


def _storage_id(identity: Any) -> tuple[Any, str, int]:
    """Kind, key and number of elements that a persistent id names."""
    if (
        type(identity) is not tuple
        or len(identity) < 5
        or identity[0] not in ("storage", b"storage")
    ):
        raise Malformed("a reference to what is no storage")
    if type(identity[2]) not in (str, int):
        raise Malformed("a storage without a name")
    return identity[1], str(identity[2]), whole_number(identity[4], "a storage's length")


def _check_claim(claimed: int, there: int) -> None:
    """Raises Malformed where a file says that more bytes are in it than there are."""
    if claimed > there:
        raise Malformed(f"its tensors claim {amount(claimed)}, where it has {amount(there)}")
