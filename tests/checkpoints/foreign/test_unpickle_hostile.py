"""Files that lie, are damaged, or were made to take memory or time."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import resource
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dino_core.checkpoints.foreign import pickle_machine
from dino_core.checkpoints.foreign.unpickle import check_pickled, load_pickled
from dino_core.errors import CheckpointError

CONTAINERS = Path(__file__).parents[3] / "../shared/parity/foreign/containers"


# --- claims that are lies ---------------------------------------------------------------------


def zip_file(path: Path, pickled: bytes, parts: dict[str, bytes], method: int = 0) -> Path:
    """A file laid out as torch.save's, with any pickle."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x/data.pkl", pickled)
        for name, content in parts.items():
            archive.writestr(f"x/{name}", content)
    return path


class Tensor:
    """Pickles as a tensor of any shape in a storage "0" that claims `count` float32."""

    def __init__(self, count: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0):
        self.identity = ("storage", torch.FloatStorage, "0", "cpu", count)
        self.place = (offset, size, stride, False, collections.OrderedDict())

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return torch._utils._rebuild_tensor_v2, (Storage(self.identity), *self.place)


class Storage:
    def __init__(self, identity: tuple[object, ...]) -> None:
        self.identity = identity


def pickled(content: object) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.identity if isinstance(obj, Storage) else None

    file = io.BytesIO()
    Pickler(file, 2).dump(content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (Tensor(250_000_000_000, (250_000_000_000,), (1,)), "claim 1 TB"),
        (Tensor(10, (250_000_000_000,), (1,)), "250000000000 claims 1 TB"),
        (Tensor(10, (500_000, 500_000), (0, 0)), "500000x500000 claims 1 TB"),  # expanded
        (Tensor(10, (2,), (1,), offset=9), "beyond its storage"),
        (Tensor(10, (2,), (1 << 61,)), "beyond its storage"),
        (Tensor(10, (1 << 70,), (1,)), "no size"),
        (Tensor(10, (-1,), (1,)), "no size"),
        (Tensor(10, (2, 2), (1,)), "do not fit"),
        (Tensor(10, (1,) * 65, (1,) * 65), "do not fit"),
        (Tensor(11, (1,), (1,)), "claim 44 bytes, where it has 40"),
    ],
)
def test_claims_are_checked_before_memory_is_taken(
    tmp_path: Path, tensor: Tensor, words: str
) -> None:
    path = zip_file(tmp_path / "x.pth", pickled({"w": tensor}), {"data/0": bytes(40)})
    with pytest.raises(CheckpointError, match=words):
        load_pickled(path)


def test_the_tensor_of_those_files_can_be_true(tmp_path: Path) -> None:
    content = pickled({"w": Tensor(10, (3, 2), (2, 1), offset=4)})
    values = np.arange(10, dtype=np.float32)
    path = zip_file(tmp_path / "x.pth", content, {"data/0": values.tobytes()})
    assert load_pickled(path)["w"].tolist() == [[4, 5], [6, 7], [8, 9]]


def test_a_legacy_file_that_claims_a_terabyte(tmp_path: Path) -> None:
    magic, rest = pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)
    evil = pickled({"w": Tensor(250_000_000_000, (1,), (1,))})
    (tmp_path / "x.pth").write_bytes(magic + rest + pickle.dumps({}, 2) + evil + bytes(100))
    with pytest.raises(CheckpointError, match="claim 1 TB"):
        load_pickled(tmp_path / "x.pth")


def test_expanded_tensors_come_to_no_gigabytes_together(tmp_path: Path) -> None:
    one = Tensor(1, (1 << 12, 1 << 12), (0, 0))  # 64 MB from 4 bytes
    path = zip_file(tmp_path / "x.pth", pickled([one]), {"data/0": bytes(4)})
    assert load_pickled(path)[0].shape == (1 << 12, 1 << 12)
    content = pickled([Tensor(1, (1 << 12, 1 << 12), (0, 0)) for _ in range(5)])
    path = zip_file(tmp_path / "y.pth", content, {"data/0": bytes(4)})
    with pytest.raises(CheckpointError, match="claims 67 MB; the file has"):
        load_pickled(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.float32])
