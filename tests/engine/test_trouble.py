"""Spoilt weights, a diverging loss, short memory and damaged images do not end a run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import TINY_INPUT, make_coco_dataset, tiny_config
from runs import STATE, assert_same_state, logged_steps

from dino_core.checkpoints.io import load_checkpoint
from dino_core.config import ResolvedConfig, TrainConfig
from dino_core.data.dataset import DetectionDataset
from dino_core.data.load import load_dataset
from dino_core.data.loader import Loader, LoaderSettings
from dino_core.data.records import DatasetIndex
from dino_core.engine.events import Event, RolledBack, RunFinished, StepDone, Warned
from dino_core.engine.fit import run_events
from dino_core.engine.optimizer import build_optimizer
from dino_core.engine.request import RunRequest
from dino_core.engine.sentinel import BAD_STEPS, ENOUGH, HIGH_STEPS, Sentinel
from dino_core.engine.state import load_state
from dino_core.engine.step import Stepper
from dino_core.engine.summary import RunSummary
from dino_core.errors import DataError, DinoError
from dino_core.models.dino import Dino

# Without the probe: trouble comes in passes that are counted.
RECIPE = ResolvedConfig(
    steps=6, batch=2, log_every_steps=1, dtype="fp32", device="cpu", lr=1e-3, augment="none",
    probe=False, plots=False,
)  # fmt: skip
Events = Generator[Event, None, RunSummary]


@pytest.fixture
def data(tmp_path: Path) -> DatasetIndex:
    return load_dataset(make_coco_dataset(tmp_path / "coco", (("train", 8), ("val", 3))))


def train(
    config: TrainConfig, data: DatasetIndex, out: Path, start: str, resume: bool = False
) -> Events:
    return run_events(RunRequest(config, data, out, model=start, resume=resume))


def stop_after(events: Events, step: int) -> list[Event]:
    seen = []
    for event in events:
        seen.append(event)
        if isinstance(event, StepDone) and event.step == step:
            events.close()
            break
    return seen


def warnings(events: list[Event]) -> list[str]:
    """Messages of all events that the log shows as warnings."""
    return [event.message for event in events if isinstance(event, (Warned, RolledBack))]


def summary(events: list[Event]) -> RunSummary:
    assert isinstance(events[-1], RunFinished)
    return events[-1].summary


@contextmanager
def at_training_passes(action: Callable[[Dino, int, int], None]) -> Iterator[None]:
    """Call `action(model, pass, images)` before each forward pass of a DINO in training."""
    passes = 0

    def hook(module: torch.nn.Module, args: Any) -> None:
        nonlocal passes
        if isinstance(module, Dino) and module.training:
            passes += 1
            action(module, passes, len(args[0]))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# The loss


def see(sentinel: Sentinel, loss: float, finite: bool = True) -> str:
    return sentinel.see(loss, finite=finite, empty=False)


def test_the_sentinel_bears_a_few_bad_steps() -> None:
    sentinel = Sentinel()
    for _ in range(5):
        assert [see(sentinel, 0.0, finite=False) for _ in range(BAD_STEPS - 1)] == [""] * 9
        assert not sentinel.calm
        assert see(sentinel, 3.0) == "" and sentinel.calm
    for _ in range(BAD_STEPS - 1):
        see(sentinel, 0.0, finite=False)
    assert "not finite in 10 steps" in see(sentinel, 0.0, finite=False)


def test_the_sentinel_sees_a_loss_that_stays_far_above_the_usual() -> None:
    sentinel = Sentinel()
    assert not any(see(sentinel, 1.0 + n % 3) for n in range(ENOUGH))  # the median is 2
    for _ in range(3):
        assert not any(see(sentinel, 10.1) for _ in range(HIGH_STEPS - 1))
        assert not sentinel.calm
        assert not see(sentinel, 9.9)  # under five times the median
    assert not any(see(sentinel, 1e9) for _ in range(HIGH_STEPS - 1))
    assert "over 5 times its usual value in 25 steps" in see(sentinel, 1e9)


def test_the_sentinel_waits_for_a_usual_loss() -> None:
    sentinel = Sentinel()
    assert not any(see(sentinel, 10.0**n) for n in range(ENOUGH))


def test_spoilt_weights_send_the_run_back_and_it_ends_well(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    def spoil(model: Dino, number: int, images: int) -> None:
        if number == 6:
            with torch.no_grad():
                next(model.encoder.parameters()).fill_(float("nan"))

    recipe = replace(RECIPE, steps=16, dtype="bf16", checkpoint_every_steps=4)
    with at_training_passes(spoil):
        events = list(train(recipe, data, tmp_path / "whole", start))
    said = warnings(events)
    assert said[:10] == [f"step {n}: the loss is not finite; left out" for n in range(6, 16)]
    assert said[10] == (
        "step 15: the loss was not finite in 10 steps in a row; back to step 4, with lr 0.00025 "
        "and fp32"
    )
    assert len(said) == 11
    (returned,) = (event for event in events if isinstance(event, RolledBack))
    assert (returned.from_step, returned.step, returned.lr) == (15, 4, 1e-3 / 4)
    steps = [e.step for e in events if isinstance(e, StepDone)]
    assert steps == [*range(1, 6), *range(5, 17)]
    assert (summary(events).steps, summary(events).rollbacks) == (16, 1)
    assert "back to step 4" in (tmp_path / "whole/log.txt").read_text()
    assert logged_steps(tmp_path / "whole") == list(range(1, 17))
    weights = load_checkpoint(tmp_path / "whole/last.safetensors").state_dict
    assert all(bool(torch.isfinite(t).all()) for t in weights.values())

    with at_training_passes(spoil):  # stopped after the return: the care is part of the state
        stop_after(train(recipe, data, tmp_path / "parts", start), 7)
    list(train(recipe, data, tmp_path / "parts", start, resume=True))
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_a_loss_that_explodes_sends_the_run_back(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    def spoil(model: Dino, number: int, images: int) -> None:
        if number == ENOUGH + 5:
            with torch.no_grad():
                for parameter in model.decoder.parameters():
                    parameter.mul_(30.0)

    recipe = replace(RECIPE, steps=60, lr=1e-5, log_every_steps=60, checkpoint_every_steps=10)
    only_train = replace(data, splits={"train": data.splits["train"]})
    with at_training_passes(spoil):
        events = list(train(recipe, only_train, tmp_path / "run", start))
    (said,) = warnings(events)
    assert "over 5 times its usual value in 25 steps in a row; back to step 20" in said
    assert summary(events).steps == 60


def test_a_rate_that_is_far_too_high_ends_the_run_with_words(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    recipe = replace(RECIPE, steps=100, lr=1e30, warmup_steps=0)
    said: list[str] = []
    with pytest.raises(DinoError, match="although the run went back to its checkpoint 2 times"):
        said.extend(e.message for e in train(recipe, data, tmp_path / "run", start)
                    if isinstance(e, (Warned, RolledBack)))  # fmt: skip
    assert sum("back to step 0" in message for message in said) == 2
    # The state is that of the start, not one of the spoilt ones.
    tensors = load_state(tmp_path / "run" / STATE).tensors
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())


# Memory


def too_many(limit: int) -> Callable[[Dino, int, int], None]:
    """Ask the CPU's allocator for more than any machine has, for batches over `limit` images."""

    def action(model: Dino, number: int, images: int) -> None:
        if images > limit:
            torch.empty(2**50)

    return action


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_short_memory_halves_the_batches(
    kind: str, tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    def as_on_a_gpu(model: Dino, number: int, images: int) -> None:
        if images > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    recipe = replace(RECIPE, batch=4, steps=4)
    action = too_many(1) if kind == "cpu" else as_on_a_gpu
    with at_training_passes(action):
        events = list(train(recipe, data, tmp_path / "whole", start))
        said = warnings(events)
        assert [m.partition(" from here")[0] for m in said] == [
            f"out of memory: batches of 4 go through in {n} parts" for n in (2, 4)
        ]
        assert summary(events).steps == 4 and summary(events).epochs == 2
        stop_after(train(recipe, data, tmp_path / "parts", start), 2)
        again = list(train(recipe, data, tmp_path / "parts", start, resume=True))
    assert warnings(again) == []  # it is remembered
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_memory_that_is_too_short_for_one_image(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    def later(model: Dino, number: int, images: int) -> None:
        if number > 2:
            torch.empty(2**50)

    with at_training_passes(later), pytest.raises(DinoError, match="1 images at a time"):
        list(train(RECIPE, data, tmp_path / "run", start))
    assert load_state(tmp_path / "run" / STATE).counters.step == 2


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_gradients_of_parts_are_those_of_the_whole(data: DatasetIndex, parts: int) -> None:
    torch.manual_seed(0)
    # Denoising draws other numbers in other batches, and fills images up to the most boxes of one.
    model = Dino(replace(tiny_config(), dn_number=0, dn_label_noise_ratio=0, dn_box_noise_scale=0))
    records = [record for record in data.splits["train"] if len(record.class_indices) == 2]
    model.backbone.fold_batch_norm()  # as a run does: the images do not see each other
    (batch,) = Loader(DetectionDataset(records, TINY_INPUT), LoaderSettings(4)).batches(0)
    assert len(batch) == 4
    stepper = Stepper(
        RECIPE, model, None, build_optimizer(model, RECIPE), torch.device("cpu"), torch.float32
    )
    gradients, losses = [], []
    for stepper.parts in (1, parts):
        losses.append(stepper.gradients([batch], 0, 0.0).loss)
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()
                          if p.grad is not None})  # fmt: skip
    whole, divided = gradients
    assert whole.keys() == divided.keys() and len(whole) > 50
    # float32 sums in another order; the gradients' norm is clipped to 0.1.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert max(float((whole[n] - divided[n]).abs().max()) for n in whole) < 1e-6


