"""What to do where a kernel is absent."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from dino_core.ops._extension import EXTENSION
from dino_core.ops.backend import VARIABLE


@pytest.fixture(autouse=True)
def _no_forced_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without kernels a test of them is skipped, unless DINO_OPS=compiled demands them."""
    forced = os.environ.get(VARIABLE)
    monkeypatch.delenv(VARIABLE, raising=False)
    if request.node.get_closest_marker("compiled") and "cpu" not in EXTENSION.devices:
        if forced == "compiled":
            pytest.fail(f"{VARIABLE}=compiled, but {EXTENSION.cpu}")
        pytest.skip(EXTENSION.cpu)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
