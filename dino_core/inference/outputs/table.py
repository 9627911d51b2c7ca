"""The table of predict outputs: what `dino predict --save` can write.

To add one, write a module with a class that implements `writer.Writer`, and add its row here. The
command line takes its choices, its help and its error messages from this table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dino_core.errors import ConfigError
from dino_core.inference.outputs.coco import CocoWriter
from dino_core.inference.outputs.crops import CropWriter
from dino_core.inference.outputs.csv_rows import CsvWriter
from dino_core.inference.outputs.images import ImageWriter
from dino_core.inference.outputs.records import JsonLinesWriter, JsonWriter
from dino_core.inference.outputs.voc import VocWriter
from dino_core.inference.outputs.writer import Writer
from dino_core.inference.outputs.yolo import YoloWriter
from dino_core.suggestions import nearest_or_all

if TYPE_CHECKING:
    from dino_core.detections import ClassMap


@dataclass(frozen=True)
class Output:
    """One kind of predict output.

    Attributes:
        open: Starts writing into a result folder, given that folder and the model's classes.
        help: What is written, in a few words.
        folders: Names of the folders that it makes in the result folder.
    """

    open: Callable[[Path, ClassMap], Writer]
    help: str
    folders: tuple[str, ...] = ()


OUTPUTS: dict[str, Output] = {
    "images": Output(ImageWriter, "annotated images and videos", ("images", "videos")),
    "jsonl": Output(JsonLinesWriter, "one JSON record per image or frame, one per line"),
    "json": Output(JsonWriter, "the same records as one JSON list"),
    "coco": Output(CocoWriter, "one COCO file with scores"),
    "yolo": Output(YoloWriter, "YOLO label files and data.yaml", ("yolo",)),
    "voc": Output(VocWriter, "Pascal VOC XML files", ("voc",)),
    "csv": Output(CsvWriter, "one CSV row per detection"),
    "crops": Output(CropWriter, "each detection cut out, a folder per class", ("crops",)),
}
"""Value of `--save` to the output it stands for."""


def check_outputs(kinds: Iterable[str]) -> tuple[str, ...]:
    """The kinds without repetitions, in order.

    Raises:
        ConfigError: a kind is not in the table; the nearest one is suggested.
    """
    kinds = tuple(dict.fromkeys(kinds))
    for kind in kinds:
        if kind not in OUTPUTS:
            hint = nearest_or_all(kind, OUTPUTS)
            raise ConfigError(f"results cannot be saved as '{kind}'", hint)
    return kinds
