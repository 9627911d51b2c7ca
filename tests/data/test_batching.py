"""Batches: complete, repeatable, resumable, well filled, and padded as the model expects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import record_of
from PIL import Image

from dino_core.config import PreprocessConfig
from dino_core.data.augment.transforms import build_transform
from dino_core.data.batching import Batch, ShapeBatches, collate
from dino_core.data.dataset import DetectionDataset, Sample
from dino_core.data.loader import Loader, LoaderSettings
from dino_core.errors import ConfigError, DataError
from dino_core.targets import Target

INPUT = PreprocessConfig(short_side=48, max_side=64)
SIZES = [(40, 60), (60, 40), (50, 50), (30, 60), (60, 60)]


def make_dataset(folder: Path, count: int = 10, augment: bool = True) -> DetectionDataset:
    records = []
    for i in range(count):
        height, width = SIZES[i % len(SIZES)]
        path = folder / f"{i}.png"
        Image.new("RGB", (width, height), (i * 20 % 256, 50, 90)).save(path)
        records.append(record_of(path, (width, height), [[5, 5, 25, 25]], [0], i))
    transform = build_transform("default", INPUT) if augment else None
    return DetectionDataset(records, INPUT, transform, seed=7)


def sampler(count: int = 23, batch_size: int = 4, **options: object) -> ShapeBatches:
    sizes = [SIZES[i % len(SIZES)] for i in range(count)]
    return ShapeBatches(count, lambda _: sizes, batch_size, **options)  # type: ignore[arg-type]


def same(first: Batch, second: Batch) -> bool:
    return (
        first.image_ids == second.image_ids
        and torch.equal(first.images, second.images)
        and torch.equal(first.padding_mask, second.padding_mask)
        and all(
            torch.equal(a.boxes_cxcywh, b.boxes_cxcywh) and torch.equal(a.labels, b.labels)
            for a, b in zip(first.targets, second.targets, strict=True)
        )
    )


def test_every_image_once_an_epoch() -> None:
    batches = sampler()
    for epoch in range(3):
        drawn = batches.batches(epoch)
        assert sorted(i for batch in drawn for i in batch) == list(range(23))
        assert len(drawn) == len(batches) == 6
        assert sorted(map(len, drawn)) == [3, 4, 4, 4, 4, 4]


def test_order_depends_on_seed_and_epoch_only() -> None:
    assert sampler().batches(2) == sampler().batches(2)
    assert sampler().batches(2) != sampler().batches(3)
    assert sampler().batches(2) != sampler(seed=1).batches(2)
    assert sampler(shuffle=False).batches(5)[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_drop_last_keeps_an_only_batch() -> None:
    assert len(sampler(drop_last=True)) == 5
    assert [len(b) for b in sampler(drop_last=True).batches(0)] == [4] * 5
    assert len(sampler(3, drop_last=True)) == 1
    assert [len(b) for b in sampler(3, drop_last=True).batches(0)] == [3]


@pytest.mark.parametrize("world_size", [2, 4, 5])
def test_ranks_share_an_epoch(world_size: int) -> None:
    ranks = [sampler(rank=r, world_size=world_size) for r in range(world_size)]
    drawn = [rank.batches(1) for rank in ranks]
    assert {len(batches) for batches in drawn} == {len(ranks[0])}
    everything = [i for batches in drawn for batch in batches for i in batch]
    assert set(everything) == set(range(23))
    assert len(everything) < 23 + 4 * world_size


def test_like_sizes_share_a_batch() -> None:
    rng = np.random.default_rng(0)
    sizes = np.stack([rng.integers(100, 400, 512), rng.integers(100, 400, 512)], axis=1)
    grouped = ShapeBatches(512, lambda _: sizes.tolist(), 16).batches(0)
    mixed = np.random.default_rng(1).permutation(512).reshape(-1, 16).tolist()

    def filled(batches: list[list[int]]) -> float:
        used = sum(int(sizes[batch].prod(axis=1).sum()) for batch in batches)
        return used / sum(len(b) * int(sizes[b].max(axis=0).prod()) for b in batches)

    assert filled(mixed) < 0.5
    assert filled(grouped) > 0.75


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError, match="batch is 0"):
        sampler(batch_size=0)
    with pytest.raises(ConfigError, match="rank 2 is not in a world of 2"):
        sampler(rank=2, world_size=2)


def test_padding() -> None:
    target = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    samples = [Sample(torch.ones(3, 30, 40), target, 1), Sample(torch.ones(3, 33, 20), target, 2)]
    batch = collate(samples)
    assert batch.images.shape == (2, 3, 64, 64) and len(batch) == 2
    assert batch.image_ids == [1, 2]
    assert batch.padding_mask.dtype == torch.bool
    for i, (height, width) in enumerate([(30, 40), (33, 20)]):
        assert not batch.padding_mask[i, :height, :width].any()
        assert int((~batch.padding_mask[i]).sum()) == height * width
        assert float(batch.images[i].sum()) == 3 * height * width  # zeros on padding
    moved = batch.to(torch.device("cpu"))
    assert same(batch, moved)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_loader_repeats_and_skips(tmp_path: Path, prefetch: int) -> None:
    dataset = make_dataset(tmp_path)
    loader = Loader(dataset, LoaderSettings(3, seed=1, prefetch=prefetch))
    first, again = list(loader.batches(2)), list(loader.batches(2))
    assert len(first) == len(loader) == 4
    assert all(map(same, first, again))
    rest = list(loader.batches(2, skip_batches=3))
    assert len(rest) == 1 and same(rest[0], first[3])
    assert not all(map(same, first, loader.batches(3)))
    plain = list(Loader(dataset, LoaderSettings(3, seed=1, prefetch=0)).batches(2))
    assert all(map(same, first, plain))


def test_worker_processes_give_the_same_batches(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, count=4)
    with_workers = Loader(dataset, LoaderSettings(2, seed=1, workers=1))
    alone = Loader(dataset, LoaderSettings(2, seed=1))
    for epoch, skip in ((0, 0), (1, 1)):
        ours, theirs = (
            list(loader.batches(epoch, skip_batches=skip)) for loader in (with_workers, alone)
        )
        assert len(ours) == len(theirs) == 2 - skip and all(map(same, ours, theirs))


def test_loader_can_be_left_early(tmp_path: Path) -> None:
    loader = Loader(make_dataset(tmp_path), LoaderSettings(2))
    batches = loader.batches(0)
    first = next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert same(first, next(loader.batches(0)))


def test_damaged_image_reaches_the_caller(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    dataset.records[4].path.write_text("gone bad")
    with pytest.raises(DataError, match=r"4\.png"):
        list(Loader(dataset, LoaderSettings(2)).batches(0))


def test_batches_in_file_order(tmp_path: Path) -> None:
    loader = Loader(make_dataset(tmp_path, 5, augment=False), LoaderSettings(2, shuffle=False))
    assert [batch.image_ids for batch in loader.batches(0)] == [[0, 1], [2, 3], [4]]


def test_empty_data_set() -> None:
    empty = sampler(0)
    assert len(empty) == 0 and empty.batches(0) == []