def test_bytes_of_expanded_tensors_are_counted_as_they_are_used(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Half precision is converted to float32, which doubles the bytes that the file claims."""
    torch.save({"model": {"w": torch.zeros(1, dtype=dtype).expand(70 << 20)}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=f"a tensor of {70 << 20} claims 293 MB"):
        load_pickled(tmp_path / "x.pth")


def test_the_same_bytes_as_an_array_many_times(tmp_path: Path) -> None:
    recipe, arguments, state = np.zeros(500_000).__reduce__()  # type: ignore[misc]

    class Again:
        def __reduce__(self) -> tuple[Any, ...]:
            return recipe, arguments, state

    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps([Again() for _ in range(20)]))
    assert path.stat().st_size < 5_000_000
    with pytest.raises(CheckpointError, match="an array claims 8 MB; the file has 4 MB"):
        load_pickled(path)


def test_zip_bombs(tmp_path: Path) -> None:
    content = pickled({"w": Tensor(10, (10,), (1,))})
    bomb = {"data/0": bytes(50_000_000)}
    path = zip_file(tmp_path / "x.pth", content, bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="compressed or encrypted"):
        load_pickled(path)
    # A table of contents in which all entries are one and the same part of the file.
    path = zip_file(tmp_path / "y.pth", content, {"data/0": bytes(100_000)})
    data = path.read_bytes()
    table = data.rindex(b"PK\x01\x02")  # the entry of data/0, the last one
    end = data.rindex(b"PK\x05\x06")
    entries = data[table:end] * 50
    count, length = (2).to_bytes(2, "little"), len(data[:end]) - data.index(b"PK\x01\x02")
    new_count, new_length = (51).to_bytes(2, "little"), length + len(entries) - (end - table)
    tail = data[end:].replace(count * 2, new_count * 2)
    tail = tail.replace(length.to_bytes(4, "little"), new_length.to_bytes(4, "little"))
    path.write_bytes(data[:table] + entries + tail)
    with pytest.raises(CheckpointError, match="claims 100000 bytes, the file has"):
        load_pickled(path)


# --- pickles that take long or much ----------------------------------------------------------


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # memo 2**31 - 1: the C unpickler reserves 34 GB
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",  # lists in lists
        b"\x80\x02)" + b"\x85" * 100_000 + b".",  # tuples in tuples
        b"\x80\x02}" + b")" + b"2\x86" * 60 + b"Ns.",  # a key that takes 2**60 steps to hash
        b"\x80\x02](" + b")" + b"2\x86" * 60 + b"\x91a.",  # the same in a frozenset
        b"\x80\x02]"
        + b"q\x00"
        + b"h\x00h\x00h\x00\x87a" * 1000
        + b".",  # itself, thousands of times
    ],
)
def test_pickles_that_would_take_long_or_much(tmp_path: Path, opcodes: bytes) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(opcodes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load_pickled(path)  # that it comes back is the test
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_too_many_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "MAX_STEPS", 1000)
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02" + b"N0" * 1000 + b"N.")
    with pytest.raises(CheckpointError, match="more than 1000 instructions"):
        load_pickled(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("opcodes", "words"),
    [
        (b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"abc.", "expected 1099511627776"),
        (b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"abc.", "expected 1099511627776"),
        (b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"abc.", "pop"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x09N.", "protocol 9"),
        (b"N", "exhausted"),
        (b"NK\x01R.", "no function"),
        (b"(0.", "pop"),
    ],
)
def test_spoilt_pickles(tmp_path: Path, opcodes: bytes, words: str) -> None:
    (tmp_path / "x.pkl").write_bytes(opcodes)
    with pytest.raises(CheckpointError, match=words):
        load_pickled(tmp_path / "x.pkl")


# --- what comes alive ------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_arrays_and_plain_content_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    content = {
        "model": {
            "c": np.arange(6, dtype=np.float32).reshape(2, 3),
            "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
            "big-endian": np.arange(3, dtype=">i4"),
            "half": np.array([1.5], np.float16),
            "bool": np.array([True, False]),
            "empty": np.zeros((0, 4), np.float64),
            "scalar": np.float64(2.5),
            "whole": np.int64(-3),
        },
        "plain": [1, -(1 << 70), 2.5, None, True, "ä", b"\x00\xff", (1, 2), {3}, frozenset({4})],
        "objects": np.array([object], dtype=object),
    }
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    loaded = load_pickled(path)
    for name, array in content["model"].items():  # type: ignore[attr-defined]
        np.testing.assert_array_equal(loaded["model"][name], array)
        if isinstance(array, np.ndarray):  # NumPy itself makes the byte order native
            assert loaded["model"][name].dtype == pickle.loads(pickle.dumps(array, protocol)).dtype
    assert loaded["plain"] == content["plain"]
    assert len(loaded["objects"]) == 0


@pytest.mark.parametrize(
    ("shape", "raw", "words"),
    [((1 << 37,), b"12345678", "claims 1 TB"), ((3,), b"12345678", "claims 24 bytes")],
)
def test_arrays_that_lie(tmp_path: Path, shape: tuple[int], raw: bytes, words: str) -> None:
    class Lie:
        def __reduce__(self) -> tuple[Any, ...]:
            recipe, arguments, _ = np.zeros(1).__reduce__()  # type: ignore[misc]
            return recipe, arguments, (1, shape, np.dtype("f8"), False, raw)

    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": Lie()}))
    with pytest.raises(CheckpointError, match=words):
        load_pickled(tmp_path / "x.pkl")


def test_parameters_with_attributes(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.arange(3.0))
    parameter.note = "kept by torch.save"  # type: ignore[attr-defined]
    tensor = torch.arange(2.0)
    tensor.note = "too"  # type: ignore[attr-defined]
    torch.save([parameter, tensor], tmp_path / "x.pth")
    loaded = load_pickled(tmp_path / "x.pth")
    assert torch.equal(loaded[0], parameter) and torch.equal(loaded[1], tensor)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "int64", "uint8", "bool", "complex64"]
)
def test_every_type_of_element(tmp_path: Path, dtype: str, legacy: bool) -> None:
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(getattr(torch, dtype))
    content = {"whole": tensor, "part": tensor[1:, 1:], "none": tensor[:0]}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    check_pickled(tmp_path / "x.pth")
    for name, loaded in load_pickled(tmp_path / "x.pth").items():
        assert loaded.dtype == content[name].dtype and torch.equal(loaded, content[name])


def test_the_tar_form_of_torch_before_0_1_10(tmp_path: Path) -> None:
    path = tar_file(tmp_path / "x.pth")
    loaded, expected = load_pickled(path), torch.load(path, weights_only=False)
    assert torch.equal(loaded["w"], torch.tensor([[2.0, 3.0], [4.0, 5.0]]))
    assert torch.equal(loaded["view"], torch.tensor([1.0, 2.0]))
    assert all(torch.equal(loaded[n], expected[n]) for n in ("w", "view"))
    data = path.read_bytes()
    lie = data.replace(struct.pack("<4q", 2, 2, 2, 1), struct.pack("<4q", 2, 1 << 40, 2, 1))
    assert lie != data
    path.write_bytes(lie)
    with pytest.raises(CheckpointError, match="2x1099511627776 claims"):
        load_pickled(path)


def tar_file(path: Path) -> Path:
    """What legacy_load of torch/serialization.py describes; torch itself no longer writes it."""
    values = np.arange(6, dtype="<f4").tobytes()
    storages = pickle.dumps(1, 2) + pickle.dumps((11, "cpu", torch.FloatStorage), 2)
    storages += struct.pack("<q", 6) + values + pickle.dumps([(12, 11, 1, 2)], 2)
    tensors = pickle.dumps(2, 2)
    for key, storage, numbers in ((21, 11, (2, 2, 2, 1, 2)), (22, 12, (2, 1, 0))):
        tensors += pickle.dumps((key, storage, torch.FloatTensor), 2)
        tensors += struct.pack(f"<i4x{len(numbers)}q", len(numbers) // 2, *numbers)
    content = pickled({"w": Outside("21"), "view": Outside("22")})
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        parts = {"sys_info": pickle.dumps({}, 2), "pickle": content}
        for name, part in {**parts, "tensors": tensors, "storages": storages}.items():
            info = tarfile.TarInfo(name)
            info.size = len(part)
            archive.addfile(info, io.BytesIO(part))
    return path


class Outside(Storage):
    def __init__(self, identity: str) -> None:
        self.identity = identity  # type: ignore[assignment]


@pytest.mark.skipif(not CONTAINERS.is_dir(), reason="needs ../shared/parity")
@pytest.mark.parametrize("path", sorted(CONTAINERS.glob("*.p*")), ids=lambda p: p.stem)
def test_every_container_of_the_other_projects(path: Path) -> None:
    check_pickled(path)
    content = load_pickled(path)
    if path.suffix == ".pth":
        try:
            expected = torch.load(path, weights_only=True)
        except pickle.UnpicklingError:  # classes of mmengine, argparse
            return
        assert_same(content, expected)
    else:
        assert {type(v) for v in content["model"].values()} == {np.ndarray}


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    else:
        assert ours == theirs


# --- damage ----------------------------------------------------------------------------------


def test_damaged_bytes_of_a_tensor_are_found(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.full((1000,), 3.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<10f", *[3.0] * 10)) + 100] ^= 1
    path.write_bytes(data)
    load_pickled(path)  # its structure is sound
    with pytest.raises(CheckpointError, match="data/0 are damaged"):
        check_pickled(path)


def samples(folder: Path) -> list[bytes]:
    content = {
        "model": collections.OrderedDict(a=torch.arange(4.0), b=torch.ones(2, 3).half().t()),
        "args": argparse.Namespace(lr=1e-4),
        "n": [1, 2.5, None, "x", {1}, np.float64(1)],
        "array": np.ones((2, 2)),
    }
    torch.save(content, folder / "zip")
    torch.save(content, folder / "legacy", _use_new_zipfile_serialization=False)
    tar_file(folder / "tar")
    (folder / "pkl").write_bytes(pickle.dumps({"model": {"w": np.ones((2, 2))}}))
    return [(folder / name).read_bytes() for name in ("zip", "legacy", "tar", "pkl")]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` cut, or with some bytes changed, or a piece moved, as the generator decides."""
    kind, spoilt = rng.integers(4), bytearray(data)
    if kind == 0:
        return data[: rng.integers(len(data))]
    if kind == 1:
        start, end = sorted(rng.integers(0, len(data), 2))
        return data[:start] + data[end:]
    values = (0, 1, 0x2E, 0x52, 0x62, 0x7F, 0x80, 0xFF)  # among them STOP, REDUCE, BUILD
    for _ in range(1 + rng.integers(4)):
        place = rng.integers(len(data))
        spoilt[place] = rng.choice(values) if kind == 2 else rng.integers(256)
    return bytes(spoilt)


def test_damaged_files_give_a_result_or_a_clear_error(tmp_path: Path) -> None:
    fuzz(tmp_path, seed=0, count=150)


def fuzz(folder: Path, seed: int, count: int) -> None:
    """Run by hand for longer: every file loads or is refused, nothing else."""
    rng = np.random.default_rng(seed)
    path = folder / "damaged"
    refused = 0
    for data in samples(folder):
        for _ in range(count):
            path.write_bytes(damaged(data, rng))
            try:
                load_pickled(path)
            except CheckpointError:
                refused += 1
    assert refused > count  # otherwise the damage would not be worth the name
