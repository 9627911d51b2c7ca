"""The parts of a check against something independent: all pairs, hand-made hashes, parsed HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from dino_core.data.check.findings import CheckReport, SplitSize, findings_of
from dino_core.data.check.images import examine
from dino_core.data.check.report import html_report
from dino_core.data.check.similar import MAX_DISTANCE, near_pairs, perceptual_hash
from dino_core.data.fault_kinds import KINDS
from dino_core.data.faults import FaultLog, MarkedBox


def test_banding_finds_the_pairs_that_all_pairs_find() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, 300, dtype=np.uint64)
    for i in range(1, 300, 2):  # every second one is its neighbour with 0 to 12 bits turned
        turned = sum(1 << int(bit) for bit in rng.choice(64, i // 2 % 13, replace=False))
        hashes[i] = hashes[i - 1] ^ np.uint64(turned)
    expected = {
        (a, b): bits
        for a in range(300)
        for b in range(a + 1, 300)
        if (bits := (int(hashes[a]) ^ int(hashes[b])).bit_count()) <= MAX_DISTANCE
    }
    pairs, distances = near_pairs(hashes, np.zeros((300, 16, 16, 3), np.uint8))
    found = dict(zip(map(tuple, pairs.tolist()), distances.tolist(), strict=True))
    assert found == expected
    assert len(found) > 80


def test_equal_hashes_of_different_pictures_are_no_pair() -> None:
    hashes = np.array([7, 7, 7], np.uint64)
    smalls = np.zeros((3, 16, 16, 3), np.uint8)
    smalls[1] = 40
    smalls[2] = 10
    pairs, _ = near_pairs(hashes, smalls)
    assert pairs.tolist() == [[0, 2]]


def test_no_pictures_no_pairs() -> None:
    pairs, distances = near_pairs(np.empty(0, np.uint64), np.empty((0, 16, 16, 3), np.uint8))
    assert (pairs.shape, distances.shape) == ((0, 2), (0,))


def test_the_hash_of_one_wave_is_the_sign_of_its_frequency() -> None:
    x = (np.arange(32) + 0.5) / 32 * np.pi
    wave = 127 + 100 * np.cos(3 * x)[:, None] * np.cos(2 * x)[None, :]
    value = perceptual_hash(np.repeat(wave.round().astype(np.uint8)[:, :, None], 3, axis=2))
    assert value is not None
    assert value >> (2 * 8 + 1) & 1  # row frequency 3, column frequency 2, counted from 1
    inverted = perceptual_hash(
        np.repeat((254 - wave.round()).astype(np.uint8)[:, :, None], 3, axis=2)
    )
    assert inverted is not None
    assert not inverted >> (2 * 8 + 1) & 1
    assert perceptual_hash(np.full((32, 32, 3), 90, np.uint8)) is None


def test_examine_reads_every_mode(tmp_path: Path) -> None:
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"):
        path = tmp_path / f"{mode.replace(';', '')}.tif"
        Image.linear_gradient("L").convert("I" if mode == "I;16" else mode).save(path)
        facts = examine(path)
        assert (facts.problem, facts.orientation) == ("", 1)
        assert facts.phash is not None
    assert examine(tmp_path / "none.jpg").problem == "unreadable-image"


class _Page(HTMLParser):
    """Every address a page refers to, and its visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.text = ""
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("href", "src", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_names_every_file_and_needs_no_network(tmp_path: Path) -> None:
    log = FaultLog()
    paths = [tmp_path / f"a & <b> {i:03d}.jpg" for i in range(40)]
    for path in paths:
        Image.linear_gradient("L").save(path)
    paths[1].write_bytes(b"broken")
    box = MarkedBox((-20.0, 10.0, 50.0, 400.0), 'a "dog"')
    for path in paths:
        log.add("box-outside", f"{path}: outside", (path,), (box,))
    log.add("duplicate-image", " = ".join(map(str, paths[:30])), paths[:30])
    log.add("class-without-boxes", "emu: no boxes in train")
    log.add("several-formats", "a remark <of> the reader")
    sizes = {"train": SplitSize(40, 1)}
    report = CheckReport(
        tmp_path, "yolo", sizes, {"dog": 1, "emu": 0}, 40, findings_of(log.faults())
    )
    page = _Page()
    text = html_report(report)
    page.feed(text)
    for path in paths:
        assert path.name in page.text
    assert "a remark <of> the reader" in page.text
    assert page.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    assert 11 <= page.tags.count("image") <= 16
    assert page.tags.count("rect") == 11
    assert 'viewBox="-22.6 -2.6 281.1 389.1"' in text  # half a side around 256x256 and a margin
    assert "cannot be shown" in page.text


def test_the_page_of_clean_data_says_so(tmp_path: Path) -> None:
    text = html_report(CheckReport(tmp_path, "coco", {}, {}, 0, ()))
    assert "Nothing was found." in text


def test_every_kind_has_words_and_a_remedy() -> None:
    for name, kind in KINDS.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
        assert kind.one != kind.many
        assert kind.hint
        assert len(kind.hint) < 70  # `fix: ...` is one line of a terminal of 80 columns
