"""A folder or file as a data set: which format it is, and a validation split if it has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dino_core.config import TrainConfig
from dino_core.data.faults import Fault
from dino_core.data.formats.coco_files import looks_like_coco
from dino_core.data.formats.foreign import explain
from dino_core.data.formats.table import FORMATS, require_format
from dino_core.data.records import DatasetIndex, ImageRecord, SetApart
from dino_core.data.split import stratified_split
from dino_core.errors import ConfigError, DataError


def load_dataset(
    path: str | Path,
    format: str | None = None,
    val_split: float = TrainConfig.val_split,
    seed: int = TrainConfig.seed,
) -> DatasetIndex:
    """Read a labeled data set in whichever format it is.

    Labels, images and files that cannot be used are left out; `DatasetIndex.faults` lists them.

    Example:
        >>> dataset = load_dataset("data/")
        >>> dataset.classes.names, len(dataset.splits["train"]), dataset.faults

    Args:
        path: A folder or file; the formats are the keys of `formats.table.FORMATS`.
        format: One of these keys instead of recognizing the format.
        val_split: Share of the images to set apart as "val" where the set has only "train"; 0 for
            none.
        seed: Seed of that split; the same seed gives the same split, and the default is training's.

    Raises:
        DataError: nothing is there, no format fits, or no label can be used.
        ConfigError: an unknown format, or a share outside 0 to 1.
    """
    if not 0 <= val_split < 1:
        raise ConfigError(f"val_split is {val_split}, expected a share from 0 to below 1")
    index = read_dataset(path, format)
    if (reason := unusable(index)) is not None:
        raise reason
    return with_val(index, SetApart(val_split, seed))


def read_dataset(path: str | Path, format: str | None = None) -> DatasetIndex:
    """Read a data set as it is: without a validation split of its own, and even if it is unusable.

    Where no label can be used, the result has no classes, and its faults say why; a check reports
    them. Arguments and errors are those of `load_dataset`.
    """
    path = Path(path)
    if format is not None:
        require_format(format)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    try:
        match = _forced(path, format) if format else _recognized(path)
        index: DatasetIndex = FORMATS[match.format].read(match.found)
    except OSError as error:
        place = error.filename or path
        raise DataError(f"{place}: cannot be read ({error.strerror or error})") from error
    if match.also:
        formats = " and ".join(sorted((match.format, *match.also), key=list(FORMATS).index))
        place = f"{match.path}: {formats}; {match.format} is read"
        index = replace(index, faults=(*index.faults, Fault("several-formats", place)))
    return index


class _Match(NamedTuple):
    """A path of a known format: what its finder found there, and other formats that fit it."""

    format: str
    path: Path
    found: Any
    also: tuple[str, ...] = ()


def _forced(path: Path, name: str) -> _Match:
    found = FORMATS[name].find(path)
    if found is None:
        title, layout = FORMATS[name].title, FORMATS[name].layout
        raise DataError(f"{path}: no {title} data set found", f"expected {layout}")
    return _Match(name, path, found)


def _recognized(path: Path) -> _Match:
    """The format of a path, or of the one folder in it that holds data."""
    matches = _matches(path)
    if path.is_file() and path.suffix.lower() == ".json" and not looks_like_coco(path):
        matches = [] if explain(path) is not None else matches
    if matches:
        first = next((m for m in matches if FORMATS[m.format].names_classes(m.found)), matches[0])
        return first._replace(also=tuple(m.format for m in matches if m is not first))
    if path.is_file():
        raise explain(path) or DataError(
            f"{path}: not a data set",
            "expected a folder, a COCO .json, a YOLO data.yaml or a .csv",
        )
    inside = _visible(path)
    folders = [each for each in inside if each.is_dir()]
    # An archive is often unpacked to one folder, and data may lie beside code and texts.
    data = folders if len(inside) == 1 else list(filter(_matches, folders))
    if len(data) == 1:
        return _recognized(data[0])
    if data:
        names = " and ".join(folder.name for folder in data)
        raise DataError(f"{path}: holds several data sets, {names}", "give one of them")
    if (known := explain(path)) is not None:
        raise known
    found = ", ".join(each.name for each in inside[:8]) or "nothing"
    raise DataError(
        f"{path}: no data set recognized, found {found}",
        "looked for " + "; ".join(f"{name}: {each.layout}" for name, each in FORMATS.items()),
    )


def _matches(path: Path) -> list[_Match]:
    found = {name: each.find(path) for name, each in FORMATS.items()}
    return [_Match(name, path, each) for name, each in found.items() if each is not None]


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, except hidden files and those that macOS puts into archives."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))


_LOSING = frozenset(
    {
        "malformed-file", "malformed-label", "malformed-image-entry", "malformed-class",
        "unknown-class", "label-without-image", "missing-split", "missing-image",
        "ambiguous-image", "unreadable-image", "wrong-shape", "labels-lost",
    }
)  # kinds of fault by which labels are left out  # fmt: skip


def unusable(index: DatasetIndex) -> DataError | None:
    """Why nothing of a data set can be used: it names no class, or all of its labels were left out.

    Images that nobody labeled are no fault: such a data set is usable, if only for prediction.
    """
    boxes = any(len(record.class_indices) for record in index.records)
    losses = losing_faults(index)
    if index.classes.names and (boxes or not losses):
        return None
    if not losses:
        return DataError(f"{index.root}: there are no labels, so no class is known")
    # An image or a split that is lost because of its labels is not a fault of its own.
    more = sum(f.count for f in losses[1:] if f.kind not in ("labels-lost", "missing-split"))
    faults = f"{more:,} more fault{'' if more == 1 else 's'}"
    return DataError(losses[0].place, f"`dino check {index.root}` lists {faults}" if more else "")


def losing_faults(index: DatasetIndex) -> list[Fault]:
    """The faults by which labels, images or splits were left out."""
    return [fault for fault in index.faults if fault.kind in _LOSING]


def require_split(index: DatasetIndex, split: str) -> tuple[ImageRecord, ...]:
    """The images of a split.

    Raises:
        DataError: the split is missing or empty; where it was lost in reading, the error says why.
    """
    records = index.splits.get(split, ())
    if records:
        return records
    found = ", ".join(f"{name} ({len(r)})" for name, r in index.splits.items()) or "none"
    causes = losing_faults(index) if split in index.lost_splits else []
    because = f": {causes[0].place}" if causes else ""
    raise DataError(
        f"{index.root}: no images in split '{split}'{because}", f"splits with images: {found}"
    )


def with_val(index: DatasetIndex, how: SetApart) -> DatasetIndex:
    """`index` with a part of train as "val"; unchanged where the data name one or the share is 0.

    A validation split that is named but cannot be read is not replaced: scores on training images
    would pass for those of the split that the user means.
    """
    named = index.named_splits | index.splits.keys()
    if "train" not in index.splits or "val" in named or how.share == 0:
        return index
    train, val = stratified_split(index.splits["train"], how.share, len(index.classes), how.seed)
    note = (
        f"the data has no val split: {len(val)} of {len(train) + len(val)} images were set apart "
        f"(share {how.share:g}, seed {how.seed})"
    )
    others = {name: records for name, records in index.splits.items() if name != "train"}
    splits = {"train": train, "val": val, **others}
    faults = (*index.faults, Fault("split-made", note))
    return replace(index, splits=splits, faults=faults, set_apart=how)
