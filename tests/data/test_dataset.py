"""Samples: what inference does without augmentation, and targets that match the records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_core.config import PreprocessConfig
from dino_core.data.augment.transforms import build_transform
from dino_core.data.dataset import DetectionDataset, load_reduced
from dino_core.data.records import ImageRecord
from dino_core.errors import DataError
from dino_core.processing.preprocess import load_image, preprocess

INPUT = PreprocessConfig(short_side=64, max_side=96)


def make_record(path: Path, size_wh: tuple[int, int] = (80, 60), image_id: int = 5) -> ImageRecord:
    """A noisy picture with two boxes and a crowd."""
    noise = np.random.default_rng(image_id).integers(0, 256, (size_wh[1], size_wh[0], 3))
    Image.fromarray(noise.astype(np.uint8)).save(path)
    return ImageRecord(
        image_id=image_id,
        path=path,
        width=size_wh[0],
        height=size_wh[1],
        boxes_xyxy_px=np.array([[8, 6, 24, 36], [0, 0, 80, 60], [40, 30, 80, 60]], np.float32),
        class_indices=np.array([2, 0, 1], np.int64),
        is_crowd=np.array([False, True, False]),
        areas=np.array([480, 4800, 1200], np.float32),
    )


def test_plain_sample_is_what_inference_sees(tmp_path: Path) -> None:
    record = make_record(tmp_path / "a.png")
    sample = DetectionDataset([record], INPUT)[0]
    expected = preprocess(load_image(record.path), INPUT)
    np.testing.assert_array_equal(sample.image.numpy(), expected)
    assert sample.image_id == 5
    assert sample.target.labels.tolist() == [2, 1]  # the crowd is left out
    assert sample.target.labels.dtype == torch.int64
    torch.testing.assert_close(
        sample.target.boxes_cxcywh, torch.tensor([[0.2, 0.35, 0.2, 0.5], [0.75, 0.75, 0.5, 0.5]])
    )


@pytest.mark.parametrize("kind", ["default", "strong", "published"])
def test_augmented_samples_are_sound(tmp_path: Path, kind: str) -> None:
    record = make_record(tmp_path / "a.png")
    dataset = DetectionDataset([record], INPUT, build_transform(kind, INPUT), seed=1)  # type: ignore[arg-type]
    for epoch in range(20):
        sample = dataset[epoch, 0]
        boxes = sample.target.boxes_cxcywh
        assert sample.image.shape[0] == 3 and sample.image.dtype == torch.float32
        assert tuple(sample.image.shape[1:]) == dataset.planned_sizes(epoch)[0]
        assert len(boxes) == len(sample.target.labels) and boxes.dtype == torch.float32
        assert bool((boxes[:, 2:] > 0).all())
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        assert bool((corners > -1e-6).all()) and bool((corners < 1 + 1e-6).all())


def test_samples_depend_on_seed_epoch_and_index_only(tmp_path: Path) -> None:
    records = [make_record(tmp_path / f"{i}.png", image_id=i) for i in range(2)]
    same = replace(records[0], image_id=9)
    transform = build_transform("default", INPUT)
    first = DetectionDataset([*records, same], INPUT, transform, seed=3)
    second = DetectionDataset([*records, same], INPUT, transform, seed=3)
    other = DetectionDataset([*records, same], INPUT, transform, seed=4)
    torch.manual_seed(0)
    before = first[2, 0]
    torch.manual_seed(1)
    _ = second[0, 1]
    assert torch.equal(before.image, second[2, 0].image)
    assert torch.equal(first[0].image, second[0, 0].image)  # a plain index is epoch 0
    for changed in (first[3, 0], first[2, 2], other[2, 0]):
        assert changed.image.shape != before.image.shape or not torch.equal(
            changed.image, before.image
        )


def test_negative_seed_is_a_seed(tmp_path: Path) -> None:
    """NumPy's generators take no negative seeds; -1 gives samples, and other ones than 1 and 0."""
    record = make_record(tmp_path / "a.png")
    transform = build_transform("default", INPUT)
    first, again, *others = (
        DetectionDataset([record], INPUT, transform, seed=seed) for seed in (-1, -1, 0, 1)
    )
    assert [first[epoch, 0].image.tolist() for epoch in range(3)] == [
        again[epoch, 0].image.tolist() for epoch in range(3)
    ]
    for other in others:
        assert [s.image.tolist() for s in (first[0, 0], first[1, 0])] != [
            s.image.tolist() for s in (other[0, 0], other[1, 0])
        ]


def test_image_without_boxes(tmp_path: Path) -> None:
    record = make_record(tmp_path / "a.png")
    empty = replace(
        record,
        boxes_xyxy_px=np.zeros((0, 4), np.float32),
        class_indices=np.zeros(0, np.int64),
        is_crowd=np.zeros(0, np.bool_),
        areas=np.zeros(0, np.float32),
    )
    for transform in (None, build_transform("strong", INPUT)):
        target = DetectionDataset([empty], INPUT, transform)[0].target
        assert target.boxes_cxcywh.shape == (0, 4) and target.labels.shape == (0,)


def test_planned_sizes_without_augmentation(tmp_path: Path) -> None:
    record = make_record(tmp_path / "a.png")
    dataset = DetectionDataset([record], INPUT)
    assert dataset.planned_sizes(0) == [tuple(dataset[0].image.shape[1:])]


def test_large_jpegs_are_decoded_small_for_augmentation_only(tmp_path: Path) -> None:
    gradient = np.linspace(0, 255, 1600, dtype=np.uint8)
    pixels = np.broadcast_to(gradient[None, :, None], (1200, 1600, 3))
    path = tmp_path / "large.jpg"
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, quality=95)
    small = load_reduced(path, 192)
    assert small.shape == (150, 200, 3)  # an eighth
    assert abs(float(small[:, 100].mean()) - 127.5) < 3
    assert load_reduced(path, 1000).shape == (1200, 1600, 3)
    record = replace(
        make_record(tmp_path / "a.png"),
        path=path,
        width=1600,
        height=1200,
        boxes_xyxy_px=np.array([[800, 600, 1600, 1200]] * 3, np.float32),
    )
    plain = DetectionDataset([record], INPUT)[0]
    np.testing.assert_array_equal(plain.image.numpy(), preprocess(load_image(path), INPUT))
    augmented = DetectionDataset([record], INPUT, build_transform("default", INPUT))[0]
    assert max(augmented.image.shape) <= 96


def test_sideways_jpeg_is_upright_when_decoded_small(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (1600, 800), (200, 10, 10)).save(path, exif=exif)
    assert load_reduced(path, 200).shape == (200, 100, 3)


def test_file_that_changed_since_it_was_read(tmp_path: Path) -> None:
    record = make_record(tmp_path / "a.png")
    Image.new("RGB", (60, 80)).save(record.path)
    for transform in (None, build_transform("default", INPUT)):
        with pytest.raises(DataError, match=r"a\.png: the image is 60x80, but it was read as 80x6"):
            DetectionDataset([record], INPUT, transform)[0]


def test_damaged_file_is_named(tmp_path: Path) -> None:
    record = make_record(tmp_path / "a.png")
    record.path.write_bytes(record.path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"a\.png"):
        DetectionDataset([record], INPUT)[0]
    with pytest.raises(DataError, match=r"a\.png"):
        load_reduced(record.path, 10)