# Images


def damage(data: DatasetIndex, *numbers: int, split: str = "train") -> list[str]:
    paths = [data.splits[split][number].path for number in numbers]
    for path in paths:
        path.write_bytes(path.read_bytes()[:60])
    return [str(path) for path in paths]


def test_a_damaged_image_is_left_out_and_listed(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    (path,) = damage(data, 2)
    recipe = replace(RECIPE, steps=8, augment="strong")  # two passes over four batches
    events = list(train(recipe, data, tmp_path / "whole", start))
    (said,) = warnings(events)  # once, although it is asked for twice
    assert said.startswith(f"image left out: {path}: ")
    outcome = summary(events)
    assert (outcome.steps, outcome.epochs, outcome.skipped_steps) == (8, 2, 0)
    assert len(outcome.unreadable_images) == 1 and path in outcome.unreadable_images[0]
    assert path in (tmp_path / "whole/log.txt").read_text()
    stop_after(train(recipe, data, tmp_path / "parts", start), 3)
    again = list(train(recipe, data, tmp_path / "parts", start, resume=True))
    assert summary(again).unreadable_images == outcome.unreadable_images
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_other_batches_are_as_before(data: DatasetIndex, workers: int) -> None:
    images = DetectionDataset(data.splits["train"], TINY_INPUT)
    before = list(Loader(images, LoaderSettings(3)).batches(0))
    paths = damage(data, 1, 4)
    lost = {images.records[i].image_id for i in (1, 4)}
    loader = Loader(images, LoaderSettings(3, workers=workers, skip_unreadable=True))
    after = list(loader.batches(0))
    kept = [[i for i in batch.image_ids if i not in lost] for batch in before]
    assert [batch.image_ids for batch in after] == kept
    assert sorted(u.path for batch in after for u in batch.unreadable) == sorted(paths)


def test_a_batch_without_a_readable_image_changes_nothing(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    (path,) = damage(data, 3)
    recipe = replace(RECIPE, batch=1, steps=8)
    events = list(train(recipe, data, tmp_path / "run", start))
    left_out, skipped = warnings(events)
    assert path in left_out and "none of its images can be read" in skipped
    assert (summary(events).steps, summary(events).skipped_steps) == (8, 1)


def test_data_that_is_mostly_gone_ends_the_run(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    damage(data, 0, 1, 2, 3)
    list(train(replace(RECIPE, steps=4), data, tmp_path / "half", start))
    damage(data, 4)
    with pytest.raises(DataError, match="5 of 8 training images cannot be read"):
        list(train(replace(RECIPE, steps=4), data, tmp_path / "more", start))


def test_a_damaged_validation_image_is_left_out(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    (path,) = damage(data, 1, split="val")
    events = list(train(RECIPE, data, tmp_path / "run", start))
    (said,) = warnings(events)
    assert said.startswith(f"validation image left out: {path}: ")
    metrics = summary(events).metrics
    assert metrics is not None and metrics.images == 2
    damage(data, 2, split="val")
    with pytest.raises(DataError, match="2 of 3 validation images cannot be read"):
        list(train(RECIPE, data, tmp_path / "again", start))
