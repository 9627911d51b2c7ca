"""Every fuzzer of data for five seconds: whatever the input, readers raise DataError or nothing.

Each runs in a process of its own, since an input may be meant to crash it or to fill its memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

OWN_TEST = "fuzz_metadata"  # has a report of its own, see test_fuzz_metadata.py
FUZZERS = sorted(p for p in Path(__file__).parent.glob("fuzz_*.py") if p.stem != OWN_TEST)
TESTS = Path(__file__).parents[1]


def test_fuzzers_are_found() -> None:
    assert {"fuzz_csv", "fuzz_image", "fuzz_json", "fuzz_xml", "fuzz_yaml"} <= {
        path.stem for path in FUZZERS
    }


@pytest.mark.slow
@pytest.mark.parametrize("fuzzer", FUZZERS, ids=lambda path: path.stem)
def test_five_seconds(fuzzer: Path) -> None:
    paths = os.pathsep.join([str(TESTS), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(fuzzer), "--seconds", "5"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 kinds of error" in done.stderr
