"""Starting other processes in tests."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def environment() -> dict[str, str]:
    """One thread per process, and the modules of the tests besides the package under test."""
    paths = os.pathsep.join([str(TESTS), os.environ["PYTHONPATH"]])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


def two_processes(code: str, *arguments: str) -> list[str]:
    """What each of two processes prints that run `code` with its rank and `arguments`."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(rank), *arguments],
            stdout=subprocess.PIPE, text=True, cwd=TESTS.parent, env=environment(),
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return outputs


def forked(target: Callable[..., None], *arguments: Any) -> subprocess.CompletedProcess[str]:
    """The exit code and the standard error of a process that runs `target(*arguments)`.

    All of these processes are forked from one that has imported what a training needs, but has
    never computed anything. Each is as a fresh `python`, without the seconds of its imports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dino_cli.app", "dino_core.engine.fit", "torch._dynamo"])
    with tempfile.NamedTemporaryFile("r") as stderr:
        process = context.Process(target=_with_stderr, args=(stderr.name, target, arguments))
        process.start()
        process.join(300)
        assert process.exitcode is not None, "still running after 5 minutes"
        return subprocess.CompletedProcess([], process.exitcode, None, stderr.read())


def _with_stderr(path: str, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with open(path, "w") as file:
        os.dup2(file.fileno(), 2)
    target(*arguments)
