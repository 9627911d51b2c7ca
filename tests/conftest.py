"""Processes that tests start import the package under test, not the source tree they stand in."""

from __future__ import annotations

import os
from pathlib import Path

import dino_core

os.environ["PYTHONSAFEPATH"] = "1"  # the source tree has no kernels
os.environ["PYTHONPATH"] = str(Path(str(dino_core.__file__)).parents[1])
