"""Published training recipes, one TOML file each beside this module, found by name.

A recipe holds a table `[recipe]` (what it is for), `[train]`, and `[model]` where it changes the
model. What it does not set is chosen by the plan like in any other run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dino_core.config import nearest
from dino_core.errors import ConfigError

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class RecipeInfo:
    """What a recipe tells about itself.

    Attributes:
        model: The model that it is for, which `--model` replaces.
        gives: Its published result.
        source: Where its numbers are from.
    """

    model: str | None = None
    gives: str = ""
    source: str = ""


def recipe_names() -> list[str]:
    """The published recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe's name, or of a path.

    Raises: ConfigError with the nearest name, and all of them.
    """
    path, names = Path(name_or_path), recipe_names()
    if path.is_file():
        return path
    if name_or_path in names:
        return FOLDER / f"{name_or_path}.toml"
    known = f"recipes: {', '.join(names)}"
    near = nearest(name_or_path, names)
    raise ConfigError(
        f"--config {name_or_path}: no such file or recipe", f"{near} {known}" if near else known
    )
