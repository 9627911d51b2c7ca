"""DINO object detection: `Detector` predicts; `train`, `fit`, `evaluate`, `export` do the rest.

The names are imported when first used, so that `import dino_core` is fast and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_core.data.load import load_dataset
    from dino_core.data.save import save_dataset
    from dino_core.detections import Detections
    from dino_core.engine.api import fit, train
    from dino_core.evaluation.evaluate import evaluate
    from dino_core.exporters.api import export
    from dino_core.inference.detector import Detector

    __version__: str

__all__ = [
    "Detections",
    "Detector",
    "__version__",
    "evaluate",
    "export",
    "fit",
    "load_dataset",
    "save_dataset",
    "train",
]

_HOME = {
    "Detections": "dino_core.detections",
    "Detector": "dino_core.inference.detector",
    "evaluate": "dino_core.evaluation.evaluate",
    "export": "dino_core.exporters.api",
    "fit": "dino_core.engine.api",
    "load_dataset": "dino_core.data.load",
    "save_dataset": "dino_core.data.save",
    "train": "dino_core.engine.api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from dino_core.metadata import library_version

        return library_version()
    if name not in _HOME:
        raise AttributeError(f"module 'dino_core' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
