"""CSV tables of boxes, with and without header."""

from __future__ import annotations

from pathlib import Path

from datasets import image_file
from fuzz.mutations import fuzz, main

from dino_core.data.load import read_dataset

SEEDS = [
    b"filename,width,height,class,xmin,ymin,xmax,ymax,split\na.jpg,40,20,cat,1,2,9,9,train\n"
    b"a.jpg,40,20,dog,3,3,8,8,train\nb.jpg,40,20,,,,,,val\n",
    b"a.jpg,1,2,9,9,cat\nb.jpg,,,,,\n",
    b"a.jpg,1,2,9,9,object,40,20\n",
    b"ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,/m/01,0.1,0.5,0.1,0.5,1\n",
    b'image;bbox;label\na.jpg;"[1, 2, 5, 6]";10\nb.jpg;"[1, 2, 5, 6]";9\n',
    b"TRAIN,a.jpg,cat,0.1,0.1,,,0.5,0.5,,\n",
]
TOKENS = [
    b"9" * 5000, "²".encode(), b"1e400", b"nan", b"inf", b"-1", b'"', b'""', b",", b";", b"\t",
    b"\r\n", b"\n", b"1e308", b"0", b"x" * 140_000, b"../../x.jpg", b"\0", b"\xef\xbb\xbf", b"test",
    b"[]", b"[1 2 3 4]", str(10**400).encode(),
]  # fmt: skip
WORDS = [b"40", b"a.jpg", b"cat", b"1", b"9", b"train", b"xmin", b"class", b"0.5", b"10"]


def read(data: bytes, folder: Path) -> None:
    """Read the file as a data set."""
    for name in ("a.jpg", "b.jpg"):
        if not (folder / name).exists():
            image_file(folder / name)
    (folder / "labels.csv").write_bytes(data)
    read_dataset(folder)


def run(seconds: float, seed: int) -> list[str]:
    return fuzz(SEEDS, read, tokens=TOKENS, words=WORDS, seconds=seconds, seed=seed)


if __name__ == "__main__":
    main(run)
