"""`import dino_core` is light, and each public name is what the README says."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

import dino_core


def test_importing_the_package_imports_nothing_else() -> None:
    program = (
        "import sys; before = set(sys.modules); import dino_core; dino_core.__version__;"
        "from dino_core import Detections, Detector, load_dataset;"
        "assert not {'torch', 'torchvision', 'timm', 'cv2', 'av'} & set(sys.modules)"
    )
    environment = dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", dino_core.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(dino_core, name)
    assert name in dir(dino_core)


def test_functions_stay_callable_after_their_packages_were_imported() -> None:
    importlib.import_module("dino_core.exporters.api")
    from dino_core import evaluate, export, fit, load_dataset, train

    assert all(map(callable, (evaluate, export, fit, load_dataset, train)))


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Detectr'"):
        dino_core.Detectr  # noqa: B018
