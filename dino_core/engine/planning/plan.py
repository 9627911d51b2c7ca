"""The plan of a run: every setting that was left open is chosen here, once, with its reason."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from dino_core.config import MIN_IMAGE_SIZE, ResolvedConfig, TrainConfig
from dino_core.engine.planning import rules
from dino_core.engine.planning.facts import DataFacts, Machine, ModelFacts
from dino_core.engine.schedule import WARMUP_SHARE
from dino_core.errors import ConfigError

V = TypeVar("V")

AS_ASKED = "as asked"


@dataclass(frozen=True)
class Decision:
    """One setting of a run.

    Attributes:
        name: The field of `TrainConfig`.
        value: Its value.
        reason: Why, in a few words; it begins with `AS_ASKED` where the value was asked for.
        option: The command line option that decides otherwise.
    """

    name: str
    value: Any
    reason: str
    option: str

    @property
    def asked(self) -> bool:
        """Whether the value was asked for."""
        return self.reason.startswith(AS_ASKED)


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        config: The recipe with every choice made. Planning it again gives the same plan.
        steps: Optimizer steps of the whole run; None where a time limit ends it.
        minutes: Time limit; None where the number of steps ends the run.
        steps_per_epoch: Optimizer steps in one pass over the training split; may be a fraction.
        decisions: What was chosen and what was asked for, each after those it depends on.
    """

    config: ResolvedConfig
    steps: int | None
    minutes: float | None
    steps_per_epoch: float
    decisions: tuple[Decision, ...]

    @property
    def epochs(self) -> float | None:
        """Length of the run in passes over the training split."""
        return None if self.steps is None else self.steps / self.steps_per_epoch

    def progress(self, step: int, elapsed_s: float, reserve_s: float = 0.0) -> float:
        """Fraction of the run that is done after `step` steps and `elapsed_s` seconds.

        Args:
            step: Optimizer steps done.
            elapsed_s: Working time so far, evaluation included.
            reserve_s: Time that a time limit must leave for the last evaluation.
        """
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.minutes is not None
        return min(1.0, elapsed_s / max(1.0, self.minutes * 60.0 - reserve_s))


@dataclass(frozen=True)
class Forecast:
    """The expected course of a run at a measured speed.

    Attributes:
        steps: Optimizer steps of the whole run.
        epochs: Passes over the training split.
        seconds: Seconds from now to the end, evaluation included.
        images_per_s: Training throughput of all processes together.
    """

    steps: int
    epochs: float
    seconds: float
    images_per_s: float


