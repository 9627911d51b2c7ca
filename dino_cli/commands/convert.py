"""`dino convert`: a labeled data set into another format, and what that format could not hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dino_cli import data_options, options, output, render
from dino_core.errors import ConfigError

app = typer.Typer(**options.SETTINGS)


@app.command(
    epilog=options.examples(
        "dino convert yolo_data/ coco_data/ --to coco",
        "dino convert VOCdevkit/VOC2012 yolo_data/ --to yolo",
    )
)
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder or file of labeled data.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    to: data_options.To,
    format: data_options.Format = None,
    as_json: options.Json = False,
) -> None:
    """Convert labeled data to another format; what that format cannot hold is listed."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConfigError(f"{destination}: exists and is not empty", "choose a new folder")
    from dino_core.data.load import load_dataset
    from dino_core.data.save import save_dataset

    index = load_dataset(source, format, val_split=0.0)
    with output.output_folder(destination, "convert") as folder:
        losses = save_dataset(index, folder.path, to)
        folder.keep()
    for warning in (*index.warnings, *losses):
        render.warn(warning)
    images = {name: len(records) for name, records in index.splits.items()}
    boxes = {n: sum(len(r.class_indices) for r in records) for n, records in index.splits.items()}
    if as_json:
        answer = {
            "schema": 1, "from": index.format, "to": to, "classes": list(index.classes.names),
            "images": images, "boxes": boxes, "warnings": [*index.warnings, *losses],
            "out": str(destination),
        }  # fmt: skip
        print(json.dumps(answer, ensure_ascii=False))
        return
    for name, count in images.items():
        found = render.counted(boxes[name], "box", "boxes")
        render.note(f"{name}: {render.counted(count, 'image')}, {found}")
    names = list(filter(None, index.classes.names))
    render.note(f"{render.counted(len(names), 'class', 'classes')}: {', '.join(names)}")
    render.note(f"{index.format} -> {to}: {destination}")
