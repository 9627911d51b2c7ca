"""Every rule of the plan: what it chooses, that it is monotone, and that what is asked for wins."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dino_core.config import PreprocessConfig, TrainConfig, from_dict, to_dict
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.detections import ClassMap
from dino_core.engine.planning.facts import DataFacts, Machine, ModelFacts, check_data, data_facts
from dino_core.engine.planning.plan import AS_ASKED, Plan, filled, forecast, plan
from dino_core.engine.planning.rules import suggested_queries
from dino_core.errors import ConfigError, DataError

DATA = DataFacts(images=205, boxes=2800, val_images=87, object_px=50.0, detail=2.0)
NANO = ModelFacts(parameters=6_400_000, input_px=320, trained=True)
LARGE = ModelFacts(parameters=47_000_000, input_px=1333, trained=True)
CPU = Machine("cpu", cores=2)


def planned(
    images: int = 205, model: ModelFacts = NANO, machine: Machine = CPU, **asked: Any
) -> Plan:
    return plan(TrainConfig(**asked), replace(DATA, images=images), model, machine)


def reason(result: Plan, name: str) -> str:
    return next(d.reason for d in result.decisions if d.name == name)


class TestStepSize:
    @pytest.mark.parametrize(
        ("images", "expected"),
        [(1, 1), (3, 3), (7, 4), (40, 4), (79, 4), (80, 8), (205, 8), (118_000, 8)],
    )  # fmt: skip
    def test_images_a_step_of_a_small_model(self, images: int, expected: int) -> None:
        assert planned(images).config.images_per_step == expected

    @pytest.mark.parametrize(
        ("images", "expected"),
        [(1, 1), (3, 3), (7, 4), (40, 4), (205, 4), (319, 4), (320, 8), (639, 8), (640, 16),
         (118_000, 16)],
    )  # fmt: skip
    def test_images_a_step(self, images: int, expected: int) -> None:
        result = planned(images, LARGE)
        config = result.config
        assert config.images_per_step == config.batch * config.accumulate == expected

    def test_larger_sets_take_larger_steps_and_keep_forty_an_epoch(self) -> None:
        steps = [planned(n, LARGE).config.images_per_step for n in range(1, 700)]
        assert steps == sorted(steps)
        assert all(planned(n, LARGE).steps_per_epoch >= 40 for n in range(160, 2000, 7))

    def test_processes_share_the_step(self) -> None:
        for processes, batch in ((1, 16), (2, 8), (8, 2), (16, 1), (32, 1)):
            config = planned(10_000, LARGE, machine=replace(CPU, processes=processes)).config
            assert (config.batch, config.accumulate) == (batch, 1)
            assert config.images_per_step == max(16, processes)

    def test_what_fits_splits_the_step(self) -> None:
        for fits, batch, passes in ((16, 16, 1), (15, 8, 2), (3, 2, 8), (1, 1, 16)):
            result = planned(10_000, LARGE, machine=replace(CPU, fits=fits))
            assert (result.config.batch, result.config.accumulate) == (batch, passes)
            assert result.config.images_per_step == 16
            if passes > 1:
                assert "do not fit" in reason(result, "batch")

    def test_asked_for(self) -> None:
        config = planned(batch=3).config
        assert (config.batch, config.accumulate, config.images_per_step) == (3, 1, 3)
        config = planned(batch=3, machine=replace(CPU, fits=1)).config
        assert config.batch == 3  # kept: its parts go through one after the other
        config = planned(400, accumulate=4).config
        assert (config.batch, config.accumulate) == (2, 4)
        config = planned(images_per_step=32, machine=replace(CPU, processes=4)).config
        assert (config.batch, config.accumulate) == (8, 1)
        config = planned(images_per_step=32, batch=2).config
        assert (config.batch, config.accumulate, config.images_per_step) == (2, 16, 32)
        config = planned(images_per_step=99, batch=2, accumulate=3).config
        assert config.images_per_step == 6  # the other two say it

    def test_a_step_that_cannot_be_divided(self) -> None:
        with pytest.raises(ConfigError, match=r"16 is not a multiple of batch x processes, 3"):
            planned(images_per_step=16, batch=3)
        with pytest.raises(ConfigError, match=r"not a multiple of the number of processes, 3"):
            planned(images_per_step=16, machine=replace(CPU, processes=3))


class TestRate:
    def test_published_at_the_published_batch(self) -> None:
        assert planned(10_000, LARGE).config.lr == 1e-4
        assert planned(40, NANO).config.lr == 6e-4

    def test_square_root_of_the_images_a_step(self) -> None:
        for images in (1, 2, 4, 16, 64):
            lr = planned(batch=images).config.lr
            assert lr == pytest.approx(6e-4 * math.sqrt(images / 4), rel=0.03)  # two digits
        assert planned(batch=2, accumulate=4).config.lr == planned(batch=8).config.lr
        wide = planned(10_000, LARGE, replace(CPU, processes=8), batch=8)
        assert wide.config.lr == pytest.approx(2e-4)  # 64 images, four times as many as published

    def test_a_random_backbone_learns_like_the_rest(self) -> None:
        assert planned(model=LARGE).config.backbone_lr_factor == 0.1
        assert planned().config.backbone_lr_factor == 0.5
        assert planned(model=replace(NANO, trained=False)).config.backbone_lr_factor == 1.0

    def test_a_short_run_warms_up_for_a_tenth_of_it(self) -> None:
        assert planned(steps=5000).config.warmup_steps == 100
        assert planned(minutes=5).config.warmup_steps == 100  # its steps are not known yet
        assert planned(steps=301).config.warmup_steps == 31

    def test_asked_for(self) -> None:
        result = planned(lr=3e-5, backbone_lr_factor=0.0, warmup_steps=0, ema_decay=0.5)
        config = result.config
        assert (config.lr, config.backbone_lr_factor) == (3e-5, 0.0)
        assert (config.warmup_steps, config.ema_decay) == (0, 0.5)
        for name in ("lr", "backbone_lr_factor", "warmup_steps", "ema_decay"):
            assert reason(result, name) == AS_ASKED


class TestLength:
    def test_epochs_count_whole_batches(self) -> None:
        result = planned(17, epochs=3, batch=4, accumulate=2)
        assert result.steps_per_epoch == 2  # 4 whole batches, 2 a step
        assert result.steps == 6
        assert result.progress(3, 1e9) == 0.5

    def test_minutes_go_by_the_clock(self) -> None:
        result = planned(17, minutes=2.0)
        assert result.steps is None and result.config.steps is None
        assert result.progress(10**6, 30.0) == 0.25
        assert result.progress(0, 60.0, reserve_s=20.0) == 0.6
        assert result.progress(0, 500.0) == 1.0

    @pytest.mark.parametrize(("images", "epochs"), [(80, 100), (800, 30), (80_000, 12)])
    def test_length_from_the_size_of_the_data(self, images: int, epochs: int) -> None:
        result = planned(images, batch=8)
        assert result.epochs == pytest.approx(epochs, rel=0.01)
        assert str(images) in reason(result, "steps")

    def test_more_images_never_mean_more_epochs_or_fewer_steps(self) -> None:
        plans = [planned(n, batch=8) for n in range(8, 60_000, 501)]
        epochs = [p.epochs or 0.0 for p in plans]
        steps = [p.steps or 0 for p in plans]
        assert all(b <= a + 0.05 for a, b in itertools.pairwise(epochs))
        assert all(b >= a - 1 for a, b in itertools.pairwise(steps))

    def test_wrong_settings(self) -> None:
        with pytest.raises(ConfigError, match="epochs and minutes"):
            planned(epochs=1, minutes=1.0)
        for name in ("batch", "accumulate", "lr", "images_per_step"):
            with pytest.raises(ConfigError, match=f"{name} = 0"):
                planned(**{name: 0})
        with pytest.raises(ConfigError, match="image_size = 31"):
            planned(image_size=31)


class TestPictures:
    def test_class_loss(self) -> None:
        assert planned(2000).config.class_loss == "mal"
        assert planned(2000, model=LARGE).config.class_loss == "focal"
        assert planned(2000, class_loss="focal").config.class_loss == "focal"

    def test_strong_augmentation_for_many_passes(self) -> None:
        assert planned(2000, epochs=49).config.augment == "default"
        assert planned(2000, epochs=50).config.augment == "strong"
        assert planned(50, minutes=5.0).config.augment == "default"
        assert planned(10, augment="none").config.augment == "none"

    def size(
        self, object_px: float, detail: float = 4.0, model: ModelFacts = NANO, **asked: Any
    ) -> int | None:
        data = replace(DATA, object_px=object_px, detail=detail)
        return plan(TrainConfig(**asked), data, model, CPU).config.image_size

    def test_small_objects_get_a_larger_input(self) -> None:
        assert self.size(50.0) == self.size(40.0) == self.size(39.0) == 320
        assert self.size(30.0) == 416  # 320 * 40 / 30 = 426.7, to the nearest multiple of 32
        assert self.size(20.0) == self.size(1.0) == 640  # twice its own at most
        sizes = [self.size(px / 2) or 0 for px in range(1, 100)]
        assert sizes == sorted(sizes, reverse=True)

    def test_large_models_see_smaller_objects(self) -> None:
        assert self.size(12.0, model=LARGE) == 1333
        assert self.size(10.0, model=LARGE) == 1600  # 1333 * 12 / 10 = 1599.6

    def test_not_beyond_the_detail_of_the_images(self) -> None:
        assert self.size(6.0, detail=1.3) == 416
        assert self.size(6.0, detail=1.25) == 384  # 400: between two multiples, the even one
        assert self.size(6.0, detail=1.0) == self.size(6.0, detail=0.3) == 320

    def test_asked_for(self) -> None:
        assert self.size(1.0, image_size=96) == 96
        assert planned(10, freeze="backbone").config.freeze == "backbone"
        assert planned(10).config.freeze == "none"


def test_loading_processes_are_for_gpus_and_larger_sets() -> None:
    gpu = Machine("cuda", cores=16)
    assert planned(10_000).config.workers == 0
    assert planned(100, machine=gpu).config.workers == 0
    assert planned(10_000, LARGE, machine=gpu).config.workers == 8
    assert planned(10_000, LARGE, machine=replace(gpu, cores=3)).config.workers == 3
    assert planned(10_000, LARGE, machine=gpu, workers=1).config.workers == 1


@pytest.mark.parametrize(
    "asked", [{}, {"epochs": 3}, {"minutes": 2.0}, {"batch": 3, "lr": 1e-3}, {"accumulate": 2}]
)
@pytest.mark.parametrize("model", [NANO, replace(LARGE, trained=False)])
def test_a_plan_of_its_own_result_is_the_same(asked: dict[str, Any], model: ModelFacts) -> None:
    first = planned(model=model, machine=replace(CPU, fits=3), **asked)
    stored = from_dict(TrainConfig, {n: v for n, v in to_dict(first.config).items()
                                     if v is not None})  # fmt: skip
    # Even where data, start and machine look different when the run is resumed.
    others = DataFacts(images=205, boxes=9, val_images=0, object_px=3.0, detail=9.0)
    again = plan(stored, others, NANO, Machine("cuda", cores=64))
    assert again.config == first.config
    assert (again.steps, again.minutes, again.steps_per_epoch) == (
        first.steps, first.minutes, first.steps_per_epoch
    )  # fmt: skip
    assert all(d.reason.startswith(AS_ASKED) for d in again.decisions
               if d.name != "images_per_step")  # fmt: skip


def test_what_a_resumed_run_leaves_open_is_as_it_was_chosen() -> None:
    first = planned(model=replace(NANO, trained=False), epochs=3).config
    assert filled(TrainConfig(epochs=3), first) == TrainConfig(
        **{f.name: getattr(first, f.name) for f in fields(TrainConfig)}
    )
    longer = filled(TrainConfig(steps=99, lr=0.5), first)
    assert (longer.steps, longer.epochs, longer.lr) == (99, None, 0.5)
    assert (longer.batch, longer.backbone_lr_factor) == (first.batch, 1.0)


def test_each_decision_has_a_reason_and_an_option() -> None:
    for decision in planned().decisions:
        assert decision.reason and decision.option.startswith("--")
        name = decision.option.split()[-1]
        if name.startswith("train."):
            assert name == f"train.{decision.name}"


class TestForecast:
    def test_steps_decide(self) -> None:
        result = planned(80, steps=10, batch=8)
        ahead = forecast(result, step_s=2.0, val_images=0)
        assert (ahead.steps, ahead.seconds, ahead.images_per_s) == (10, 20.0, 4.0)
        assert ahead.epochs == 1.0

    def test_evaluation_takes_at_most_its_share(self) -> None:
        result = planned(80, steps=100, batch=8)
        # 12 validation images cost as much as 4 training images: half a step in each pass of ten.
        assert forecast(result, 2.0, 12).seconds == pytest.approx(200 + 10 * 1 + 1)
        most = forecast(result, 2.0, 10**4)
        one = 10**4 / (3 * 4.0)
        assert most.seconds - one == pytest.approx(200 / 0.92)

    def test_the_clock_decides(self) -> None:
        result = planned(80, minutes=1.0, batch=8)
        assert forecast(result, 2.0, 0).steps == 30
        assert forecast(result, 2.0, 0, left_s=20.0).steps == 10
        assert forecast(result, 2.0, 0).seconds == 60.0


def record(size_hw: tuple[int, int], boxes: list[list[float]], crowd: bool = False) -> ImageRecord:
    count = len(boxes)
    return ImageRecord(
        image_id=1,
        path=Path("1.png"),
        width=size_hw[1],
        height=size_hw[0],
        boxes_xyxy_px=np.array(boxes, np.float32).reshape(-1, 4),
        class_indices=np.zeros(count, np.int64),
        is_crowd=np.full(count, crowd),
        areas=np.full(count, 16, np.float32),
    )


def index(*records: ImageRecord) -> DatasetIndex:
    classes = ClassMap.from_names(["thing"])
    return DatasetIndex(Path("somewhere"), "coco", classes, {"train": records, "val": records[:1]})


def test_facts_of_data() -> None:
    data = index(
        record((100, 200), [[0, 0, 8, 2], [10, 10, 26, 26]]),  # sides 4 and 16 on disk
        record((400, 200), [[0, 0, 32, 32]]),
        record((100, 200), [[0, 0, 99, 99]], crowd=True),
    )
    # Long side 100: the first is halved, the second quartered; sides 2, 8 and 8.
    facts = data_facts(data, PreprocessConfig(short_side=100, max_side=100))
    assert (facts.images, facts.boxes, facts.val_images) == (3, 3, 1)
    assert facts.object_px == pytest.approx(8.0)
    assert facts.detail == pytest.approx(2.0)


def test_data_without_images_or_boxes() -> None:
    with pytest.raises(DataError, match="no images in split 'train'"):
        check_data(index())
    crowd = record((9, 9), [[0, 0, 3, 3]], crowd=True)
    with pytest.raises(DataError, match="no boxes in 2"):
        check_data(index(record((9, 9), []), crowd))


@pytest.mark.parametrize(
    ("objects", "queries", "expected"),
    [(300, 300, None), (301, 300, 500), (400, 300, 600), (401, 300, 650)],
)
def test_queries_are_suggested_where_an_image_has_more_objects(
    objects: int, queries: int, expected: int | None
) -> None:
    """Half as many again, rounded up to fifties."""
    assert suggested_queries(objects, queries) == expected