def plan(config: TrainConfig, data: DataFacts, model: ModelFacts, machine: Machine) -> Plan:
    """Choose what `config` leaves open.

    Args:
        config: What is asked for.
        data: The training split.
        model: What the run starts from.
        machine: Where it runs.

    Raises:
        ConfigError: more than one length was given, or a number makes no sense.
    """
    check_settings(config)
    # The order below is the order of dependence: each choice may use those before it.
    made = _Decisions(config)
    batch, accumulate = _step_size(config, data, model, machine, made)
    images = batch * accumulate * machine.processes
    # The loader drops a last, smaller batch unless it is the only one.
    steps_per_epoch = max(1, data.images // batch) / (accumulate * machine.processes)
    steps = _length(config, data, steps_per_epoch, images, made)
    epochs = None if steps is None else steps / steps_per_epoch
    lr = made.make("lr", "--lr", *rules.lr(images, model))
    backbone = made.make(
        "backbone_lr_factor", "--set train.backbone_lr_factor", *rules.backbone_lr_factor(model)
    )
    warmup, reason = rules.WARMUP_STEPS, "then the full learning rate"
    # Without this a run of 50 steps would never reach its learning rate.
    if steps is not None and WARMUP_SHARE * steps < warmup:
        warmup, reason = math.ceil(WARMUP_SHARE * steps), "a tenth of this short run"
    chosen = ResolvedConfig(**_given(config))
    chosen = dataclasses.replace(
        chosen,
        images_per_step=images,
        batch=batch,
        accumulate=accumulate,
        lr=lr,
        backbone_lr_factor=backbone,
        steps=steps if config.epochs is None else None,  # exactly one length is kept
        warmup_steps=made.make("warmup_steps", "--set train.warmup_steps", warmup, reason),
        ema_decay=made.make(
            "ema_decay",
            "--set train.ema_decay",
            rules.EMA_DECAY,
            "published; it covers at most a ninth of the steps so far",
        ),
        class_loss=made.make("class_loss", "--set train.class_loss", *rules.class_loss(model)),
        augment=made.make("augment", "--augment", *rules.augment(data, epochs)),
        image_size=made.make("image_size", "--image-size", *rules.image_size(data, model)),
        freeze=made.make("freeze", "--freeze", *rules.freeze()),
        workers=made.make("workers", "--set train.workers", *rules.workers(data, machine)),
    )
    minutes = config.minutes if steps is None else None
    return Plan(chosen, steps, minutes, steps_per_epoch, tuple(made.decisions))


class _Decisions:
    """Collects the decisions as they are made."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.decisions: list[Decision] = []

    def make(self, name: str, option: str, choice: V, reason: str) -> V:
        """The value that was asked for under that name, else `choice`."""
        asked = getattr(self._config, name)
        value: V = choice if asked is None else asked
        why = reason if asked is None else AS_ASKED
        self.decisions.append(Decision(name, value, why, option))
        return value


def _step_size(
    config: TrainConfig, data: DataFacts, model: ModelFacts, machine: Machine, made: _Decisions
) -> tuple[int, int]:
    """Images per forward pass and passes per step of each process."""
    images, reason = rules.images_per_step(data, model, machine)
    if config.images_per_step is not None:
        images, reason = config.images_per_step, AS_ASKED
    batch, accumulate, why = _split(config, images, machine)
    actual = batch * accumulate * machine.processes
    if actual != images:  # a batch or an accumulation that was asked for overrides the rule
        reason = f"batch x accumulate{' x processes' if machine.processes > 1 else ''}"
    made.decisions.append(
        Decision("images_per_step", actual, reason, "--set train.images_per_step")
    )
    made.make("batch", "--batch", batch, why)
    made.make("accumulate", "--accumulate", accumulate, why)
    return batch, accumulate


def _split(config: TrainConfig, images: int, machine: Machine) -> tuple[int, int, str]:
    """Images per forward pass, passes per step, and why, for `images` per step of all processes.

    A rule's number of images may be missed a little; one that was asked for must be met exactly.
    """
    exact, processes = config.images_per_step is not None, machine.processes
    batch, accumulate = config.batch, config.accumulate
    # Both were asked for, so there is nothing to choose.
    if batch is not None and accumulate is not None:
        return batch, accumulate, ""
    if batch is not None:
        if not exact:
            return batch, 1, "one pass per step"
        _check_divisible(images, batch * processes, "batch x processes")
        why = f"{images} images per step, {batch * processes} at a time"
        return batch, images // (batch * processes), why
    if accumulate is not None:
        if exact:
            _check_divisible(images, accumulate * processes, "accumulate x processes")
        why = f"{images} images per step in {accumulate} passes"
        return max(1, images // (accumulate * processes)), accumulate, why
    _check_divisible(images, processes, "the number of processes")
    return rules.split(images // processes, machine)


def _check_divisible(images: int, by: int, what: str) -> None:
    if images % by:
        raise ConfigError(
            f"images_per_step = {images} is not a multiple of {what}, {by}",
            "choose another images_per_step, or give batch and accumulate",
        )


def _length(
    config: TrainConfig, data: DataFacts, steps_per_epoch: float, images: int, made: _Decisions
) -> int | None:
    """Optimizer steps of the run; None where a time limit ends it."""
    if config.steps is not None:
        made.decisions.append(Decision("steps", config.steps, AS_ASKED, "--steps"))
        return config.steps
    if config.epochs is not None:
        steps = max(1, math.ceil(config.epochs * steps_per_epoch))
        reason = f"{AS_ASKED}: {steps} step{'' if steps == 1 else 's'} of {images} images"
        made.decisions.append(Decision("epochs", config.epochs, reason, "--epochs"))
        return steps
    if config.minutes is not None:
        reason = f"{AS_ASKED}; the learning rate falls with the elapsed time"
        made.decisions.append(Decision("minutes", config.minutes, reason, "--minutes"))
        return None
    steps, why = rules.steps(steps_per_epoch, data.images)
    made.decisions.append(Decision("steps", steps, why, "--steps, --epochs or --minutes"))
    return steps


def _given(config: TrainConfig) -> dict[str, Any]:
    """The fields that are not left open."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)}
    return {name: value for name, value in values.items() if value is not None}


def filled(config: TrainConfig, earlier: TrainConfig) -> TrainConfig:
    """`config`, its open fields as an earlier plan chose them; a new length replaces the old."""
    lengths = {"steps", "epochs", "minutes"}
    given = _given(config).keys()
    # `--epochs` on resume must not contradict the `--steps` of the first session.
    kept = lengths if given & lengths else set()
    values = {n: v for n, v in _given(earlier).items() if n not in given and n not in kept}
    return dataclasses.replace(config, **values)


def check_settings(config: TrainConfig) -> None:
    """Raises ConfigError where settings contradict each other or make no sense."""
    lengths = {"steps": config.steps, "epochs": config.epochs, "minutes": config.minutes}
    given = {name: value for name, value in lengths.items() if value is not None}
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given)} both set the length of the run", "give one of them"
        )
    positive = {
        **given, "images_per_step": config.images_per_step, "batch": config.batch,
        "accumulate": config.accumulate, "lr": config.lr,
    }  # fmt: skip
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{name} = {value}: must be greater than 0")
    if config.cached_views and config.freeze != "backbone":
        raise ConfigError("train.cached_views needs a frozen backbone", "add --freeze backbone")
    # Cached batches are fixed, but from `mosaic_until` on images must not be mixed any more.
    if config.cached_views and (config.mosaic or config.copy_paste):
        raise ConfigError(
            "train.cached_views repeats its views, but mosaic and copy_paste stop during the run",
            "set mosaic and copy_paste to 0, or cached_views to 0",
        )
    if config.image_size is not None and config.image_size < MIN_IMAGE_SIZE:
        raise ConfigError(f"image_size = {config.image_size}: must be at least {MIN_IMAGE_SIZE}")


