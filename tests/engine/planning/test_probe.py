"""The worst batch is found, and tried before step one without a trace; short memory shows there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_coco_dataset, tiny_config
from runs import assert_same_state

from dino_core.config import ModelConfig, ResolvedConfig, TrainConfig, from_dict
from dino_core.data.batching import ShapeBatches
from dino_core.data.load import load_dataset
from dino_core.data.records import DatasetIndex
from dino_core.engine.events import Event, RunPlanned, SpeedMeasured, StepDone, Warned
from dino_core.engine.fit import SPEED_STEPS, plan_run, run_events
from dino_core.engine.memory import free_memory_mb, peak_memory_mb, resident_memory_mb
from dino_core.engine.planning.probe import Probe, WorstBatch, worst_batch
from dino_core.engine.request import RunRequest
from dino_core.errors import DinoError
from dino_core.models.dino import Dino
from dino_core.toml import load_toml

CPU = torch.device("cpu")
RECIPE = TrainConfig(
    steps=3, batch=4, log_every_steps=1, dtype="fp32", device="cpu", lr=1e-3, augment="strong",
    plots=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    folder = tmp_path_factory.mktemp("coco")
    return load_dataset(make_coco_dataset(folder, (("train", 8), ("val", 2))))


def sampler(sizes: Sequence[tuple[int, int]], batch: int, **more: Any) -> ShapeBatches:
    return ShapeBatches(len(sizes), lambda epoch: sizes, batch, **more)


@contextmanager
def at_passes(action: Callable[[int], None]) -> Iterator[None]:
    """Call `action(images)` before each forward pass of a DINO in training."""

    def hook(module: torch.nn.Module, args: Any) -> None:
        if isinstance(module, Dino) and module.training:
            action(len(args[0]))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def too_many(limit: int) -> Callable[[int], None]:
    """Ask the CPU's allocator for more than any machine has, for more images than `limit`."""

    def action(images: int) -> None:
        if images > limit:
            torch.empty(2**50)

    return action


class TestWorstBatch:
    def test_the_largest_padded_shape(self) -> None:
        # In file order: (33, 64) pads to 64x64, (96, 20) to 96x32 and (10, 40) with it to 96x64.
        worst = worst_batch(sampler([(33, 64), (30, 30), (96, 20), (10, 40)], 2, shuffle=False),
                            [1] * 4, dn_number=5)  # fmt: skip
        assert (worst.images, worst.size_hw) == (2, (96, 64))
        assert worst.mean_share == pytest.approx((64 * 64 + 96 * 64) / 2 / (96 * 64))

    def test_of_all_the_epochs_that_are_looked_at(self) -> None:
        def sizes(epoch: int) -> list[tuple[int, int]]:
            return [(32, 32), (32, 32 * (epoch + 1))]

        worst = worst_batch(ShapeBatches(2, sizes, 1), [1, 1], dn_number=5)
        assert (worst.images, worst.size_hw) == (1, (32, 320))  # of ten epochs

    @pytest.mark.parametrize(
        ("boxes", "dn_number", "most", "queries"),
        [
            ([1, 7], 100, 1, 200),  # 100 groups of 2; 14 groups of 14 are 196
            ([40, 51], 100, 40, 160),  # 2 groups of 80; one of 102
            ([40, 101], 100, 101, 202),  # one group however many boxes there are
            ([0, 3], 5, 3, 6),
        ],
    )
    def test_the_boxes_that_make_most_queries(
        self, boxes: list[int], dn_number: int, most: int, queries: int
    ) -> None:
        worst = worst_batch(sampler([(32, 32)] * len(boxes), 1), boxes, dn_number)
        assert (worst.boxes, worst.queries) == (most, queries)


def test_a_run_with_it_equals_a_run_without_it(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    """Weights, average, moments and all random generators, bit for bit."""
    for name, probe in (("with", True), ("without", False)):
        events = list(
            run_events(RunRequest(replace(RECIPE, probe=probe), data, tmp_path / name, model=start))
        )
        assert isinstance(events[0], RunPlanned)
        assert (events[0].trial is not None) == probe
    assert_same_state(tmp_path / "with", tmp_path / "without")


def test_nothing_of_the_model_changes() -> None:
    torch.manual_seed(3)
    model = Dino(tiny_config())
    batch_norm = torch.nn.BatchNorm2d(3)  # one that is not frozen, before everything else

    class Normed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.body = batch_norm, model.backbone.body
            self.drop = torch.nn.Dropout(0.5)

        def forward(self, images: torch.Tensor) -> Any:
            return self.body(self.drop(self.norm(images)))

    model.backbone.body = Normed()
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    worst = WorstBatch(2, (64, 64), 3, 6, 1.0)
    trial = Probe(model, CPU, torch.float32).try_out(ResolvedConfig(batch=2), worst, 2)
    assert trial is not None and trial.step_s > 0
    after = model.state_dict()
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None for p in model.parameters())
    assert not any(module.training for module in model.modules())


def test_what_a_cpu_cannot_hold_is_not_tried() -> None:
    model, seen = Dino(tiny_config()), list[int]()
    worst = WorstBatch(10**9, (64, 64), 3, 6, 1.0)
    with at_passes(seen.append):
        assert Probe(model, CPU, torch.float32).try_out(ResolvedConfig(), worst, 10**9) is None
    assert seen == [1]


