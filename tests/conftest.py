"""Environment of all tests: the package under test in every process, no network, no user cache."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import dino_core

os.environ["DINO_OFFLINE"] = "1"  # tests that need a server start one and allow the network
os.environ["DINO_CACHE"] = (
    "/nonexistent/dino-tests"  # models that the user has downloaded must not be found
)
os.environ["PYTHONSAFEPATH"] = "1"  # the source tree has no kernels
os.environ["PYTHONPATH"] = str(Path(str(dino_core.__file__)).parents[1])

# When the tests are started by nohup or by a script's `&`, these signals are ignored, and processes
# that the tests start would inherit this. Some tests check how such processes react to the signals.
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
