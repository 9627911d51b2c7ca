"""What a model's name or path stands for, found out without torch and without the network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from dino_core.checkpoints.header import check_file
from dino_core.checkpoints.published.cache import cached
from dino_core.checkpoints.published.catalogue import (
    CATALOGUE,
    DEFAULTS,
    Published,
    find_published,
)
from dino_core.errors import CheckpointError
from dino_core.limits import shown
from dino_core.suggestions import nearest
from dino_core.variants import VARIANTS

BUILT_IN = {
    "dino-nano": Path(__file__).resolve().parents[2] / "assets" / "dino-nano.safetensors",
}
"""Name to model file of the models that come with the package."""

FOREIGN_SUFFIXES = (".pth", ".pt", ".pkl", ".ckpt", ".bin")
"""Suffixes of the pickled checkpoints of other projects."""

_MODEL_SUFFIXES = (".safetensors", ".onnx", *FOREIGN_SUFFIXES)

Weights: TypeAlias = Literal["built in", "cached", "pull", "by hand", "unsupported", "none"]


@dataclass(frozen=True)
class NamedModel:
    """What a name or path stands for.

    Attributes:
        name: The name or path as given.
        path: Its model file on this machine; None where there is none.
        published: The published file that the name stands for; None for other names and paths.
        variant: Name of the network, which may be one that `VARIANTS` lacks; None for a path.
    """

    name: str
    path: Path | None
    published: Published | None
    variant: str | None

    @property
    def weights(self) -> Weights:
        """Where the weights are or how to get them.

        "built in" (with the package), "cached" (fetched before), "pull" (can be fetched), "by hand"
        (only with a browser), "unsupported" (of a network that this version lacks), or "none".
        """
        if self.published is None:
            return "none" if self.path is None else "built in"
        if self.path is not None:
            return "cached"
        if self.variant not in VARIANTS:
            return "unsupported"
        return "by hand" if self.published.url is None else "pull"


def find_model(name_or_path: str | Path) -> NamedModel:
    """Look a model up. A file goes before a name that is spelled like it.

    The folder of a training run stands for its best weights.

    Raises:
        CheckpointError: there is no such file or model; the nearest known name is suggested.
    """
    name, path = str(name_or_path), Path(name_or_path)
    try:
        is_file = path.is_file()
    except OSError as error:  # e.g. a name that is too long, or a folder that may not be entered
        raise CheckpointError(f"{shown(name)}: cannot be opened ({error.strerror})") from error
    if is_file:
        return NamedModel(name, path, None, None)
    published = find_published(name)
    if published is not None:
        here = cached(published.name)
        model = here.path(here.model) if here.model else None
        return NamedModel(name, model, published, published.variant)
    if name in VARIANTS or name in {model.variant for model in CATALOGUE.values()}:
        built_in = BUILT_IN.get(name)
        return NamedModel(name, built_in if built_in and built_in.is_file() else None, None, name)
    if path.is_dir():
        return NamedModel(name, _best_of(path), None, None)
    if path.exists():
        check_file(path)
    if re.match(r"(yolo|rt-?detr|detr[-_]|rf-?detr|faster|efficientdet)", path.name.lower()):
        raise CheckpointError(
            f"{name}: no such file, and no model that dino has",
            "`dino models list` names them",
        )
    if path.suffix or len(path.parts) > 1:
        raise CheckpointError(f"{name}: no such file", "`dino models list` has the known names")
    known = f"known: {', '.join(VARIANTS)}; `dino models list --all` has more"
    hint = nearest(name, {**VARIANTS, **CATALOGUE}) or known
    raise CheckpointError(f"unknown model {shown(name)}", hint)


def _best_of(folder: Path) -> Path:
    """The best weights in the folder of a run."""
    best = folder / "best.safetensors"
    if best.is_file():
        return best
    files = sorted(path.name for path in folder.glob("*.*") if path.suffix in _MODEL_SUFFIXES)
    hint = f"give a file in it, e.g. {(files or [best.name])[0]}"
    if (folder / "saved_model.pb").exists() or folder.suffix == ".mlpackage":
        hint = "it is a model of TensorFlow or Core ML, which dino cannot run"
    raise CheckpointError(f"{folder}: a folder, not a model file", hint)


def list_models(*, every_file: bool = False) -> list[NamedModel]:
    """The models that have a name: one per network, or also every published file."""
    names = [*VARIANTS, *(name for name in DEFAULTS if name not in VARIANTS)]
    return [find_model(name) for name in ([*names, *CATALOGUE] if every_file else names)]


def fetched_models() -> list[str]:
    """Names of the published files of which something is in the cache."""
    return [name for name in CATALOGUE if (here := cached(name)).source or here.model]
