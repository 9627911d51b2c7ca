"""Nothing in a `.pth` file is ever executed."""

from __future__ import annotations

import argparse
import builtins
import collections
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dino_core.checkpoints.foreign.unpickle import Inert, load_pickled
from dino_core.errors import CheckpointError


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.recipe = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.recipe


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "function", [os.system, subprocess.call, builtins.eval, builtins.exec, os.mkdir]
)
def test_calls_do_nothing(tmp_path: Path, function: Any, legacy: bool) -> None:
    witness = tmp_path / "executed"
    argument = {
        builtins.eval: f"__import__('os').mkdir({str(witness)!r})",
        builtins.exec: f"__import__('os').mkdir({str(witness)!r})",
        os.mkdir: str(witness),
        subprocess.call: ["touch", str(witness)],
    }.get(function, f"touch {witness}")
    content = {"model": {"w": torch.ones(2)}, "trap": Calls(function, argument)}
    path = tmp_path / "evil.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_pickled(path)
    assert not witness.exists()
    assert isinstance(loaded["trap"], Inert)
    assert torch.equal(loaded["model"]["w"], torch.ones(2))
    # The trap does work where files are executed: otherwise this test would prove nothing.
    torch.load(path, weights_only=False)
    assert witness.exists()


def test_chains_of_calls_stay_inert(tmp_path: Path) -> None:
    trap = Calls(getattr, Calls(__import__, "os"), "system")
    torch.save({"trap": Calls(getattr, trap, "x"), "w": torch.ones(1)}, tmp_path / "evil.pth")
    assert isinstance(load_pickled(tmp_path / "evil.pth")["trap"], Inert)


def test_attributes_of_what_lives_cannot_be_set(tmp_path: Path) -> None:
    # GLOBAL of the tensor function, then BUILD with a state that would change it for later loads.
    evil = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x01\x00\x00\x00kK\x01s\x86b."
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    (tmp_path / "evil.pth").write_bytes(magic + evil)
    with pytest.raises(CheckpointError):
        load_pickled(tmp_path / "evil.pth")


def test_ordinary_content(tmp_path: Path) -> None:
    tied = torch.arange(4.0)
    content = {
        "model": collections.OrderedDict(a=tied, b=tied, c=tied.view(2, 2).t(), half=tied.half()),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "args": argparse.Namespace(lr=1e-4),
        "numpy": np.float64(2.0),
        "numbers": [1, 2.5, None, True, "x", (1, 2)],
        "counts": collections.defaultdict(list, {"a": [1]}),
        "set": {1, 2},
    }
    torch.save(content, tmp_path / "file.pth")
    loaded = load_pickled(tmp_path / "file.pth")
    for name, tensor in content["model"].items():  # type: ignore[attr-defined]
        assert torch.equal(loaded["model"][name], tensor)
    assert loaded["model"]["a"].data_ptr() == loaded["model"]["b"].data_ptr()
    assert torch.equal(loaded["parameter"], torch.ones(2))
    assert loaded["numpy"] == 2.0
    assert loaded["numbers"] == content["numbers"] and loaded["set"] == {1, 2}
    assert isinstance(loaded["args"], Inert) and isinstance(loaded["counts"], Inert)


def test_tensor_beyond_its_storage(tmp_path: Path) -> None:
    class Beyond:
        def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
            storage = torch.ones(2).storage()
            arguments = (storage, 0, (1000,), (1,), False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    with pytest.warns(UserWarning, match="TypedStorage"):
        torch.save({"w": Beyond()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="beyond its storage"):
        load_pickled(tmp_path / "evil.pth")


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_pickled(tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match="a folder"):
        load_pickled(tmp_path)
    (tmp_path / "empty.pth").touch()
    with pytest.raises(CheckpointError, match="is empty"):
        load_pickled(tmp_path / "empty.pth")
    text = tmp_path / "text.pth"
    text.write_text("hello")
    with pytest.raises(CheckpointError, match=r"not written by torch\.save"):
        load_pickled(text)
    whole = tmp_path / "whole.pth"
    torch.save({"w": torch.zeros(1000)}, whole)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_pickled(cut)