def test_memory_of_the_trial_holds_what_comes_later(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    planned = plan_run(RunRequest(RECIPE, data, tmp_path / "run", model=start))
    assert planned.trial is not None and planned.trial.limit_mb is not None
    assert 0 < planned.trial.peak_mb < planned.trial.limit_mb
    assert planned.trial.at_a_time == planned.trial.worst.images == 4
    assert planned.trial.worst.size_hw == (64, 64)


def test_a_chosen_batch_shrinks_until_it_fits(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    recipe = replace(RECIPE, batch=None, images_per_step=8)
    out = tmp_path / "run"
    with at_passes(too_many(2)):
        events = list(run_events(RunRequest(recipe, data, out, model=start)))
    planned = events[0]
    assert isinstance(planned, RunPlanned)
    config = planned.config
    assert (config.images_per_step, config.batch, config.accumulate) == (8, 2, 4)
    assert any("do not fit" in d.reason for d in planned.plan.decisions)
    assert not [e for e in events if isinstance(e, Warned)]
    stored = from_dict(TrainConfig, load_toml(out / "config.toml")["train"])
    assert (stored.batch, stored.accumulate) == (2, 4)


def test_a_batch_that_was_asked_for_goes_through_in_parts(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    with at_passes(too_many(1)):
        events = list(run_events(RunRequest(RECIPE, data, tmp_path / "run", model=start)))
    planned = events[0]
    assert isinstance(planned, RunPlanned) and planned.trial is not None
    assert (planned.config.batch, planned.config.accumulate) == (4, 1)
    assert (planned.trial.at_a_time, planned.trial.parts) == (1, 4)
    assert not [e for e in events if isinstance(e, Warned)]


def test_no_room_for_one_image_is_said_before_anything_is_written(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    for batch in (None, 4):
        with at_passes(too_many(0)), pytest.raises(DinoError, match=r"1 images of 64x64"):
            next(
                iter(
                    run_events(
                        RunRequest(
                            replace(RECIPE, batch=batch), data, tmp_path / "run", model=start
                        )
                    )
                )
            )
    assert not (tmp_path / "run").exists()


def test_it_goes_through_twice_at_most_and_not_on_resume(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    seen: list[int] = []
    with at_passes(seen.append):
        events = run_events(RunRequest(RECIPE, data, tmp_path / "run", model=start))
        next(event for event in events if isinstance(event, StepDone))
        events.close()
        assert seen == [1, 4, 4]  # one image, the worst batch, the first step
        first = next(
            iter(run_events(RunRequest(RECIPE, data, tmp_path / "run", model=start, resume=True)))
        )
        assert seen == [1, 4, 4]
    assert isinstance(first, RunPlanned)
    assert (first.trial, first.resumed_step, first.plan.decisions) == (None, 1, ())


def test_resume_repeats_the_plan(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    """From config.toml alone, as `dino train --resume` reads it."""
    out = tmp_path / "run"
    asked = TrainConfig(device="cpu", dtype="fp32", epochs=2, log_every_steps=1, plots=False)
    events: Iterator[Event] = run_events(RunRequest(asked, data, out, model=start))
    first = next(events)
    next(event for event in events if isinstance(event, StepDone))
    events.close()
    stored = from_dict(TrainConfig, load_toml(out / "config.toml")["train"])
    again = next(run_events(RunRequest(stored, data, out, model="gone", resume=True)))
    assert isinstance(first, RunPlanned) and isinstance(again, RunPlanned)
    assert again.config == first.config
    assert (again.plan.steps, again.preprocess) == (first.plan.steps, first.preprocess)


def test_a_run_by_the_clock_tells_how_far_it_will_get(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    recipe = replace(RECIPE, steps=None, minutes=1.0)
    events = run_events(RunRequest(recipe, data, tmp_path / "run", model=start))
    measured = next(event for event in events if isinstance(event, SpeedMeasured))
    events.close()
    assert measured.step == SPEED_STEPS + 1  # the first warms up
    assert measured.forecast.steps > measured.step
    assert measured.forecast.epochs == measured.forecast.steps / 2
    assert 0 < measured.forecast.seconds < 60.0


def test_more_processes_share_the_step(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    request = RunRequest(replace(RECIPE, batch=None), data, tmp_path / "run", model=start)
    one = plan_run(request)
    two = plan_run(replace(request, processes=2))
    assert (one.processes, two.processes) == (1, 2)
    assert two.config.images_per_step == one.config.images_per_step == 2 * two.config.batch
    assert not (tmp_path / "run").exists()


def test_memory_numbers() -> None:
    total_kb = next(
        int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal:")
    )
    free = free_memory_mb(CPU)
    assert free is not None and 0 < free < total_kb / 1024
    assert 0 < resident_memory_mb() <= peak_memory_mb() * 1.01  # counted at other instants


def test_denoising_can_be_without_boxes() -> None:
    config: ModelConfig = replace(tiny_config(), dn_number=0)
    worst = worst_batch(sampler([(32, 32)], 1), [2], config.dn_number)
    model = Dino(config)
    assert Probe(model, CPU, torch.float32).try_out(ResolvedConfig(batch=1), worst, 1) is not None
