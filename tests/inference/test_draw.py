"""Boxes where they belong, labels inside the picture, colors that stay."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from dino_core.detections import Detections
from dino_core.errors import DinoError
from dino_core.inference.draw import class_color, draw_detections, encode_image, text_color


def detections(
    boxes: Sequence[Sequence[float]], labels: list[str], size_hw: tuple[int, int]
) -> Detections:
    scores = np.linspace(0.9, 0.5, len(labels)).astype(np.float32)
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(array, scores, np.arange(len(labels)), labels, size_hw[1], size_hw[0])


def test_outline_on_the_box_and_nothing_far_from_it() -> None:
    image = np.zeros((500, 600, 3), np.uint8)
    drawn = draw_detections(image, detections([[100, 200, 300, 400]], ["dog"], (500, 600)))
    assert drawn.shape == image.shape
    assert not image.any()  # the original is untouched
    color = list(class_color("dog"))
    for y, x in ((200, 200), (399, 200), (300, 100), (300, 299)):
        assert drawn[y, x].tolist() == color
    assert not drawn[300, 150:250].any()  # inside
    assert not drawn[410:].any() and not drawn[:, 310:].any()


def test_the_label_is_readable_text_above_the_box() -> None:
    image = np.zeros((500, 600, 3), np.uint8)
    drawn = draw_detections(image, detections([[100, 200, 300, 400]], ["dog"], (500, 600)))
    label = drawn[170:200, 100:300].reshape(-1, 3)
    background, ink = list(class_color("dog")), list(text_color(class_color("dog")))
    assert (label == background).all(axis=1).sum() > 500
    if ink != [0, 0, 0]:
        assert (label == ink).all(axis=1).sum() > 50
    else:
        assert ((label < 60).all(axis=1)).sum() > 50


@pytest.mark.parametrize(
    "size_hw", [(1, 1), (30, 40), (10, 20_000), (2000, 10), (480, 640), (3000, 4000)]
)
def test_any_size(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    boxes = [[0, 0, width, height], [width / 2, height / 2, width / 2, height / 2]]
    image = np.full((height, width, 3), 128, np.uint8)
    drawn = draw_detections(image, detections(boxes, ["a long class name", "b"], size_hw))
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] % height == 0 and drawn.shape[0] // height == drawn.shape[1] // width
    assert max(drawn.shape) >= 400
    assert (drawn != 128).any()


def test_labels_do_not_hide_each_other() -> None:
    image = np.zeros((400, 600, 3), np.uint8)
    same = [[50, 100, 350, 300]] * 3
    labels = ["cat", "dog", "bird"]
    drawn = draw_detections(image, detections(same, labels, (400, 600)))
    for label in labels:
        shown = (drawn == class_color(label)).all(axis=2).sum()
        assert shown > 400, label  # its background is visible


def test_nothing_found_is_the_same_picture() -> None:
    image = np.random.default_rng(0).integers(0, 256, (450, 500, 3), np.uint8)
    assert np.array_equal(draw_detections(image, detections([], [], (450, 500))), image)


def test_names_in_other_scripts() -> None:
    image = np.zeros((400, 400, 3), np.uint8)
    for name in ("größe", "собака", "日本語", "\U0001f600", ""):
        drawn = draw_detections(image, detections([[50, 100, 350, 300]], [name], (400, 400)))
        assert drawn.any()


def test_colors_are_stable_vivid_and_spread() -> None:
    assert class_color("dog") == class_color("dog")
    colors = [class_color(f"class {n}") for n in range(20)]
    assert len(set(colors)) == 20
    assert all(max(c) >= 180 and max(c) - min(c) > 100 for c in colors)
    assert text_color((255, 255, 0)) == (0, 0, 0)
    assert text_color((120, 0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".webp", ".bmp", ".tiff"])
def test_encoding(suffix: str) -> None:
    data = encode_image(np.full((5, 7, 3), 90, np.uint8), suffix)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (7, 5)


def test_formats_that_cannot_be() -> None:
    with pytest.raises(DinoError, match=r"cannot be written as '\.xyz'"):
        encode_image(np.zeros((1, 1, 3), np.uint8), ".xyz")
    with pytest.raises(DinoError, match=r"save it as \.png"):
        encode_image(np.zeros((1, 70_000, 3), np.uint8), ".jpg")
