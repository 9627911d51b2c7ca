"""A short run of the fuzzer of model files, metadata and settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.fuzz_metadata import Fuzzer


@pytest.mark.filterwarnings("ignore")  # torch and numpy warn of the odd values that are made
def test_five_seconds_of_hostile_model_files(tmp_path: Path) -> None:
    report = Fuzzer(tmp_path, seed=0).run(5)
    assert report.faults == []
    assert report.refused.total() > report.accepted.total() > 0
