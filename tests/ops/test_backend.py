"""The choice of backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ops.op_inputs import make_inputs

from dino_core.errors import ConfigError, ExtensionError
from dino_core.ops import backend
from dino_core.ops._extension import EXTENSION, Extension
from dino_core.ops.backend import backend_report, choose_backend, use_backend
from dino_core.ops.ms_deform_attn import ms_deform_attn
from dino_core.ops.reference import ms_deform_attn_reference

NOTHING_BUILT = Extension(frozenset(), "libdino_ops.so was not built", "needs the CPU library")


def test_the_report_says_which_and_why() -> None:
    report = backend_report("cpu")
    assert report.name == ("compiled" if "cpu" in EXTENSION.devices else "reference")
    assert EXTENSION.cpu in report.reason
    assert backend_report("mps").name == "reference"
    assert "no kernels for mps" in backend_report("mps").reason


def test_the_variable_forces_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINO_OPS", "reference")
    assert backend_report("cpu").name == "reference"
    inputs = make_inputs()
    assert torch.equal(ms_deform_attn(*inputs.args), ms_deform_attn_reference(*inputs.args))


def test_absent_kernels_fall_back_or_fail_when_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "EXTENSION", NOTHING_BUILT)
    assert backend_report("cpu").name == "reference"
    monkeypatch.setenv("DINO_OPS", "compiled")
    with pytest.raises(
        ExtensionError, match=r"DINO_OPS=compiled.*cpu: libdino_ops.so was not"
    ) as e:
        backend_report("cpu")
    assert "DINO_BUILD" in e.value.hint


def test_an_unknown_word_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINO_OPS", "fast")
    with pytest.raises(ConfigError, match="'fast', it must be compiled or reference"):
        backend_report("cpu")


def test_use_backend_outranks_the_variable_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "EXTENSION", NOTHING_BUILT)
    monkeypatch.setenv("DINO_OPS", "compiled")
    value = torch.zeros(1, 1, 1, 1)
    with use_backend("reference"):
        assert choose_backend(value) == "reference"
    with pytest.raises(ExtensionError):
        choose_backend(value)


def test_a_library_that_does_not_load_is_told(tmp_path: Path) -> None:
    from dino_core.ops._extension import _load

    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"not a library")
    problem = _load(broken)
    assert problem is not None
    assert "libbroken.so does not load under torch" in problem
