"""Pascal VOC annotations."""

from __future__ import annotations

from pathlib import Path

from datasets import image_file
from fuzz.mutations import fuzz, main

from dino_core.data.load import read_dataset

BOX = b"<bndbox><xmin>1</xmin><ymin>2.0</ymin><xmax>9</xmax><ymax>9.5</ymax></bndbox>"
POINTS = b"<polygon><x1>1</x1><y1>2</y1><x2>9</x2><y2>3</y2><x3>5</x3><y3>9</y3></polygon>"
SEEDS = [
    b"<annotation><filename>a.jpg</filename><size><width>40</width><height>20</height></size>"
    b"<object><name>cat</name><difficult>0</difficult>" + BOX + b"</object></annotation>",
    b"<annotation><source><database>x</database></source><object><name>7</name>" + POINTS
    + b"<pose>Left</pose></object><object><name>10</name>" + BOX + b"</object></annotation>",
    b'<?xml version="1.0" encoding="utf-8"?><annotation><object/></annotation>',
]  # fmt: skip
TOKENS = [
    b"9" * 5000, "²".encode(), b"nan", b"1e400", b"-1", b"<", b">", b"&", b"&#0;", b"]]>",
    b"<![CDATA[", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"<!--", b"<a>" * 3000, b"encoding='utf-7'",
    b"encoding='utf-16'", b"<object>", b"</object>", b"<bndbox>", b"\0", b"\xff\xfe", b"1e308",
    str(10**400).encode(), b"",
]  # fmt: skip
WORDS = [b"a.jpg", b"40", b"20", b"cat", b"1", b"9", b"utf-8", b"2.0", b"<name>7</name>", BOX]


def read(data: bytes, folder: Path) -> None:
    """Read the file as a data set."""
    if not (folder / "a.jpg").exists():
        image_file(folder / "a.jpg")
    (folder / "a.xml").write_bytes(data)
    read_dataset(folder)


def run(seconds: float, seed: int) -> list[str]:
    return fuzz(SEEDS, read, tokens=TOKENS, words=WORDS, seconds=seconds, seed=seed)


if __name__ == "__main__":
    main(run)
