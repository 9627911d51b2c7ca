"""Shows models: the list, the facts of one, and the progress of a download."""

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
    from dino_core.checkpoints.published.names import NamedModel

_LICENSE_KEY = "licence"  # as the files of this version spell it

COLUMNS = ("name", "ap", "source", "weights", "mb")


def ensure(model: str | None) -> None:
    """Download the published model that `model` names, unless it is cached, with its progress.

    Other names, paths and None do nothing.

    Raises: CheckpointError when it cannot be downloaded or imported.
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
    """Show a download: a live bar on a terminal, a line every ten seconds elsewhere.

    Nothing is shown before the first report, because the model may be cached.
    """
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
    """Shows progress as lines, for logs."""

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


def model_rows(every_file: bool) -> list[dict[str, Any]]:
    """The rows of `dino models list`: one per network, or also one per published file."""
    from dino_core.checkpoints.published.names import list_models

    return [_row(model) for model in list_models(every_file=every_file)]


def _row(model: NamedModel) -> dict[str, Any]:
    from dino_core.checkpoints.published.catalogue import LICENSE
    from dino_core.inference.runtimes import read_metadata
    from dino_core.variants import VARIANTS

    variant = VARIANTS.get(model.variant or "")
    row: dict[str, Any] = {
        "name": model.name,
        "backbone": variant.model.backbone if variant else None,
        "levels": variant.model.num_levels if variant else None,
        "queries": variant.model.num_queries if variant else None,
        "max_side": variant.preprocess.max_side if variant else None,
        "weights": model.weights,
    }
    if model.published is not None:
        row |= {
            "ap": model.published.ap,
            "epochs": model.published.epochs,
            "source": model.published.project,
            "file": model.published.name,
            "url": model.published.url,
            "license": LICENSE,
            "sha256": model.published.sha256 or None,
        }
    elif model.path is not None:
        row["license"] = read_metadata(model.path).provenance.other.get(_LICENSE_KEY)
    return row | {"mb": _megabytes(model.path) if model.path else None}


def _megabytes(path: Path) -> float:
    return round(path.stat().st_size / 1e6, 1)


def describe(model: NamedModel) -> dict[str, Any]:
    """What `dino models info` shows: facts of the model file, or of a name without one.

    Raises: CheckpointError when the file cannot be read.
    """
    facts = _published_facts(model.name, model.published) if model.published else {}
    if model.path is None:
        return {**facts, "file": None, **_network_facts(str(model.variant))}
    return {**facts, **_file_facts(model.path)}


def _published_facts(name: str, published: Published) -> dict[str, Any]:
    from dino_core.checkpoints.published.catalogue import LICENSE

    facts: dict[str, Any] = {
        "name": published.name,
        "project": published.project,
        "url": published.url or f"{published.file} by hand from {published.page}",
        "page": published.page,
        "license": f"{LICENSE} (the project's; it states none for the weights alone)",
        "published": {
            "ap": published.ap, "epochs": published.epochs, "file": published.file,
            "sha256": published.sha256 or None, "bytes": published.size,
        },
    }  # fmt: skip
    if published.note:
        facts["note"] = published.note
    if name != published.name:
        facts["chosen"] = f"{name} stands for {published.name}; `dino models list --all` has others"
    return facts


def _network_facts(variant: str) -> dict[str, Any]:
    from dino_core.config import to_dict
    from dino_core.variants import VARIANTS

    if variant not in VARIANTS:
        return {"variant": variant, "model": "not supported by this version"}
    known = VARIANTS[variant]
    settings = {"model": to_dict(known.model), "preprocess": to_dict(known.preprocess)}
    return {"variant": variant, **settings}


def _file_facts(path: Path) -> dict[str, Any]:
    from dino_core.checkpoints.published.names import FOREIGN_SUFFIXES
    from dino_core.files import sha256_of
    from dino_core.inference.runtimes import read_metadata
    from dino_core.metadata import to_json

    facts = {"file": str(path), "mb": _megabytes(path), "sha256": sha256_of(path)}
    if path.suffix in FOREIGN_SUFFIXES:
        from dino_core.checkpoints.zoo import load  # needs torch

        meta = load(path).meta
    else:
        meta = read_metadata(path)
    return {**facts, **json.loads(to_json(meta))}


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print one fact per line on stdout, and the parts of nested facts indented below them."""
    for key, value in facts.items():
        if key == "classes":
            value = ", ".join(filter(None, value["names"]))
        if isinstance(value, dict):
            print(f"{key}:")
            for name, item in value.items():
                print(f"  {name}: {json.dumps(item, ensure_ascii=False)}")
        else:
            print(f"{key}: {value}")
