"""COCO and labelme files: damaged text, and values that no image can have."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import coco_table, image_file
from fuzz.mutations import fuzz, main

from dino_core.data.load import read_dataset
from dino_core.data.save import save_dataset

TOKENS = [
    str(10**400).encode(), b"9" * 5000, "²".encode(), b'"\\ud800"', b"[" * 2000, b"{", b"}", b"[]",
    b"{}", b"null", b"true", b"-1", b"0", b"1e400", b"NaN", b"Infinity", b"1e308", b'""', b'"x"',
    b"[[1,2,3,4]]", b'{"a":1}', b'"1"', b"2147483648", b"9223372036854775808", b'"\\u0000"', b"0.5",
    b'"../../../x"', b'"/"', b'"a/' + b"a/" * 3000 + b'"', b",", b":", b'"id":', b'"bbox":',
]  # fmt: skip


def _coco() -> list[bytes]:
    outline = {"id": 3, "image_id": 3, "category_id": 4, "area": "7", "iscrowd": "0"}
    masks = [
        {**outline, "segmentation": [[1, 2, 5, 2, 5, 9]]},
        {**outline, "id": "u-4", "segmentation": [1, 2, 5, 2, 5, 9]},
        {**outline, "id": 5, "segmentation": {"counts": [30, 5, 25, 5, 1135], "size": [30, 40]}},
        {**outline, "id": 6, "segmentation": {"counts": "n05i05S[1", "size": [30, 40]}},
    ]
    table = coco_table()
    table["annotations"] += masks
    words = coco_table(images=[{"id": "x", "file_name": "a.jpg"}], annotations=[])
    return [json.dumps(each).encode() for each in (table, words)]


def _labelme() -> bytes:
    shapes = [
        {"label": "cat", "points": [[1, 2], [20, 9]], "shape_type": "rectangle", "flags": {"a": 1}},
        {"label": "dog", "points": [[1, 2], [9, 9], [3, 8]], "shape_type": "polygon",
         "group_id": 1},
        {"label": "dog", "points": [[9, 9], [9, 12]], "shape_type": "circle", "group_id": 1},
    ]  # fmt: skip
    table = {"shapes": shapes, "imagePath": "a.jpg", "imageWidth": 40, "imageHeight": 30}
    return json.dumps(table).encode()


SEEDS = [*_coco(), _labelme()]
WORDS = [b"7", b"9", b"40", b"30", b'"a.jpg"', b'"dog"', b'"cat"', b"[1.5, 2, 10, 20]", b"120.0",
         b"[30, 40]", b'"polygon"', b"[[1, 2], [20, 9]]", b"null", b"1"]  # fmt: skip


def read(data: bytes, folder: Path) -> None:
    """Read the file as a data set, in either format, and write what it holds."""
    for name in ("a.jpg", "b.jpg"):
        if not (folder / name).exists():
            image_file(folder / name, (40, 30))
    (folder / "train.json").write_bytes(data)
    index = read_dataset(folder)
    if any(index.splits.values()):
        save_dataset(index, folder / ".out", "coco")


def run(seconds: float, seed: int) -> list[str]:
    return fuzz(SEEDS, read, tokens=TOKENS, words=WORDS, seconds=seconds, seed=seed)


if __name__ == "__main__":
    main(run)
