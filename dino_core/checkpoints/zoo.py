"""Finds the file of a model given by name or path: built in, published, or the user's own.

A published file is downloaded once, checked, and imported once. Both files stay in the cache.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dino_core.checkpoints.checksum import check_checksum
from dino_core.checkpoints.foreign.convert import import_checkpoint
from dino_core.checkpoints.foreign.unpickle import check_pickled
from dino_core.checkpoints.header import read_entries, read_header
from dino_core.checkpoints.io import (
    Checkpoint,
    build_model,
    load_checkpoint,
    save_checkpoint,
)
from dino_core.checkpoints.published.cache import (
    CachedModel,
    FileRecord,
    cached,
    check_unchanged,
    record_of,
    remember,
)
from dino_core.checkpoints.published.catalogue import Published
from dino_core.checkpoints.published.fetch import Progress, check_online, fetch, one_at_a_time
from dino_core.checkpoints.published.names import FOREIGN_SUFFIXES, find_model
from dino_core.errors import CheckpointError
from dino_core.files import sha256_of
from dino_core.metadata import CheckpointMeta, library_version
from dino_core.provenance import Ancestor
from dino_core.variants import VARIANTS

_RUN_FACTS = ("data", "images", "steps", "epochs")


def resolve(name_or_path: str | Path, progress: Progress | None = None) -> Path:
    """The file of a model given by name or path. A published one is downloaded if need be.

    Raises:
        CheckpointError: There is no such file or model, or `pull` fails.
    """
    found = find_model(name_or_path)
    if found.published is not None:
        return pull(found.published, progress)
    if found.path is not None:
        return found.path
    if found.variant not in VARIANTS:
        raise _unsupported(found.name, str(found.variant))
    raise CheckpointError(
        f"no weights of {found.name} are published",
        "train it (`dino train DATA --model ... --weights none`), or give a model file",
    )


def _unsupported(name: str, variant: str) -> CheckpointError:
    return CheckpointError(
        f"{name}: this version has no network {variant}", f"it has {', '.join(VARIANTS)}"
    )


def load(name_or_path: str | Path) -> Checkpoint:
    """Read a model given by name or path. Files of other DINO code are converted in memory.

    Raises: CheckpointError like `resolve`, `load_checkpoint` and `import_checkpoint`.
    """
    return _read(resolve(name_or_path))


def _read(path: Path) -> Checkpoint:
    return import_checkpoint(path) if path.suffix in FOREIGN_SUFFIXES else load_checkpoint(path)


def pull(published: Published, progress: Progress | None = None, *, again: bool = False) -> Path:
    """The model file of a published model, downloaded and imported unless the cache has it.

    Args:
        published: An entry of the catalogue.
        progress: Called with the state of the download.
        again: Download and import it even if the cache has it.

    Raises:
        CheckpointError: Its network is not supported, it can only be downloaded in a browser, the
            download fails, the file in the cache was changed, or it cannot be imported.
    """
    if not again and (ready := _ready(published)) is not None:
        return ready
    if published.variant not in VARIANTS:
        raise _unsupported(published.name, published.variant)
    if published.url is None:
        raise CheckpointError(
            f"{published.name}: the official files are on Google Drive, without a direct link",
            f"get {published.file} from {published.page} by hand, then `dino models import "
            f"{published.file} {published.name}.safetensors` and use that file",
        )
    here = cached(published.name)
    if here.source is None or again:
        check_online(published.url, here.folder / published.file)
    with one_at_a_time(here.folder, progress):
        if not again and (ready := _ready(published)) is not None:
            return ready  # another process was faster
        source = _source(published, progress, again=again)
        if progress is not None:
            progress("importing", 0, None)
        return _imported(published, source)


def _ready(published: Published) -> Path | None:
    """The model file in the cache; None if there is none, or another version imported it."""
    here = cached(published.name)
    if here.model is None or (here.source and here.model.version != library_version()):
        return None
    check_unchanged(here, here.model)
    return here.path(here.model)


def _source(published: Published, progress: Progress | None, *, again: bool) -> FileRecord:
    """The published file, which is downloaded into the cache if need be."""
    here = cached(published.name)
    for record in (here.source, here.model):
        if again and record is not None:
            here.path(record).unlink(missing_ok=True)
    if here.source is not None and not again:
        check_unchanged(here, here.source)
        return here.source
    target = here.folder / published.file
    fetch(str(published.url), target, lambda path: check_source(published, path), progress)
    source = record_of(target, library_version())
    remember(CachedModel(here.folder, source, None))
    return source


def check_source(published: Published, path: Path) -> None:
    """Raises CheckpointError unless a file is the published one.

    If no checksum is published, those inside the file (of each part of a zip) are checked.
    """
    if published.sha256:
        found = sha256_of(path)
        if not found.startswith(published.sha256):
            raise CheckpointError(
                f"{path}: its sha256 begins with {found[: len(published.sha256)]}, published is "
                f"{published.sha256} ({path.stat().st_size} bytes)"
            )
    if Path(published.file).suffix in FOREIGN_SUFFIXES:
        check_pickled(path)
    else:
        read_header(path)


def _imported(published: Published, source: FileRecord) -> Path:
    """Import the published file into the same folder, and record that in the cache."""
    here = CachedModel(cached(published.name).folder, source, None)
    read = _read(here.path(source))
    provenance = replace(read.meta.provenance, name=published.name, url=published.url or "")
    target = here.folder / f"{published.name}.safetensors"
    save_checkpoint(target, read.state_dict, replace(read.meta, provenance=provenance))
    remember(replace(here, model=record_of(target, library_version())))
    return target


def verify(published: Published) -> list[FileRecord]:
    """Read everything that the cache has of a published model, and compare checksums.

    Raises: CheckpointError if the cache has nothing, or a file is damaged or was changed.
    """
    here = cached(published.name)
    records = [record for record in (here.source, here.model) if record is not None]
    if not records:
        raise CheckpointError(
            f"{published.name} is not in the cache", f"dino models pull {published.name}"
        )
    for record in records:
        check_unchanged(here, record, thoroughly=True)
    if here.source is not None:
        check_source(published, here.path(here.source))
    if here.model is not None:
        verify_file(here.path(here.model))
    return records


def verify_model(name_or_path: str | Path) -> bool:
    """Verify what a name or path stands for: all that is cached of it, or the file.

    Returns: Whether a checksum was compared, as by `verify_file`.
    Raises: CheckpointError as `find_model`, `verify` and `verify_file` do.
    """
    found = find_model(name_or_path)
    if found.published is not None:
        verify(found.published)
        return True
    return verify_file(resolve(name_or_path))


def verify_file(path: Path) -> bool:
    """Read a whole model file, and check that its weights fit its network and are finite.

    Returns: Whether the file has a checksum, which was compared. Model files that version 0.1.0
        wrote have none, and of other projects' files the zip format has checksums of its own.
    Raises: CheckpointError if the file is damaged, no model file, or has NaN or infinite weights.
    """
    if path.suffix in FOREIGN_SUFFIXES:
        check_pickled(path)
        compared = False
    else:
        compared = check_checksum(path, read_entries(path))
    checkpoint = _read(path)
    build_model(checkpoint, path)
    for name, tensor in checkpoint.state_dict.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path}: {name} has NaN or infinite values")
    return compared


def history(path: Path, meta: CheckpointMeta) -> tuple[Ancestor, ...]:
    """The ancestors of a model trained from this file: those of the file, and last the file itself.

    Args:
        path: The model file.
        meta: Its metadata.
    """
    training = {key: meta.training[key] for key in _RUN_FACTS if key in meta.training}
    own = replace(meta.provenance, history=())
    ancestor = Ancestor(path.name, sha256_of(path), meta.variant, own, training)
    return (*meta.provenance.history, ancestor)
