"""From what a person types as `--model` to a model file: a built-in name, or a path."""

from __future__ import annotations

from pathlib import Path

from dino_core.checkpoints.convert import import_checkpoint
from dino_core.checkpoints.io import Checkpoint, load_checkpoint
from dino_core.config import nearest
from dino_core.errors import CheckpointError
from dino_core.variants import VARIANTS

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUILT_IN = {"dino-nano": ASSETS / "dino-nano.safetensors"}
"""Models that come with the package."""

FOREIGN_SUFFIXES = (".pth", ".pt", ".pkl")


def resolve(name_or_path: str | Path) -> Path:
    """The file behind a model's name or path.

    Raises:
        CheckpointError: no such file or model, or a known model whose weights are not here.
    """
    path = Path(name_or_path)
    name = str(name_or_path)
    if path.is_file():
        return path
    if name in BUILT_IN and BUILT_IN[name].is_file():
        return BUILT_IN[name]
    if name in VARIANTS:
        raise CheckpointError(
            f"the weights of {name} are not here",
            "get the official file (github.com/IDEA-Research/DINO, Model Zoo), then "
            f"`dino models import CHECKPOINT.pth {name}.safetensors` and use that file",
        )
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder, not a model file", "e.g. best.safetensors in it")
    if path.suffix or len(path.parts) > 1:
        raise CheckpointError(f"{path}: no such file")
    known = f"known: {', '.join(VARIANTS)}"
    raise CheckpointError(f"unknown model '{name}'", nearest(name, VARIANTS) or known)


def load(name_or_path: str | Path) -> Checkpoint:
    """Read the model behind a name or path; files of other DINO code are converted in memory.

    Raises: CheckpointError as `resolve`, `load_checkpoint` and `import_checkpoint` do.
    """
    path = resolve(name_or_path)
    return import_checkpoint(path) if path.suffix in FOREIGN_SUFFIXES else load_checkpoint(path)
