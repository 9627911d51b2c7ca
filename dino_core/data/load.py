"""A folder or file as a data set: which form it is, and a validation split if it has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dino_core.config import TrainConfig, nearest
from dino_core.data.formats.coco import read_coco
from dino_core.data.formats.csv_files import CSV_LAYOUT, is_csv
from dino_core.data.formats.csv_table import read_csv
from dino_core.data.formats.layout import COCO_LAYOUT, find_coco
from dino_core.data.formats.voc import read_voc
from dino_core.data.formats.voc_files import VOC_LAYOUT, is_voc
from dino_core.data.formats.yolo import read_yolo
from dino_core.data.formats.yolo_files import YOLO_LAYOUT, find_yolo, is_yolo
from dino_core.data.records import DatasetIndex, SetApart
from dino_core.data.split import stratified_split
from dino_core.errors import ConfigError, DataError


class Form(NamedTuple):
    """One form of data sets: whether a path has it, what it looks like, and its reader."""

    fits: Callable[[Path], bool]
    layout: str
    read: Callable[[Path], DatasetIndex]


FORMS: dict[str, Form] = {
    "coco": Form(lambda path: bool(find_coco(path)), COCO_LAYOUT, read_coco),
    "yolo": Form(is_yolo, YOLO_LAYOUT, read_yolo),
    "voc": Form(is_voc, VOC_LAYOUT, read_voc),
    "csv": Form(is_csv, CSV_LAYOUT, read_csv),
}


def load_dataset(
    path: str | Path,
    format: str | None = None,
    val_split: float = TrainConfig.val_split,
    seed: int = TrainConfig.seed,
) -> DatasetIndex:
    """Read a labelled data set in whichever form it is.

    Args:
        path: A folder, a COCO json file, a YOLO data.yaml or a CSV file.
        format: "coco", "yolo", "voc" or "csv" instead of recognising it.
        val_split: Share of the images to set apart as "val" where the set has only "train"; 0 for
            none.
        seed: Of that split; the same seed gives the same split, and the default is training's.

    Raises:
        DataError: nothing is there, no form fits, or the data are malformed.
        ConfigError: an unknown format, or a share outside 0 to 1.
    """
    path = Path(path)
    if not 0 <= val_split < 1:
        raise ConfigError(f"val_split is {val_split}, expected a share from 0 to below 1")
    if format is not None and format not in FORMS:
        raise ConfigError(
            f"unknown data format '{format}'",
            nearest(format, FORMS) or f"known: {', '.join(FORMS)}",
        )
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    try:
        path, form, note = (path, format, "") if format else _recognise(path)
        index = FORMS[form].read(path)
    except OSError as error:
        place = error.filename or path
        raise DataError(f"{place}: cannot be read ({error.strerror or error})") from error
    if note:
        index = replace(index, warnings=(*index.warnings, note))
    return with_val(index, SetApart(val_split, seed))


def _recognise(path: Path) -> tuple[Path, str, str]:
    """The folder of the data, the first form that fits, a remark where others would fit too.

    YOLO labels without names of classes yield to others, which have them.
    """
    forms = _forms_of(path)
    if len(forms) == 1:
        return path, forms[0], ""
    if forms:
        form = next(name for name in forms if _names_classes(name, path))
        others = f"{path} holds labels as {' and '.join(forms)}; {form} was read"
        return path, form, f"{others} (--format forces another)"
    if path.is_file():
        raise DataError(
            f"{path}: not a data set",
            "expected a folder, a COCO .json, a YOLO data.yaml or a .csv",
        )
    inside = _shown(path)
    folders = [each for each in inside if each.is_dir()]
    data = folders if len(inside) == 1 else list(filter(_forms_of, folders))
    if len(data) == 1:  # what an archive was unpacked to, or data beside code and words
        return _recognise(data[0])
    if data:
        names = " and ".join(folder.name for folder in data)
        raise DataError(f"{path}: holds several data sets, {names}", "give one of them")
    found = ", ".join(each.name for each in inside[:8]) or "nothing"
    raise DataError(
        f"{path}: no data set recognised, found {found}",
        "looked for " + "; ".join(f"{name}: {form.layout}" for name, form in FORMS.items()),
    )


def _forms_of(path: Path) -> list[str]:
    return [name for name, form in FORMS.items() if form.fits(path)]


def _names_classes(form: str, path: Path) -> bool:
    return form != "yolo" or find_yolo(path).names is not None


def _shown(folder: Path) -> list[Path]:
    """What lies in a folder, but for hidden files and those that macOS puts into archives."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))


def with_val(index: DatasetIndex, how: SetApart) -> DatasetIndex:
    """`index` with a part of train as "val"; unchanged where it has one or the share is 0."""
    if "train" not in index.splits or "val" in index.splits or how.share == 0:
        return index
    train, val = stratified_split(index.splits["train"], how.share, len(index.classes), how.seed)
    note = (
        f"the data has no val split: {len(val)} of {len(train) + len(val)} images were set apart "
        f"(share {how.share:g}, seed {how.seed})"
    )
    others = {name: records for name, records in index.splits.items() if name != "train"}
    splits = {"train": train, "val": val, **others}
    return replace(index, splits=splits, warnings=(*index.warnings, note), set_apart=how)
