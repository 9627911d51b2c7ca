"""What happens in a training run, as frozen values: `fit()` yields them and the caller shows them.

Annotations are the only use of the imported types, so that the loggers, whose table the command
line reads for its help, can be imported without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from dino_core.checkpoints.surgery import TransferReport
    from dino_core.config import ModelConfig, PreprocessConfig, ResolvedConfig
    from dino_core.engine.planning.plan import Forecast, Plan
    from dino_core.engine.planning.probe import Trial
    from dino_core.engine.summary import RunSummary
    from dino_core.evaluation.coco_metrics import Metrics


@dataclass(frozen=True)
class RunPlanned:
    """Everything is decided and checked, and nothing has been written yet.

    Attributes:
        plan: Length of the run and its decisions, with reasons.
        out: The run folder, which is created after this event.
        config: The recipe with every choice made.
        model: The network, with the number of classes of this data set.
        preprocess: How an image becomes the network's input.
        parameters: Number of trainable parameters.
        train_images: Images in the training split.
        val_images: Images in the validation split; 0 means that nothing is evaluated.
        most_objects: Largest number of objects in one image.
        suggested_queries: Number of queries with which the model could find all objects of every
            image; None where the model's own number suffices.
        device: Where the run computes, e.g. "cpu".
        dtype: Data type inside the network, "fp32" or "bf16".
        transfer: What was copied from the starting weights; None from scratch and on resume.
        resumed_step: Optimizer steps that earlier sessions did.
        trial: Result of the worst batch; None where it was not tried, as on resume.
        forecast: Steps and time at the speed of that trial.
        processes: Number of training processes, one per device.
        data_warnings: What was left out or repaired when the data were read, a sentence per kind.
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
    suggested_queries: int | None
    device: str
    dtype: str
    transfer: TransferReport | None
    resumed_step: int
    trial: Trial | None
    forecast: Forecast | None
    processes: int
    data_warnings: tuple[str, ...]


@dataclass(frozen=True)
class StepDone:
    """Means over the optimizer steps since the last report (every `log_every_steps`).

    Attributes:
        step: Optimizer steps done so far.
        steps_total: Optimizer steps of the whole run; None where a time limit ends it.
        epoch: Completed passes over the training split.
        progress: Fraction of the run that is done.
        losses: "total" and the main terms of the loss, means since the last report.
        lr: Current learning rate of the head.
        grad_norm: Gradient norm of the last step, before clipping.
        images_per_s: Training throughput since the last report, without evaluation.
        memory_mb: Peak memory of the process, or of the GPU, in MiB.
        eta_s: Expected seconds to the end of the run.
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
    """The first steps of a run with a time limit show how far it will get.

    Attributes:
        step: Optimizer steps done so far.
        forecast: Steps and epochs of the whole run, and the seconds that are left.
    """

    step: int
    forecast: Forecast


@dataclass(frozen=True)
class EvaluationDone:
    """The model was scored on the validation split.

    Attributes:
        step: Optimizer steps done so far.
        epoch: Completed epochs.
        metrics: The COCO numbers of the evaluation.
        best: Whether it is the best evaluation so far.
        seconds: Duration of the evaluation.
    """

    step: int
    epoch: int
    metrics: Metrics
    best: bool
    seconds: float


@dataclass(frozen=True)
class CheckpointSaved:
    """A model file is on disk, complete."""

    path: Path
    best: bool


@dataclass(frozen=True)
class Warned:
    """Something that a person should know; the run continues.

    For example a step that was left out, an image that cannot be read, or too little memory.
    """

    message: str
    step: int


@dataclass(frozen=True)
class RolledBack:
    """The run returned to its last checkpoint and continues from there more carefully.

    Attributes:
        step: Optimizer steps done at that checkpoint.
        from_step: Optimizer steps done when the run turned back.
        reason: What was wrong with the loss.
        lr: Learning rate of the head from here on, before the schedule's factor. The network
            computes in fp32 from here on.
    """

    step: int
    from_step: int
    reason: str
    lr: float

    @property
    def message(self) -> str:
        """One sentence for the log and the terminal."""
        return (
            f"step {self.from_step}: {self.reason}; back to step {self.step}, "
            f"with lr {self.lr:g} and fp32"
        )


@dataclass(frozen=True)
class PicturesDrawn:
    """Plots or sample images in the run folder were written, with what is known after `step`."""

    paths: tuple[Path, ...]
    step: int


@dataclass(frozen=True)
class RunFinished:
    """The last event of a run that was not interrupted."""

    summary: RunSummary


Event: TypeAlias = (
    RunPlanned
    | SpeedMeasured
    | StepDone
    | EvaluationDone
    | CheckpointSaved
    | Warned
    | RolledBack
    | PicturesDrawn
    | RunFinished
)
