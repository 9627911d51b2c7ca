"""Results to disk, as `--save` names them: tables and labels here, pictures in `pictures`.

One-file results stream into a hidden part file and take their name at the end; the files of each
picture are written whole at once. A full disk is an error that leaves no half file.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from dino_core.config import nearest
from dino_core.detections import ClassMap
from dino_core.errors import ConfigError, DataError
from dino_core.files import atomic_file, part_path, write_error
from dino_core.inference.names import NameBook, frame_stem
from dino_core.inference.pictures import CropWriter, PictureWriter
from dino_core.inference.prediction import Prediction
from dino_core.inference.sources import SourceItem

KINDS = ("images", "jsonl", "json", "coco", "yolo", "voc", "csv", "crops")
JSONL_NAME = "predictions.jsonl"

Record = Mapping[str, Any]  # one line of the JSONL contract


class RecordWriter(Protocol):
    """Writes records; `finish` completes the file, `abort` removes it."""

    def add(self, record: Record, stem: str) -> None: ...

    def finish(self) -> None: ...

    def abort(self) -> None: ...


class Writers:
    """Every kind of result of one run; a context manager.

    Leaving the block completes what was written, also after an interrupt or an error elsewhere; an
    error while writing removes the unfinished files.

    Attributes:
        out: The result folder.
        kinds: What is saved.
    """

    def __init__(
        self,
        kinds: Iterable[str],
        out: Path,
        classes: ClassMap,
        *,
        items: Iterable[SourceItem] = (),
        previous: Iterable[Record] = (),
    ) -> None:
        """Open the results.

        Args:
            kinds: Some of KINDS.
            out: The result folder.
            classes: The model's classes.
            items: All sources, so that names stay the same when only some are predicted.
            previous: Records of an earlier run into `out`, repeated in the new tables.

        Raises:
            ConfigError: an unknown kind.
            DinoError: a file cannot be written.
        """
        self.out = out
        self.kinds = check_kinds(kinds)
        self._names = NameBook()
        for item in items:
            self._names.stem(item.source, item.name)
        self._tables: list[RecordWriter] = []
        self._pictures = PictureWriter(out) if "images" in self.kinds else None
        self._crops = CropWriter(out / "crops") if "crops" in self.kinds else None
        self._open = True
        with self._aborting():
            for kind in self.kinds:
                if kind not in ("images", "crops"):
                    self._tables.append(_table(kind, out, classes))
            for record in previous:
                stem = self._names.stem(str(record["source"]), Path(str(record["source"])).name)
                for table in self._tables:
                    table.add(record, stem)

    def add(self, prediction: Prediction) -> None:
        """Write one result. Raises DinoError where that fails, e.g. on a full disk."""
        stem = self._names.stem(prediction.source, prediction.name or prediction.source)
        record = prediction.to_dict()
        with self._aborting():
            for table in self._tables:
                table.add(record, stem)
            if prediction.image is not None and self._pictures is not None:
                self._pictures.add(prediction, stem)
            if prediction.image is not None and self._crops is not None:
                self._crops.add(prediction, stem)

    def finish(self) -> None:
        """Complete all files. Raises DinoError where that fails."""
        if not self._open:
            return
        with self._aborting():
            for table in self._tables:
                table.finish()
            if self._pictures is not None:
                self._pictures.finish()
        self._open = False

    def abort(self) -> None:
        """Remove what is not complete."""
        self._open = False
        for table in self._tables:
            table.abort()
        if self._pictures is not None:
            self._pictures.abort()

    @contextlib.contextmanager
    def _aborting(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.abort()
            raise

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish()


def _table(kind: str, out: Path, classes: ClassMap) -> RecordWriter:
    makers: dict[str, Callable[[], RecordWriter]] = {
        "jsonl": lambda: JsonLinesWriter(out / JSONL_NAME),
        "json": lambda: JsonWriter(out / "predictions.json"),
        "coco": lambda: CocoWriter(out / "predictions.coco.json", classes),
        "yolo": lambda: YoloWriter(out / "yolo", classes),
        "voc": lambda: VocWriter(out / "voc"),
        "csv": lambda: CsvWriter(out / "predictions.csv"),
    }
    return makers[kind]()


def check_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """The kinds, each once. Raises ConfigError on an unknown one, with the nearest known."""
    kinds = tuple(dict.fromkeys(kinds))
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(
                f"results cannot be saved as '{kind}'",
                nearest(kind, KINDS) or f"known: {', '.join(KINDS)}",
            )
    return kinds


def read_finished(out: Path) -> list[dict[str, Any]]:
    """Records of pictures that an earlier run into `out` finished; videos do not count.

    Raises:
        DataError: the file there is not what this library writes.
    """
    path = out / JSONL_NAME
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
        return [r for r in records if r.get("error") is None and r["frame"] is None]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path}: not a result of `dino predict` ({error})",
            "remove it, or choose another --out",
        ) from error


def to_json_line(record: Record) -> str:
    """One record as a line of JSON, without its line break."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


