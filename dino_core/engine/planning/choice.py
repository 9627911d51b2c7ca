"""From what is asked for to a plan that fits this machine: plan, try the worst batch, plan anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from dino_core.config import ResolvedConfig, TrainConfig
from dino_core.data.augment.mixing import counts_when_mixed
from dino_core.data.batching import ShapeBatches
from dino_core.data.records import DatasetIndex
from dino_core.engine.parallel.collectives import all_true
from dino_core.engine.planning.facts import Machine, boxes_of_images, data_facts, model_facts
from dino_core.engine.planning.plan import Plan, plan
from dino_core.engine.planning.probe import Trial, try_out, worst_batch
from dino_core.engine.setup import Start, choose_dtype, freeze
from dino_core.errors import DinoError


def choose(
    config: TrainConfig,
    dataset: DatasetIndex,
    start: Start,
    machine: Machine,
    device: torch.device,
    sampler_of: Callable[[ResolvedConfig, Start], ShapeBatches],
    *,
    new: bool,
) -> tuple[Plan, Start, Trial | None]:
    """The plan, the start at the planned input size, and what the worst batch showed.

    A batch that nobody gave is halved, and the passes a step doubled, until it fits. Of one that
    was given, parts go through one after the other.

    Args:
        config: What is asked for.
        dataset: The data.
        start: The model, on its device, at its own input size.
        machine: Where the run goes on.
        device: The model's.
        sampler_of: The batches of a recipe.
        new: Whether the run starts; one that goes on keeps what was chosen then.

    Raises: DinoError when not even one image fits.
    """
    facts, about = data_facts(dataset, start.preprocess), model_facts(start)
    the_plan = plan(config, facts, about, machine)
    model, resolved = start.model, the_plan.config
    model.set_gradient_checkpointing(resolved.gradient_checkpointing)
    freeze(model, resolved.freeze)
    if not new:
        return replace(the_plan, decisions=()), start, None
    start = start.at_size(resolved.image_size)
    if not config.probe or config.shard == "fsdp":  # whole, the model might not fit
        return the_plan, start, None
    dtype = choose_dtype(config, device)
    boxes = counts_when_mixed(
        boxes_of_images(dataset.splits["train"]), config.mosaic, config.copy_paste
    )
    at_a_time, shrinks = resolved.batch, config.batch is None and config.accumulate is None
    while True:
        sampler = sampler_of(the_plan.config, start)
        worst = worst_batch(sampler, boxes, model.config.dn_number)
        at_a_time = min(at_a_time, worst.images)
        trial = try_out(model, the_plan.config, worst, at_a_time, device, dtype)
        if all_true(trial is not None, device):
            return the_plan, start, trial
        if at_a_time == 1:
            height, width = worst.size_hw
            raise DinoError(
                f"out of memory with {at_a_time} images of {height}x{width} at a time, tried "
                "before the first step",
                "a smaller --batch or --image-size, or --set train.gradient_checkpointing=true",
            )
        at_a_time = -(-at_a_time // 2)
        if shrinks:
            the_plan = plan(config, facts, about, replace(machine, fits=at_a_time))
