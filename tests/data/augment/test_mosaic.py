"""Mosaics: every box surrounds its color, and samples are the same wherever they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import record_of
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dino_core.config import PreprocessConfig, TrainConfig, from_dict
from dino_core.data.augment.mixing import Mixing, build_mixing
from dino_core.data.augment.mosaic import Mosaic, Piece
from dino_core.data.augment.scene import Scene, as_array, make_scene
from dino_core.data.augment.transforms import build_transform
from dino_core.data.batching import Batch
from dino_core.data.dataset import DetectionDataset, ReadableSamples, Sample, SampleKey
from dino_core.data.loader import Loader, LoaderSettings
from dino_core.data.records import ImageRecord
from dino_core.engine.batches import BatchStream
from dino_core.errors import ConfigError, DataError

SQUARE = PreprocessConfig(short_side=128, max_side=128, canvas=(128, 128))
FREE = PreprocessConfig(short_side=48, max_side=96)
GRAY = [124, 116, 104]  # 255 times the mean of PreprocessConfig
PAINT = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)
Box = Sequence[float]


def piece(size_hw: tuple[int, int], boxes: Sequence[Box], label: int) -> Piece:
    """A black picture whose boxes are filled with the paint of its label."""
    pixels = np.zeros((*size_hw, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[int(y1) : int(y2), int(x1) : int(x2)] = PAINT[label]
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scene = make_scene(pixels, corners, torch.full((len(boxes),), label))
    return Piece(size_hw, lambda min_side: scene)


def painted(scene: Scene, label: int) -> NDArray[np.bool_]:
    """(H, W) bool: where the picture is nearer to the paint than to black or gray."""
    away = np.abs(as_array(scene.image).astype(int) - PAINT[label]).max(axis=2)
    return np.asarray(away < 100)


def surrounding(mask: NDArray[np.bool_]) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def boxes_of(scene: Scene) -> dict[int, list[float]]:
    corners = scene.boxes.as_subclass(Tensor).tolist()
    return dict(zip(scene.labels.tolist(), corners, strict=True))


def test_four_pictures_of_half_size_by_hand() -> None:
    pieces = [piece((128, 128), [[20, 40, 60, 120]], label) for label in range(4)]
    mosaic = Mosaic(SQUARE, low=0.5, high=0.5, edge=0.5)
    orders = set()
    for seed in range(10):
        scene = mosaic(pieces, np.random.default_rng(seed))
        corners = {label: (box[0] - 10, box[1] - 20) for label, box in boxes_of(scene).items()}
        assert sorted(corners.values()) == [(0, 0), (0, 64), (64, 0), (64, 64)]
        for label, (left, top) in corners.items():
            assert boxes_of(scene)[label] == [left + 10, top + 20, left + 30, top + 60]
            assert surrounding(painted(scene, label)) == boxes_of(scene)[label]
        orders.add(tuple(sorted(corners.items())))
    assert len(orders) > 3  # a picture is not always in the same quarter


@pytest.mark.parametrize("sizes", [[(128, 128)] * 4, [(90, 140), (500, 60), (40, 40), (64, 300)]])
@pytest.mark.parametrize("preprocess", [SQUARE, FREE])
def test_every_box_surrounds_its_color_and_none_is_missing(
    sizes: list[tuple[int, int]], preprocess: PreprocessConfig
) -> None:
    """What a box should be is read from the pixels: how much of its paint is still there."""
    mosaic, kept, dropped = Mosaic(preprocess), 0, 0
    for seed in range(60):
        rng, pieces, whole = np.random.default_rng(seed), [], []
        for label, (height, width) in enumerate(sizes):
            x1, y1 = rng.uniform(0, 0.5, 2) * (width, height)
            x2, y2 = x1 + rng.uniform(0.2, 0.5) * width, y1 + rng.uniform(0.2, 0.5) * height
            box = [float(round(v)) for v in (x1, y1, x2, y2)]
            pieces.append(piece((height, width), [box], label))
            whole.append((box[2] - box[0]) * (box[3] - box[1]) / (height * width))
        scene = mosaic(pieces, rng)
        assert scene.size_hw == mosaic.final_size(sizes[0])
        boxes = boxes_of(scene)
        for label in range(4):
            mask = painted(scene, label)
            if label in boxes:
                kept += 1
                # a pixel of blur and one of rounding by the resize
                np.testing.assert_allclose(surrounding(mask), boxes[label], atol=2)
            else:  # less than a quarter of it at the largest possible scale
                dropped += 1
                height, width = sizes[label]
                scale = min(
                    preprocess.max_side / max(height, width),
                    preprocess.short_side / min(height, width),
                )
                full = whole[label] * height * width * scale**2
                assert mask.sum() <= 0.25 * full + 2 * mask.any(axis=0).sum() + 10
    assert kept > 100 and kept > 3 * dropped


def test_free_ground_has_the_color_of_padding() -> None:
    pieces = [piece((20, 128), [], label) for label in range(4)]
    scene = Mosaic(SQUARE, low=0.5, high=0.5, edge=0.5)(pieces, np.random.default_rng(0))
    levels, counts = np.unique(as_array(scene.image).reshape(-1, 3), axis=0, return_counts=True)
    assert levels.tolist() == [[0, 0, 0], GRAY]
    assert counts.tolist() == [4 * 10 * 64, 128 * 128 - 4 * 10 * 64]
    assert len(scene.labels) == 0 and scene.boxes.shape == (0, 4)


def test_pieces_keep_at_least_half_the_size_of_inference() -> None:
    """A box of 24 pixels at inference is 12 to 24 pixels in the mosaic where it is whole."""
    sides = []
    for seed in range(100):
        pieces = [piece((128, 128), [[52, 52, 76, 76]], label) for label in range(4)]
        scene = Mosaic(SQUARE)(pieces, np.random.default_rng(seed))
        sides += [max(b[2] - b[0], b[3] - b[1]) for b in boxes_of(scene).values()]
    assert min(sides) > 11.5 and max(sides) < 24.5 and max(sides) - min(sides) > 10


def test_canvas_of_one_pixel_height() -> None:
    thin = PreprocessConfig(short_side=1, max_side=64)
    pieces = [piece((1, 64), [[0, 0, 64, 1]], label) for label in range(4)]
    for seed in range(10):
        assert Mosaic(thin)(pieces, np.random.default_rng(seed)).size_hw == (1, 64)


def make_records(folder: Path, count: int) -> list[ImageRecord]:
    """Pictures of several sizes; every third without boxes, every fourth box a crowd."""
    records = []
    for i in range(count):
        width, height = [(80, 60), (60, 90), (300, 200)][i % 3]
        path = folder / f"{i}.jpg"
        noise = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        number = 0 if i % 3 == 2 else 2
        boxes = [[5, 5, 45, 45], [20, 10, 50, 55]][:number]
        crowds = [False, True][:number]
        classes = [i % 2, 7][:number]
        records.append(record_of(path, (width, height), boxes, classes, i, is_crowd=crowds))
    return records


def make_dataset(
    folder: Path, count: int, share: float = 0.6, preprocess: PreprocessConfig = FREE
) -> DetectionDataset:
    transform = build_transform("strong", preprocess)
    records = make_records(folder, count)
    mixing = build_mixing(share, 0.0, "strong", preprocess, records)
    return DetectionDataset(records, preprocess, transform, 3, mixing)


@pytest.mark.parametrize("preprocess", [SQUARE, FREE])
def test_sizes_are_told_in_advance(tmp_path: Path, preprocess: PreprocessConfig) -> None:
    dataset = make_dataset(tmp_path, 9, preprocess=preprocess)
    for epoch in range(3):
        for index, size in enumerate(dataset.mixed_sizes(epoch)):
            assert dataset[SampleKey(epoch, index, mixing=True)].image.shape[1:] == size
        for index, size in enumerate(dataset.planned_sizes(epoch)):
            assert dataset[epoch, index].image.shape[1:] == size


def test_mosaics_are_as_frequent_as_asked_and_the_rest_is_as_without(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 4, share=0.3)
    plain = DetectionDataset(dataset.records, FREE, dataset.transform, 3)
    changed = 0
    for epoch in range(50):
        for index in range(4):
            mixed, alone = dataset[SampleKey(epoch, index, True)], plain[epoch, index]
            assert torch.equal(dataset[epoch, index].image, alone.image)
            assert mixed.image_id == alone.image_id
            changed += mixed.image.shape != alone.image.shape or not torch.equal(
                mixed.image, alone.image
            )
    assert 38 <= changed <= 82  # 60 of 200, 3.4 standard deviations


def test_targets_are_sound_and_crowds_left_out(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 6, share=1.0)
    seen = set()
    for epoch in range(10):
        for index in range(6):
            target = dataset[SampleKey(epoch, index, True)].target
            assert len(target.labels) == len(target.boxes_cxcywh)
            assert target.boxes_cxcywh.dtype == torch.float32 and target.labels.dtype == torch.int64
            seen |= set(target.labels.tolist())
            centers, sides = target.boxes_cxcywh[:, :2], target.boxes_cxcywh[:, 2:]
            assert bool((sides > 0).all())
            assert bool((centers - sides / 2 > -1e-6).all())
            assert bool((centers + sides / 2 < 1 + 1e-6).all())
    assert seen == {0, 1}


def test_data_set_of_one_image(tmp_path: Path) -> None:
    sample = make_dataset(tmp_path, 1, share=1.0)[SampleKey(0, 0, True)]
    assert sample.image.shape == (3, 48, 64)


def same(first: Batch, second: Batch) -> bool:
    return (
        first.image_ids == second.image_ids
        and torch.equal(first.images, second.images)
        and all(
            torch.equal(a.boxes_cxcywh, b.boxes_cxcywh) and torch.equal(a.labels, b.labels)
            for a, b in zip(first.targets, second.targets, strict=True)
        )
    )


def test_worker_processes_give_the_same_mosaics(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 4)
    ours, theirs = (  # one batch with mosaics and one without
        list(Loader(dataset, LoaderSettings(2, seed=1, workers=workers)).batches(1, 0, 1))
        for workers in (1, 0)
    )
    assert len(ours) == 2 and all(map(same, ours, theirs))


def test_stream_stops_mixing_with_worker_processes(tmp_path: Path) -> None:
    """What the processes prepared ahead, mixed, is not what comes next."""
    dataset = make_dataset(tmp_path, 8, share=1.0)
    taken = []
    for workers in (1, 0):
        stream = BatchStream(Loader(dataset, LoaderSettings(2, seed=1, workers=workers)))
        first = stream.take(1)
        stream.stop_mixing()
        taken.append(first + stream.take(5))
    assert all(map(same, *taken))


def test_stream_stops_mixing_and_comes_back_to_the_same_place(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 12, share=1.0)

    def stream(epoch: int = 0, batch: int = 0, mixed: int | None = None) -> BatchStream:
        return BatchStream(Loader(dataset, LoaderSettings(2, seed=1)), epoch, batch, mixed)

    whole = stream()
    taken = whole.take(8)  # six of the first pass, two of the second
    assert (whole.epoch, whole.batch, whole.mixed_batches) == (1, 2, None)
    whole.stop_mixing()
    taken += whole.take(2)
    whole.stop_mixing()  # once is enough
    assert (whole.epoch, whole.batch, whole.mixed_batches) == (1, 4, 2)
    taken += whole.take(4)
    assert (whole.epoch, whole.batch, whole.mixed_batches) == (2, 2, 0)
    second = taken[6:12]
    assert sorted(i for batch in second for i in batch.image_ids) == list(range(12))
    for place in (1, 3):
        resumed = stream(1, place, None if place < 2 else 2)
        if place < 2:
            assert same(resumed.take(1)[0], second[1])
            resumed.stop_mixing()
        assert all(map(same, resumed.take(9 - place - 1), taken[6 + max(place, 2) :]))
    plain = Loader(replace_mixing(dataset, None), LoaderSettings(2, seed=1))
    assert all(map(same, list(plain.batches(2))[:2], taken[12:]))
    alone = [plain.dataset[1, i].image for i in second[2].image_ids]
    for image, lone in zip(second[2].images, alone, strict=True):
        assert torch.equal(image[:, : lone.shape[1], : lone.shape[2]], lone)


def replace_mixing(dataset: DetectionDataset, mixing: Mixing | None) -> DetectionDataset:
    return DetectionDataset(
        dataset.records, dataset.preprocess, dataset.transform, dataset.seed, mixing
    )


def test_stream_without_mixing_drops_nothing(tmp_path: Path) -> None:
    dataset = replace_mixing(make_dataset(tmp_path, 4), None)
    stream = BatchStream(Loader(dataset, LoaderSettings(2)))
    stream.take(1)
    stream.stop_mixing()
    assert stream.mixed_batches is None


def test_unreadable_partner_is_told_and_done_without(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 4, share=1.0)
    lost = dataset.records[3].path
    lost.write_bytes(b"gone bad")
    samples, told = ReadableSamples(dataset), 0
    for epoch in range(5):
        for index in range(3):
            key = SampleKey(epoch, index, True)
            sample = samples[key]
            assert isinstance(sample, Sample)
            if sample.without is None:
                assert torch.equal(sample.image, dataset[key].image)
                continue
            told += 1
            assert sample.without.path == str(lost) and "3.jpg" in sample.without.message
            assert torch.equal(sample.image, dataset[epoch, index].image)
            with pytest.raises(DataError, match=r"3\.jpg"):
                dataset[key]
    assert 3 <= told <= 14  # one in 1 - (3/4)^3 of them
    (batch,) = Loader(dataset, LoaderSettings(4, skip_unreadable=True)).batches(0, 0, None)
    assert sorted(batch.image_ids) == [0, 1, 2]
    assert {remark.path for remark in batch.unreadable} == {str(lost)}


def test_wrong_settings() -> None:
    for key, value in (("mosaic", 1.5), ("mosaic", -0.1), ("mosaic_until", 2)):
        with pytest.raises(
            ConfigError, match=f"{key} is {value:g}.*, expected a share from 0 to 1"
        ):
            from_dict(TrainConfig, {key: value})
    for wrong in ([2.0, 0.5], [0, 1]):
        with pytest.raises(ConfigError, match=r"scale_jitter is .*, expected a low and a"):
            from_dict(TrainConfig, {"scale_jitter": wrong})
    assert from_dict(TrainConfig, {"scale_jitter": [0.5, 2]}).scale_jitter == (0.5, 2.0)
    with pytest.raises(ConfigError, match=r"augment 'none' and mosaic 0\.5 contradict"):
        build_mixing(0.5, 0.0, "none", SQUARE, [])
    assert build_mixing(0.0, 0.0, "none", SQUARE, []) is None
    assert replace(TrainConfig(), mosaic=0.5).mosaic == 0.5