def forecast(
    the_plan: Plan, step_s: float, val_images: int, left_s: float | None = None
) -> Forecast:
    """The expected course of a run.

    Args:
        the_plan: The run.
        step_s: Seconds per optimizer step.
        val_images: Images per evaluation. Their forward pass costs a third of a training step.
        left_s: Seconds to the end in a run with a time limit; None for the whole limit.
    """
    config = the_plan.config
    images_per_s = config.images_per_step / max(step_s, 1e-9)
    evaluation_s = val_images / (3 * images_per_s)
    between = the_plan.steps_per_epoch * config.eval_every_epochs
    share = rules.EVALUATION_SHARE
    # Evaluations are as frequent as asked for, or as their share of the time allows.
    step_with_evaluation_s = step_s + min(evaluation_s / between, step_s * share / (1 - share))
    if the_plan.steps is not None:
        steps, seconds = the_plan.steps, the_plan.steps * step_with_evaluation_s + evaluation_s
    else:
        assert the_plan.minutes is not None
        seconds = the_plan.minutes * 60.0 if left_s is None else left_s
        steps = max(1, round(max(0.0, seconds - evaluation_s) / step_with_evaluation_s))
    return Forecast(steps, steps / the_plan.steps_per_epoch, seconds, images_per_s)


def evaluation_due(
    elapsed_s: float, evaluating_s: float, last_s: float | None, epochs_it_takes: float
) -> bool:
    """Whether evaluating now keeps evaluation within its share of the time.

    Args:
        elapsed_s: Seconds of the run so far.
        evaluating_s: The part of them that was spent on evaluation.
        last_s: Seconds of the last evaluation; None before the first.
        epochs_it_takes: Validation images over training images seen so far, from which the cost of
            the first evaluation is estimated.
    """
    guess = elapsed_s * epochs_it_takes / 3  # a forward pass costs a third of a training step
    cost = guess if last_s is None else last_s
    return evaluating_s + cost <= rules.EVALUATION_SHARE * (elapsed_s + cost)
