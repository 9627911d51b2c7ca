"""What happens in a training run, as frozen values: `fit()` yields them, others render them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from dino_core.checkpoints.surgery import TransferReport
from dino_core.config import ModelConfig, PreprocessConfig, ResolvedConfig
from dino_core.engine.planning.plan import Forecast, Plan
from dino_core.engine.planning.probe import Trial


@dataclass(frozen=True)
class RunPlanned:
    """Everything is decided and checked; nothing has been written yet.

    Attributes:
        plan: Length and decisions, with reasons.
        out: The run's folder; it is made after this event.
        config: The recipe, every choice made.
        model: The network, with this data's class count.
        preprocess: Its input.
        parameters: Number of trainable parameters.
        train_images: Images in the training split.
        val_images: Images in the validation split; 0 means no evaluation.
        most_objects: In one image; those beyond the model's queries cannot be found.
        device: Where it runs, e.g. "cpu".
        dtype: Arithmetic inside the network, "fp32" or "bf16".
        transfer: What was taken over from the starting weights; None from scratch and on resume.
        resumed_step: Steps that an earlier run had done already.
        memory_kept: Whether the allocator was told to keep freed memory.
        trial: What the worst batch took; None where it was not tried, as on resume.
        forecast: Steps and time at the speed of that trial.
        processes: Training processes, one a device.
    """

    plan: Plan
    out: Path
    config: ResolvedConfig
    model: ModelConfig
    preprocess: PreprocessConfig
    parameters: int
    train_images: int
    val_images: int
    most_objects: int
    device: str
    dtype: str
    transfer: TransferReport | None
    resumed_step: int
    memory_kept: bool
    trial: Trial | None
    forecast: Forecast | None
    processes: int


@dataclass(frozen=True)
class StepDone:
    """One optimiser step that is reported (every `log_every_steps`).

    Attributes:
        step: Steps done so far.
        steps_total: Steps in all; None when the clock decides.
        epoch: Passes over the training split that are complete.
        progress: Fraction of the run that is done.
        losses: "total" and the main terms, means since the last report.
        lr: The head's present rate.
        grad_norm: Gradient norm before clipping, of this step.
        images_per_s: Training throughput since the last report, evaluation not counted.
        memory_mb: Peak memory of the process, or of the GPU.
        eta_s: Expected seconds to the end.
    """

    step: int
    steps_total: int | None
    epoch: int
    progress: float
    losses: Mapping[str, float]
    lr: float
    grad_norm: float
    images_per_s: float
    memory_mb: float
    eta_s: float


@dataclass(frozen=True)
class SpeedMeasured:
    """The clock decides, and its first steps tell how far the run will get.

    Attributes:
        step: Steps done so far.
        forecast: Steps and epochs of the whole run, seconds from now to its end.
    """

    step: int
    forecast: Forecast


@dataclass(frozen=True)
class EvaluationDone:
    """The averaged model was scored on the validation split.

    Attributes:
        step: Steps done so far.
        epoch: Epochs complete.
        metrics: What the evaluation found (`.ap`, `.ap50`, `.per_class`, ...).
        best: Whether it is the best so far.
        seconds: How long it took.
    """

    step: int
    epoch: int
    metrics: Any
    best: bool
    seconds: float


@dataclass(frozen=True)
class CheckpointSaved:
    """A model file is on disk, complete."""

    path: Path
    best: bool


@dataclass(frozen=True)
class Warned:
    """Something a person should know; the run goes on.

    A step that was left out, an image that cannot be read, a return to the last checkpoint, memory
    that did not suffice.
    """

    message: str
    step: int


@dataclass(frozen=True)
class PicturesDrawn:
    """Pictures in the run's folder are new, or drawn anew with what is known after `step`."""

    paths: tuple[Path, ...]
    step: int


@dataclass(frozen=True)
class RunFinished:
    """The end. `summary` is what summary.json holds."""

    out: Path
    summary: Mapping[str, Any]


Event: TypeAlias = (
    RunPlanned
    | SpeedMeasured
    | StepDone
    | EvaluationDone
    | CheckpointSaved
    | Warned
    | PicturesDrawn
    | RunFinished
)