class _Stream:
    """A text file that grows in a part file and takes its name when finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = part_path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self._part.open("wb")
        except OSError as error:
            raise write_error(path, error) from error

    def write(self, text: str) -> None:
        try:
            self._file.write(text.encode())
            self._file.flush()
        except OSError as error:
            raise write_error(self.path, error) from error

    def finish(self) -> None:
        try:
            self._file.close()
            self._part.replace(self.path)
        except OSError as error:
            raise write_error(self.path, error) from error

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)


class JsonLinesWriter(_Stream):
    """`predictions.jsonl`: a record a line, unreadable pictures included."""

    def add(self, record: Record, stem: str) -> None:
        self.write(to_json_line(record) + "\n")


class JsonWriter(_Stream):
    """`predictions.json`: one list of the same records."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._separator = "[\n"

    def add(self, record: Record, stem: str) -> None:
        self.write(self._separator + to_json_line(record))
        self._separator = ",\n"

    def finish(self) -> None:
        self.write("\n]\n" if self._separator == ",\n" else "[]\n")
        super().finish()


class CsvWriter(_Stream):
    """`predictions.csv`: a detection a row."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        columns = "source frame time_s width height label class_id score x1 y1 x2 y2"
        self._rows([columns.split()])

    def add(self, record: Record, stem: str) -> None:
        image = [record[key] for key in ("source", "frame", "time_s", "width", "height")]
        self._rows(
            [*image, d["label"], d["class_id"], d["score"], *d["box"]] for d in record["detections"]
        )

    def _rows(self, rows: Iterable[Sequence[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self.write(text.getvalue())


class CocoWriter:
    """`predictions.coco.json`: a COCO data set whose annotations also have a `score`."""

    def __init__(self, path: Path, classes: ClassMap) -> None:
        self.path = path
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        pairs = zip(classes.source_ids, classes.names, strict=True)
        self._categories = [{"id": i, "name": name} for i, name in pairs if name]

    def add(self, record: Record, stem: str) -> None:
        if record.get("error") is not None:
            return
        image_id = len(self._images) + 1
        image = {"id": image_id, "file_name": record["source"] or stem}
        if record["frame"] is not None:
            image |= {"file_name": frame_stem(stem, record["frame"]), "video": record["source"]}
        self._images.append(image | {"width": record["width"], "height": record["height"]})
        for found in record["detections"]:
            x1, y1, x2, y2 = found["box"]
            width, height = round(x2 - x1, 2), round(y2 - y1, 2)
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image_id,
                    "category_id": found["class_id"],
                    "bbox": [x1, y1, width, height],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                    "score": found["score"],
                }
            )

    def finish(self) -> None:
        data = {
            "images": self._images,
            "annotations": self._annotations,
            "categories": self._categories,
        }
        with atomic_file(self.path) as file:
            file.write(json.dumps(data, ensure_ascii=False).encode())

    def abort(self) -> None:
        """Nothing is on disk before `finish`."""


class YoloWriter:
    """`yolo/labels/NAME.txt` (class cx cy w h, without scores, as data sets have) and data.yaml."""

    def __init__(self, folder: Path, classes: ClassMap) -> None:
        self.folder = folder
        self._names = [name for name in classes.names if name]

    def add(self, record: Record, stem: str) -> None:
        if record.get("error") is not None:
            return
        size = (record["width"], record["height"])
        lines = [self._line(found, size) for found in record["detections"]]
        path = self.folder / "labels" / f"{frame_stem(stem, record['frame'])}.txt"
        with atomic_file(path) as file:
            file.write("".join(lines).encode())

    def _line(self, found: Mapping[str, Any], size: tuple[int, int]) -> str:
        x1, y1, x2, y2 = found["box"]
        width, height = size
        center = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height)
        numbers = (*center, (x2 - x1) / width, (y2 - y1) / height)
        index = self._names.index(found["label"])
        return f"{index} {' '.join(f'{v:.6f}' for v in numbers)}\n"

    def finish(self) -> None:
        names = "".join(
            f"  {i}: {json.dumps(name, ensure_ascii=False)}\n" for i, name in enumerate(self._names)
        )
        with atomic_file(self.folder / "data.yaml") as file:
            file.write(f"path: .\ntrain: images\nval: images\nnames:\n{names}".encode())

    def abort(self) -> None:
        """Each file is complete."""


class VocWriter:
    """`voc/NAME.xml`: Pascal VOC, whole pixels counted from 1, corners inclusive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, record: Record, stem: str) -> None:
        if record.get("error") is not None:
            return
        root = ElementTree.Element("annotation")
        name = Path(str(record["source"])).name or stem
        if record["frame"] is not None:
            name = frame_stem(Path(stem).name, record["frame"])
        _text(root, "filename", name)
        size = ElementTree.SubElement(root, "size")
        for key in ("width", "height"):
            _text(size, key, record[key])
        _text(size, "depth", 3)
        for found in record["detections"]:
            node = ElementTree.SubElement(root, "object")
            _text(node, "name", found["label"])
            _text(node, "difficult", 0)
            _text(node, "score", found["score"])
            box = ElementTree.SubElement(node, "bndbox")
            x1, y1, x2, y2 = (round(v) for v in found["box"])
            corners = (x1 + 1, y1 + 1, max(x2, x1 + 1), max(y2, y1 + 1))
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
                _text(box, key, value)
        ElementTree.indent(root)
        with atomic_file(self.folder / f"{frame_stem(stem, record['frame'])}.xml") as file:
            file.write(ElementTree.tostring(root, encoding="utf-8") + b"\n")

    def finish(self) -> None:
        """Each file is complete."""

    def abort(self) -> None:
        """Each file is complete."""


def _text(parent: ElementTree.Element, name: str, value: object) -> None:
    ElementTree.SubElement(parent, name).text = str(value)
