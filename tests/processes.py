"""Starting several processes in tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def environment() -> dict[str, str]:
    """One thread a process, and the modules of the tests besides the package under test."""
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
