"""How models are shown: the list, a file's own words, and the progress of fetching one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_cli import render

if TYPE_CHECKING:
    from dino_core.checkpoints.published.catalogue import Published
    from dino_core.checkpoints.published.fetch import Progress

COLUMNS = ("name", "ap", "source", "weights", "mb")


def ensure(model: str | None) -> None:
    """Fetch the published model that `model` names where it is not here, and show how it goes.

    Raises: CheckpointError when it cannot be had.
    """
    from dino_core.checkpoints.published.catalogue import find_published

    published = find_published(model) if model and not Path(model).is_file() else None
    if published is None:
        return
    from dino_core.checkpoints.zoo import pull

    with fetching(published) as progress:
        pull(published, progress)


@contextmanager
def fetching(published: Published) -> Iterator[Progress]:
    """A live bar on a terminal, a line every ten seconds elsewhere, once there is news."""
    where = f"{published.name} from {published.url}"
    if not render.is_terminal(sys.stderr):
        yield _Lines(where).show
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), DownloadColumn())
    rest = (TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, *rest, console=render.console(sys.stderr), transient=True) as bar:
        task: list[Any] = []

        def show(what: str, done: int, total: int | None) -> None:
            if not task:
                render.note(where)
                task.append(bar.add_task(what, total=total))
            bar.update(task[0], description=what, completed=done, total=total)

        yield show


class _Lines:
    """Progress for logs."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._doing = ""
        self._last = 0.0

    def show(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if what != self._doing:
            render.note(f"{what}: {self._where}")
            self._doing, self._last = what, now
        elif now - self._last >= render.PLAIN_INTERVAL_S:
            self._last = now
            render.note(
                f"{what}: {done / 1e6:.1f} MB" + (f" of {total / 1e6:.1f}" if total else "")
            )


def model_rows(everything: bool) -> list[dict[str, Any]]:
    """What `dino models list` knows of each name: the variants', or all names."""
    from dino_core.checkpoints.published.cache import cached
    from dino_core.checkpoints.published.catalogue import (
        CATALOGUE,
        DEFAULTS,
        LICENCE,
        find_published,
    )
    from dino_core.inference.runtimes import read_metadata
    from dino_core.variants import VARIANTS

    names = [*VARIANTS, *(name for name in DEFAULTS if name not in VARIANTS)]
    rows = []
    for name in [*names, *CATALOGUE] if everything else names:
        published = find_published(name)
        variant = VARIANTS.get(published.variant if published else name)
        path = _built_in(name)
        row: dict[str, Any] = {
            "name": name,
            "backbone": variant.model.backbone if variant else None,
            "levels": variant.model.num_levels if variant else None,
            "queries": variant.model.num_queries if variant else None,
            "max_side": variant.preprocess.max_side if variant else None,
            "weights": "built in" if path else "none",
        }
        if published is not None:
            here = cached(published.name)
            path = here.path(here.model) if here.model else None
            fetched = "pull" if published.url else "by hand"
            row["weights"] = "cached" if path else fetched if variant else "unsupported"
            row |= {
                "ap": published.ap,
                "epochs": published.epochs,
                "source": published.project,
                "file": published.name,
                "url": published.url,
                "licence": LICENCE,
                "sha256": published.sha256 or None,
            }
        elif path is not None:
            row["licence"] = read_metadata(path).provenance.get("licence")
        row["mb"] = round(path.stat().st_size / 1e6, 1) if path else None
        rows.append(row)
    return rows


def _built_in(name: str) -> Path | None:
    """The weights that come with the package. Imports no torch, so it looks by itself."""
    import dino_core

    path = Path(str(dino_core.__file__)).parent / "assets" / f"{name}.safetensors"
    return path if path.is_file() else None


def describe(model: str) -> dict[str, Any]:
    """Facts of a model file, or of a name whose weights are not here.

    Raises: CheckpointError when there is no such model.
    """
    from dino_core.checkpoints.published.cache import cached
    from dino_core.checkpoints.published.catalogue import find_published
    from dino_core.files import sha256_of
    from dino_core.inference.runtimes import read_metadata
    from dino_core.metadata import to_json

    is_file = Path(model).is_file()
    published = None if is_file else find_published(model)
    facts: dict[str, Any] = {}
    path = Path(model) if is_file else _built_in(model)
    if published is not None:
        here = cached(published.name)
        path = here.path(here.model) if here.model else None
        facts = _published_facts(model, published)
    if path is None:
        return {**facts, "file": None, **_variant_facts(published.variant if published else model)}
    facts |= {"file": str(path), "mb": round(path.stat().st_size / 1e6, 1)}
    facts["sha256"] = sha256_of(path)
    if path.suffix in (".pth", ".pt", ".pkl"):
        return {**facts, **_foreign_facts(path)}
    return {**facts, **json.loads(to_json(read_metadata(path)))}


def _published_facts(model: str, published: Published) -> dict[str, Any]:
    from dino_core.checkpoints.published.catalogue import DEFAULTS, LICENCE

    facts: dict[str, Any] = {
        "name": published.name,
        "project": published.project,
        "url": published.url or f"{published.file} by hand from {published.page}",
        "page": published.page,
        "licence": f"{LICENCE} (the project's; it states none for the weights alone)",
        "published": {
            "ap": published.ap, "epochs": published.epochs, "file": published.file,
            "sha256": published.sha256 or None, "bytes": published.size,
        },
    }  # fmt: skip
    if published.note:
        facts["note"] = published.note
    if model in DEFAULTS:
        facts["chosen"] = (
            f"{model} stands for {published.name}; `dino models list --all` has others"
        )
    return facts


def _variant_facts(name: str) -> dict[str, Any]:
    """The network of a name; raises CheckpointError for one that nothing is known of."""
    from dino_core.checkpoints.published.catalogue import CATALOGUE, DEFAULTS
    from dino_core.config import nearest, to_dict
    from dino_core.errors import CheckpointError
    from dino_core.variants import VARIANTS

    if name in VARIANTS:
        variant = VARIANTS[name]
        settings = {"model": to_dict(variant.model), "preprocess": to_dict(variant.preprocess)}
        return {"variant": name, **settings}
    if name in {*DEFAULTS, *(p.variant for p in CATALOGUE.values())}:
        return {"variant": name, "model": "not supported by this version"}
    if Path(name).suffix or len(Path(name).parts) > 1:
        kind = "a folder, not a model file" if Path(name).is_dir() else "no such file"
        raise CheckpointError(f"{name}: {kind}")
    known = nearest(name, {**VARIANTS, **CATALOGUE}) or f"known: {', '.join(VARIANTS)}"
    raise CheckpointError(f"unknown model '{name}'", known)


def _foreign_facts(path: Path) -> dict[str, Any]:
    """What the importer makes of another project's file, weights left aside."""
    from dino_core.checkpoints.zoo import load
    from dino_core.metadata import to_json

    meta = load(path).meta
    return dict(json.loads(to_json(meta)))


def print_facts(facts: Mapping[str, Any]) -> None:
    """One fact a line on stdout; those that hold others are indented."""
    for key, value in facts.items():
        if key == "classes":
            value = ", ".join(filter(None, value["names"]))
        if isinstance(value, dict):
            print(f"{key}:")
            for name, item in value.items():
                print(f"  {name}: {json.dumps(item, ensure_ascii=False)}")
        else:
            print(f"{key}: {value}")
