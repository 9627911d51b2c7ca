"""Augmentation: boxes follow pixels, sizes stay in bounds, colors as worked out by hand."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_core.config import PreprocessConfig
from dino_core.data.augment.color import ColorJitter, color_matrix
from dino_core.data.augment.scene import Scene, as_array, crop, make_scene, pad
from dino_core.data.augment.transforms import (
    AugmentKind,
    DropSmall,
    HorizontalFlip,
    ResizeShortSide,
    SafeCrop,
    ScaleJitter,
    ScaleTo,
    SizeCrop,
    Transform,
    ZoomOut,
    build_transform,
)
from dino_core.errors import ConfigError
from dino_core.processing.preprocess import at_image_size

SMALL = PreprocessConfig(short_side=128, max_side=128)
KINDS: tuple[AugmentKind, ...] = ("default", "strong", "published")


def scene_of(size_hw: tuple[int, int], boxes: list[list[float]]) -> Scene:
    """A dark scene in which each box is filled white; labels count up."""
    pixels = np.full((*size_hw, 3), 20, np.uint8)
    for x1, y1, x2, y2 in np.array(boxes, int).reshape(-1, 4):
        pixels[y1:y2, x1:x2] = 250
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return make_scene(pixels, corners, torch.arange(len(boxes)))


def boxes_of(scene: Scene) -> NDArray[np.float32]:
    return cast("NDArray[np.float32]", scene.boxes.as_subclass(Tensor).numpy())


def bright_box(scene: Scene) -> list[int]:
    """The box around the pixels nearer to white than to dark, found without the scene's boxes."""
    levels = as_array(scene.image).astype(float).mean(axis=2)
    rows, columns = np.nonzero(levels > (levels.max() + levels.min()) / 2)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def build(kind: AugmentKind, preprocess: PreprocessConfig = SMALL) -> Transform:
    transform = build_transform(kind, preprocess)
    assert transform is not None
    return transform


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size_hw", [(90, 140), (140, 90), (100, 100)])
def test_boxes_follow_pixels(kind: AugmentKind, size_hw: tuple[int, int]) -> None:
    seen = 0
    for seed in range(40):
        scene = scene_of(size_hw, [[30, 20, 70, 60]])
        result = build(kind)(scene, np.random.default_rng(seed))
        if not len(result.labels):
            continue
        seen += 1
        # one pixel of blur and one of rounding by the resize
        np.testing.assert_allclose(bright_box(result), boxes_of(result)[0], atol=2)
        assert result.labels.tolist() == [0]
    assert seen >= 30


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size_hw", [(90, 140), (333, 50), (600, 800), (1, 1), (4000, 3)])
def test_sizes_stay_in_bounds_and_are_told_in_advance(
    kind: AugmentKind, size_hw: tuple[int, int]
) -> None:
    transform = build(kind)
    for seed in range(12):
        scene = make_scene(
            np.zeros((*size_hw, 3), np.uint8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        )
        result = transform(scene, np.random.default_rng(seed))
        height, width = result.size_hw
        assert transform.final_size(size_hw, np.random.default_rng(seed)) == (height, width)
        assert result.image.dtype == torch.uint8 and boxes_of(result).shape == (0, 4)
        if max(size_hw) < 1000:
            assert max(height, width) <= 128 and min(height, width) >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_size_is_told_in_advance_with_boxes_too(kind: AugmentKind) -> None:
    transform = build(kind)
    for seed in range(30):
        scene = scene_of((90, 140), [[2, 2, 9, 9], [130, 80, 139, 89]])
        told = transform.final_size((90, 140), np.random.default_rng(seed))
        assert transform(scene, np.random.default_rng(seed)).size_hw == told


@pytest.mark.parametrize("kind", KINDS)
def test_same_generator_same_picture_and_torch_state_untouched(kind: AugmentKind) -> None:
    scene = scene_of((90, 140), [[30, 20, 70, 60]])
    state = torch.get_rng_state()
    first, second, other = (build(kind)(scene, np.random.default_rng(s)) for s in (5, 5, 6))
    assert torch.equal(first.image, second.image)
    np.testing.assert_array_equal(boxes_of(first), boxes_of(second))
    assert first.size_hw != other.size_hw or not torch.equal(first.image, other.image)
    assert torch.equal(torch.get_rng_state(), state)
    assert scene.size_hw == (90, 140) and bright_box(scene) == [30, 20, 70, 60]  # not changed


def test_published_sizes_are_those_of_algorithm_28() -> None:
    transform = build("published", PreprocessConfig())
    sides = {
        min(transform.final_size((480, 640), np.random.default_rng(seed))) for seed in range(400)
    }
    assert sides == set(range(480, 801, 32))
    for seed in range(200):
        # a thin image never gets longer than 1333
        assert max(transform.final_size((200, 900), np.random.default_rng(seed))) <= 1333
    plain = ResizeShortSide((800,), 1333)
    assert plain.final_size((480, 640), np.random.default_rng(0)) == (800, 1066)  # int(1066.67)
    assert plain.final_size((427, 640), np.random.default_rng(0)) == (800, 1199)


def test_published_crop_keeps_any_visible_part() -> None:
    scene = scene_of((500, 500), [[0, 0, 500, 500]])
    sizes = set()
    for seed in range(50):
        result = SizeCrop(384, 600)(scene, np.random.default_rng(seed))
        height, width = result.size_hw
        sizes |= {height, width}
        assert boxes_of(result).tolist() == [[0, 0, width, height]]
    assert min(sizes) >= 384 and max(sizes) <= 500 and len(sizes) > 30
    sliver = crop(scene_of((50, 50), [[0, 0, 21, 10]]), 0, 20, (50, 30), min_visible=0.0)
    assert boxes_of(sliver).tolist() == [[0, 0, 1, 10]]


def test_crop_drops_what_is_hardly_visible() -> None:
    scene = scene_of((50, 50), [[0, 0, 20, 20], [16, 0, 26, 10], [40, 40, 50, 50]])
    result = crop(scene, 0, 16, (30, 20), min_visible=0.25)  # a fifth, all, and nothing remain
    assert result.labels.tolist() == [1]
    assert boxes_of(result).tolist() == [[0, 0, 10, 10]]


def test_safe_crop_looks_for_a_place_with_boxes() -> None:
    kept = 0
    for seed in range(60):
        scene = scene_of((100, 100), [[0, 0, 12, 12]])
        kept += len(SafeCrop(0.5)(scene, np.random.default_rng(seed)).labels)
    assert kept > 57  # a blind crop keeps this corner about once in four


def test_flip_mirrors_boxes() -> None:
    scene = scene_of((20, 50), [[5, 2, 15, 9]])
    flipped = HorizontalFlip(1.0)(scene, np.random.default_rng(0))
    assert boxes_of(flipped).tolist() == [[35, 2, 45, 9]] and bright_box(flipped) == [35, 2, 45, 9]
    assert HorizontalFlip(0.0)(scene, np.random.default_rng(0)) is scene


def test_flip_happens_half_of_the_time() -> None:
    scene = scene_of((4, 8), [[0, 0, 2, 2]])
    count = sum(
        boxes_of(HorizontalFlip()(scene, np.random.default_rng(seed)))[0, 0] > 0
        for seed in range(200)
    )
    assert 75 <= count <= 125  # 3.5 standard deviations


def test_zoom_out_surrounds_with_the_mean_color() -> None:
    pixels = np.full((100, 100, 3), (10, 100, 200), np.uint8)
    scene = make_scene(pixels, torch.tensor([[0.0, 0, 100, 100]]), torch.tensor([0]))
    result = ZoomOut(SMALL, 0.5)(scene, np.random.default_rng(1))
    assert result.size_hw == (128, 128)
    assert np.unique(as_array(result.image).reshape(-1, 3), axis=0).tolist() == [[10, 100, 200]]
    x1, y1, x2, y2 = boxes_of(result)[0].tolist()
    assert 64 <= x2 - x1 <= 128 and x2 - x1 == y2 - y1 and min(x1, y1) >= 0 and max(x2, y2) <= 128


def test_pad_places_the_corner() -> None:
    result = pad(scene_of((10, 10), [[0, 0, 10, 10]]), 3, 5, (20, 30), (1, 2, 3))
    assert boxes_of(result).tolist() == [[5, 3, 15, 13]] and bright_box(result) == [5, 3, 15, 13]
    assert as_array(result.image)[0, 0].tolist() == [1, 2, 3]


def test_scale_to_the_size_of_inference() -> None:
    assert ScaleTo(SMALL, 1.0).final_size((50, 100), np.random.default_rng(0)) == (64, 128)
    assert ScaleTo(SMALL, 0.5, 0.5).final_size((50, 100), np.random.default_rng(0)) == (32, 64)


def test_scale_jitter_enlarges_and_shrinks() -> None:
    widths = []
    for seed in range(60):
        scene = scene_of((100, 100), [[30, 20, 70, 60]])
        jitter = build_transform("default", SMALL, scale=(0.5, 2.0))
        assert jitter is not None
        result = jitter(scene, np.random.default_rng(seed))
        size = jitter.final_size((100, 100), np.random.default_rng(seed))
        assert result.size_hw == size and 64 <= max(size) <= 128
        # a pixel of blur at a scale of up to 2.6, and one of rounding
        np.testing.assert_allclose(bright_box(result), boxes_of(result)[0], atol=3)
        x1, x2 = boxes_of(result)[0, [0, 2]].tolist()
        if x1 > 0 and x2 < size[1]:
            widths.append((x2 - x1) / 40 / 1.28)
    assert 0.48 < min(widths) < 0.7 and 1.7 < max(widths) < 2.1
    fixed = ScaleJitter(SMALL, 2.0, 2.0)(scene_of((100, 100), []), np.random.default_rng(0))
    assert fixed.size_hw == (128, 128)
    with pytest.raises(ConfigError, match="augment 'published' has no scale_jitter"):
        build_transform("published", SMALL, scale=(0.5, 2.0))


def test_small_boxes_are_dropped() -> None:
    scene = scene_of((20, 20), [[0, 0, 1.5, 9], [3, 3, 5, 5]])
    assert DropSmall()(scene, np.random.default_rng(0)).labels.tolist() == [1]


def test_neutral_colors_change_nothing() -> None:
    expected = np.hstack([np.eye(3), np.zeros((3, 1))])
    np.testing.assert_allclose(color_matrix(1, 1, 1, 0, 90.0), expected, atol=1e-12)


def test_color_matrix_by_hand() -> None:
    gray = np.array([80.0, 80, 80, 1])
    np.testing.assert_allclose(color_matrix(1.5, 1, 1, 0, 0) @ gray, [120] * 3)
    np.testing.assert_allclose(color_matrix(1, 0.5, 1, 0, 100) @ gray, [90] * 3)
    red = np.array([200.0, 0, 0, 1])
    np.testing.assert_allclose(color_matrix(1, 1, 0, 0, 0) @ red, [59.8] * 3)  # 0.299 of red
    # a gray pixel has no hue; YIQ coefficients are rounded to three digits
    np.testing.assert_allclose(color_matrix(1, 1, 1, 0.3, 0) @ gray, [80] * 3, atol=0.2)


def test_hue_is_a_rotation_that_keeps_the_luma() -> None:
    def turn(part: float) -> NDArray[np.float64]:
        return color_matrix(1, 1, 1, part, 0)[:, :3]

    np.testing.assert_allclose(turn(0.1) @ turn(0.3), turn(0.4), atol=1e-12)
    np.testing.assert_allclose(turn(1.0), np.eye(3), atol=1e-12)
    color = np.array([150.0, 90, 60])
    luma = np.array([0.299, 0.587, 0.114])
    assert luma @ (turn(0.2) @ color) == pytest.approx(luma @ color)
    assert np.abs(turn(0.05) @ color - color).max() > 10


def test_colors_saturate_and_stay_in_place() -> None:
    scene = scene_of((8, 8), [[2, 2, 6, 6]])
    bright = ColorJitter(0.9, 0.0, 0.0, probability=1.0)
    for seed in range(20):
        result = bright(scene, np.random.default_rng(seed))
        levels = np.unique(as_array(result.image))
        assert len(levels) == 2 and bright_box(result) == [2, 2, 6, 6]
        factor = levels[0] / 20
        assert abs(int(levels[1]) - min(255, 250 * factor)) <= 250 / 20 / 2 + 1  # uint8 rounding
    assert ColorJitter(0.9, 0, 0, probability=0.0)(scene, np.random.default_rng(0)) is scene


def test_image_size_scales_the_input() -> None:
    assert at_image_size(PreprocessConfig(800, 1333), None) == PreprocessConfig(800, 1333)
    assert at_image_size(PreprocessConfig(384, 384), 320) == PreprocessConfig(320, 320)
    assert at_image_size(PreprocessConfig(800, 1333), 1000) == PreprocessConfig(600, 1000)


def test_kinds() -> None:
    assert build_transform("none", SMALL) is None
    with pytest.raises(ConfigError, match="unknown augmentation 'mild'"):
        build_transform(cast("AugmentKind", "mild"), SMALL)
