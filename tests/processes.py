"""Starting other processes in tests."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def environment() -> dict[str, str]:
    """One thread per process, and the modules of the tests besides the package under test."""
    paths = os.pathsep.join([str(TESTS), os.environ["PYTHONPATH"]])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


class Forked:
    """A process that runs `target(*arguments)`, and what it writes.

    All of these processes are forked from one that has imported what a training needs, but has
    never computed anything. Each is like a fresh `python`, without the seconds of its imports.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["dino_cli.app", "dino_core.engine.fit", "torch._dynamo"])
        self._streams = [tempfile.NamedTemporaryFile("r") for _ in ("stdout", "stderr")]  # noqa: SIM115
        paths = [stream.name for stream in self._streams]
        self._process = context.Process(target=_redirected, args=(paths, target, arguments))
        self._process.start()

    def wait(self) -> subprocess.CompletedProcess[str]:
        self._process.join(300)
        code = self._process.exitcode
        self._process.kill()  # or pytest would wait for it at its end
        assert code is not None, "still running after 5 minutes"
        stdout, stderr = (stream.read() for stream in self._streams)
        return subprocess.CompletedProcess([], code, stdout, stderr)


def _redirected(paths: list[str], target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    for number, path in enumerate(paths, start=1):
        with open(path, "w") as file:
            os.dup2(file.fileno(), number)
    target(*arguments)


def two_processes(code: str, *arguments: str) -> list[str]:
    """What each of two processes prints that run `code` with its rank and `arguments`."""
    processes = [Forked(_execute, code, str(rank), *arguments) for rank in range(2)]
    done = [process.wait() for process in processes]
    assert [one.returncode for one in done] == [0, 0], [one.stderr for one in done]
    return [one.stdout.strip() for one in done]


def _execute(code: str, *arguments: str) -> None:
    """As `python -W ignore -c CODE ARGUMENTS` does, with one thread."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})
