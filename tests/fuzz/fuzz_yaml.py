"""The data.yaml of YOLO data sets, and their label files."""

from __future__ import annotations

from pathlib import Path

from datasets import image_file, text_file
from fuzz.mutations import fuzz, main

from dino_core.data.load import read_dataset

BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\n"
SEEDS = [
    b"path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames: [cat, dog]\n",
    b"train: [images/train, images/val]\nnames:\n  0: cat\n  1: dog\nkpt_shape: [17, 3]\n",
    BOMB + b"train: images/train\nnames: [cat, dog]\n",
    b"#label\n0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n",
]
TOKENS = [
    b"*c", b"*a", "²".encode(), b"9" * 5000, b"[" * 3000, b"{", b"}", b"? ", b"- ", b"&a ",
    b"!!python/object:os.system ", b"null", b"~", b"3000000000", b"-1", b"1e9", b"nan", b"inf",
    b"\t", b"|", b">", b"%YAML 1.1\n---\n", b"<<: *a", b"..", b"/dev/null", b"\xc2\x85",
    b"'", b'"', b'"\\ud800"', b"1_0", b"0x7f",
]  # fmt: skip
WORDS = [b"images/train", b"2", b"[cat, dog]", b"cat", b"17", b"0.5", b"0", b"1", b"."]


def read(data: bytes, folder: Path) -> None:
    """Read the file as data.yaml, or as labels where it begins as the seed of these does."""
    folder = folder / "1/2/3/4"  # so that ".." leads to no images of others
    if not (folder / "images").exists():
        for split in ("train", "val"):
            image_file(folder / f"images/{split}/a.jpg")
            text_file(folder / f"labels/{split}/a.txt", "0 0.5 0.5 0.2 0.2\n")
    is_labels = data.startswith(b"#label")
    (folder / "data.yaml").write_bytes(SEEDS[0] if is_labels else data)
    if is_labels:
        (folder / "labels/train/a.txt").write_bytes(data.removeprefix(b"#label"))
    read_dataset(folder)


def run(seconds: float, seed: int) -> list[str]:
    return fuzz(SEEDS, read, tokens=TOKENS, words=WORDS, seconds=seconds, seed=seed)


if __name__ == "__main__":
    main(run)
