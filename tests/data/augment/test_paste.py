"""Copy-paste: what is pasted is labeled where it lies, and hides little of what was there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dino_core.config import PreprocessConfig
from dino_core.data.augment.mixing import build_mixing
from dino_core.data.augment.paste import Paste, find_donors
from dino_core.data.augment.scene import Scene, as_array, make_scene
from dino_core.data.augment.transforms import build_transform
from dino_core.data.dataset import DetectionDataset, ReadableSamples, Sample, SampleKey
from dino_core.data.records import ImageRecord
from dino_core.errors import ConfigError

INPUT = PreprocessConfig(short_side=96, max_side=96)


def scene_of(
    size_hw: tuple[int, int], boxes: list[list[float]], level: int, first_label: int = 0
) -> Scene:
    """A black scene with boxes of one level of gray; labels count up."""
    pixels = np.zeros((*size_hw, 3), np.uint8)
    for x1, y1, x2, y2 in np.array(boxes, int).reshape(-1, 4):
        pixels[y1:y2, x1:x2] = level
    labels = torch.arange(first_label, first_label + len(boxes))
    return make_scene(pixels, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels)


def corners(scene: Scene) -> np.ndarray:
    return np.asarray(scene.boxes.as_subclass(Tensor).numpy())


def test_pasted_object_lies_where_its_box_says() -> None:
    donor = scene_of((50, 80), [[10, 20, 30, 40]], level=255, first_label=7)
    sides = set()
    for seed in range(30):
        result = Paste()(scene_of((100, 160), [], 0), donor, 0, np.random.default_rng(seed))
        assert result.labels.tolist() == [7]
        rows, columns = np.nonzero(as_array(result.image)[:, :, 0])
        x1, y1, x2, y2 = corners(result)[0].tolist()
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [x1, y1, x2, y2]
        assert x2 - x1 == y2 - y1 and 28 <= x2 - x1 <= 50  # 20, times 2, times 0.7 to 1.4; half
        sides.add(x2 - x1)
        inside = as_array(result.image)[int(y1) : int(y2), int(x1) : int(x2)]
        assert inside[inside.shape[0] // 2, inside.shape[1] // 2].tolist() == [255] * 3
        assert inside.min() > 0
    assert len(sides) > 8


def test_edges_are_soft_half_of_the_time() -> None:
    donor = scene_of((50, 80), [[10, 20, 30, 40]], level=255)
    soft = 0
    for seed in range(100):
        result = Paste()(scene_of((100, 160), [], 0), donor, 0, np.random.default_rng(seed))
        levels = np.unique(as_array(result.image))
        assert levels[0] == 0 and levels[-1] == 255
        soft += len(levels) > 2
    assert 33 <= soft <= 67  # 3.4 standard deviations


def test_no_box_is_covered_by_more_than_the_limit() -> None:
    """Read from the pixels: how much of each white box was painted over, all parts together."""
    donor = scene_of((60, 60), [[0, 0, 25, 25], [30, 0, 55, 20], [30, 30, 60, 60]], 100, 10)
    before = [[5.0, 5, 45, 45], [60, 60, 95, 95], [60, 0, 70, 10], [0, 50, 50, 100]]
    pasted, hidden = 0, []
    for seed in range(150):
        scene = scene_of((100, 100), before, 255)
        result = Paste()(scene, donor, 1, np.random.default_rng(seed))
        np.testing.assert_array_equal(corners(result)[:4], before)
        assert result.labels[:4].tolist() == [0, 1, 2, 3] and len(result.labels) <= 7
        pasted += len(result.labels) - 4
        changed = as_array(result.image)[:, :, 0] != 255
        hidden += [
            changed[int(y1) : int(y2), int(x1) : int(x2)].mean() for x1, y1, x2, y2 in before
        ]
        assert (as_array(scene.image)[5:45, 5:45] == 255).all()  # the scene itself is not changed
    assert max(hidden) <= 0.3 and max(hidden) > 0.2 and pasted > 100


def test_neighbors_in_a_part_are_labeled_too() -> None:
    donor = scene_of((40, 40), [[0, 0, 40, 40], [10, 10, 20, 20], [36, 0, 60, 40]], 200)
    labels = []
    for seed in range(20):
        paste = replace(Paste(), most=1)
        result = paste(scene_of((100, 100), [], 0), donor, 0, np.random.default_rng(seed))
        outer, inner = corners(result)
        scale = (outer[2] - outer[0]) / 40
        expected = [outer[0] + 10 * scale, outer[1] + 10 * scale]
        np.testing.assert_allclose(inner[:2], expected, atol=1e-3)
        labels += result.labels.tolist()
    assert set(labels) == {0, 1}  # of the third a sixth is inside


def test_no_room_no_paste() -> None:
    donor = scene_of((40, 40), [[0, 0, 40, 40]], 200)
    full = scene_of((100, 100), [[x, y, x + 20, y + 20] for x in range(0, 100, 20)
                                 for y in range(0, 100, 20)], 255)  # fmt: skip
    result = Paste()(full, donor, 0, np.random.default_rng(0))
    assert len(result.labels) == 25 and torch.equal(result.image, full.image)
    dot = scene_of((100, 100), [[50, 50, 51, 51]], 200)
    assert not len(Paste()(scene_of((50, 50), [], 0), dot, 0, np.random.default_rng(0)).labels)


def record(path: Path, classes: list[int], crowds: list[bool]) -> ImageRecord:
    boxes = [[10 + 5 * i, 10, 40 + 5 * i, 40] for i in range(len(classes))]
    return ImageRecord(
        image_id=1,
        path=path,
        width=80,
        height=60,
        boxes_xyxy_px=np.array(boxes, np.float32).reshape(-1, 4),
        class_indices=np.array(classes, np.int64),
        is_crowd=np.array(crowds, np.bool_),
        areas=np.full(len(classes), 900, np.float32),
    )


def test_rare_classes_by_the_root_of_their_number() -> None:
    records = [record(Path("a"), [0] * 16, [False] * 16), record(Path("b"), [], []),
               record(Path("c"), [9, 0, 3], [True, False, False])]  # fmt: skip
    donors = find_donors(records[:1] + records[1:])
    assert donors is not None and len(donors.records) == 18
    rng = np.random.default_rng(0)
    drawn = [donors.choose(rng) for _ in range(4000)]
    assert {place for place, _ in drawn} == {0, 2}
    rare = sum(place == (2, 1) for place in drawn) / 4000  # the second box that is no crowd
    assert rare == pytest.approx(1 / (1 + 17**0.5), abs=0.03)  # 4 standard deviations
    assert find_donors(records[1:2]) is None


def test_samples_with_pasted_objects(tmp_path: Path) -> None:
    records = []
    for i, classes in enumerate([[0], [1], []]):
        Image.new("RGB", (80, 60), (80 * i, 90, 90)).save(tmp_path / f"{i}.png")
        records.append(record(tmp_path / f"{i}.png", classes, [False] * len(classes)))
    transform = build_transform("default", INPUT)
    mixing = build_mixing(0.3, 0.7, "default", INPUT, records)
    dataset = DetectionDataset(records, INPUT, transform, 1, mixing)
    labels = set()
    for epoch in range(20):
        sizes = dataset.mixed_sizes(epoch)
        for i in range(3):
            sample = dataset[SampleKey(epoch, i, True)]
            assert sample.image.shape[1:] == sizes[i]
            assert torch.equal(sample.image, dataset[SampleKey(epoch, i, True)].image)
            labels |= {(i, label) for label in sample.target.labels.tolist()}
    assert labels == {(i, label) for i in range(3) for label in range(2)}
    records[1].path.write_bytes(b"bad")
    samples = [ReadableSamples(dataset)[SampleKey(e, 0, True)] for e in range(20)]
    told = [s.without for s in samples if isinstance(s, Sample) and s.without is not None]
    assert len(samples) == 20 and told and {t.path for t in told} == {str(records[1].path)}


def test_pasting_needs_augmentation() -> None:
    with pytest.raises(ConfigError, match=r"augment 'none' and copy_paste 0\.5 contradict"):
        build_mixing(0.0, 0.5, "none", INPUT, [])
