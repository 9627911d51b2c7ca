"""Processes that tests start import the package under test, not the source tree they stand in."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import dino_core

os.environ["DINO_OFFLINE"] = "1"  # tests that need a server start one and allow it
os.environ["DINO_CACHE"] = "/nonexistent/dino-tests"  # nor may they find what a person fetched
os.environ["PYTHONSAFEPATH"] = "1"  # the source tree has no kernels
os.environ["PYTHONPATH"] = str(Path(str(dino_core.__file__)).parents[1])

# Started by nohup or by a script's `&`, the tests would inherit that these are ignored, and hand it
# on to the processes whose reaction to them they test.
for number, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if signal.getsignal(getattr(signal, number)) == signal.SIG_IGN:
        signal.signal(getattr(signal, number), usual)


@contextmanager
def _limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def disk_full_after() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which the system lets no file grow beyond the given number of bytes."""
    return _limit
