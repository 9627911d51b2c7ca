"""Published training recipes: one TOML file each in this folder, found by name.

A recipe has the tables `[recipe]` (what it is for), `[train]` and, where it changes the model,
`[model]`. As in any other run, the plan chooses what the recipe does not set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dino_core.errors import ConfigError
from dino_core.suggestions import nearest

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class RecipeInfo:
    """What a recipe says about itself.

    Attributes:
        model: The model that the recipe is for; `--model` replaces it.
        gives: The published result.
        source: Where its numbers come from.
    """

    model: str | None = None
    gives: str = ""
    source: str = ""


def recipe_names() -> list[str]:
    """Names of the published recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe, given its name or a path.

    Raises:
        ConfigError: there is no such recipe or file; the hint lists the known names.
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
