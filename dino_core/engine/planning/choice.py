"""From a request to a plan that fits in memory: plan, try the worst batch, and plan again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dino_core.config import PreprocessConfig, TrainConfig
from dino_core.data.augment.mixing import counts_when_mixed
from dino_core.data.records import DatasetIndex
from dino_core.engine.batches import training_loader
from dino_core.engine.parallel.collectives import all_true
from dino_core.engine.planning.facts import (
    DataFacts,
    Machine,
    ModelFacts,
    boxes_of_images,
    data_facts,
    model_facts,
)
from dino_core.engine.planning.plan import Plan, plan
from dino_core.engine.planning.probe import Probe, Trial, WorstBatch, worst_batch
from dino_core.engine.start import Start
from dino_core.errors import DinoError


@dataclass(frozen=True)
class Planner:
    """Plans one request on one machine, again wherever the worst batch does not fit.

    Attributes:
        config: What is asked for.
        dataset: The data set.
        data: Facts about it, at the model's own input size.
        model: Facts about the model.
        machine: Facts about the machine.
    """

    config: TrainConfig
    dataset: DatasetIndex
    data: DataFacts
    model: ModelFacts
    machine: Machine

    @classmethod
    def of(
        cls, config: TrainConfig, dataset: DatasetIndex, start: Start, machine: Machine
    ) -> Planner:
        """Measure the data and the model; `start` has the model's own input size."""
        data = data_facts(dataset, start.preprocess)
        return cls(config, dataset, data, model_facts(start), machine)

    def plan(self, fits: int | None = None) -> Plan:
        """The plan, where at most `fits` images fit in a forward pass; None if that is unknown."""
        return plan(self.config, self.data, self.model, replace(self.machine, fits=fits))

    def plan_that_fits(
        self, first: Plan, probe: Probe, preprocess: PreprocessConfig
    ) -> tuple[Plan, Trial]:
        """The plan, changed until its worst batch fits in memory, and the trial of that batch.

        A batch size that the plan chose is halved, with twice the passes per step. A batch size
        that was asked for stays, and its batches go through the network in parts.

        Args:
            first: The plan before anything was tried.
            probe: Tries batches on the model.
            preprocess: The model's input at the planned size.

        Raises:
            DinoError: not even one image fits.
        """
        # Somebody who sets the batch size wants its steps, not a changed plan.
        may_shrink = self.config.batch is None and self.config.accumulate is None
        the_plan, at_a_time = first, first.config.batch
        # Ends after log2(batch) rounds, since each halves what goes through at a time.
        while True:
            worst = self._worst_batch(the_plan, probe, preprocess)
            # The largest batch may be smaller than a full one, on a small data set.
            at_a_time = min(at_a_time, worst.images)
            trial = probe.try_out(the_plan.config, worst, at_a_time)
            # All processes decide together: they must end up with the same plan.
            fits = all_true(trial is not None, probe.device)
            if fits and trial is not None:
                return the_plan, trial
            if at_a_time == 1:
                raise _nothing_fits(worst)
            at_a_time = -(-at_a_time // 2)
            if may_shrink:
                the_plan = self.plan(fits=at_a_time)

    def _worst_batch(
        self, the_plan: Plan, probe: Probe, preprocess: PreprocessConfig
    ) -> WorstBatch:
        loader = training_loader(the_plan.config, self.dataset, preprocess, probe.device)
        boxes = counts_when_mixed(
            boxes_of_images(self.dataset.splits["train"]),
            self.config.mosaic,
            self.config.copy_paste,
        )
        return worst_batch(loader.mixed_sampler(), boxes, probe.model.config.dn_number)


def _nothing_fits(worst: WorstBatch) -> DinoError:
    height, width = worst.size_hw
    return DinoError(
        f"out of memory with 1 images of {height}x{width} at a time, tried before the first step",
        "a smaller --batch or --image-size, or --set train.gradient_checkpointing=true",
    )
