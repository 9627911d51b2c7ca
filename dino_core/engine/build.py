"""From a request to a run: everything is checked, chosen and built here, and nothing is written.

Read `build_run` from top to bottom: check the request, find the run that it resumes, choose device
and data type, load the starting weights, plan, try the worst batch, and put the run together.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from dino_core.config import TrainConfig
from dino_core.engine.batches import BatchStream, cached_loader, training_loader
from dino_core.engine.clock import RunClock
from dino_core.engine.loggers.group import check_loggers
from dino_core.engine.model_setup import average_of, check_options, choose_dtype, freeze
from dino_core.engine.optimizer import build_optimizer
from dino_core.engine.parallel.collectives import is_distributed, rank, world_size
from dino_core.engine.parallel.group import device_of_process
from dino_core.engine.planning.choice import Planner
from dino_core.engine.planning.facts import Machine, check_data
from dino_core.engine.planning.plan import Plan, check_settings, filled
from dino_core.engine.planning.probe import Probe, Trial
from dino_core.engine.plots.album import Album
from dino_core.engine.request import RunRequest
from dino_core.engine.run import Run
from dino_core.engine.run_folder import RunFolder
from dino_core.engine.saver import RunSaver
from dino_core.engine.start import Start, resumed_start, start_from
from dino_core.engine.state import Counters, SavedState, load_state, seed_everything
from dino_core.engine.step import Stepper
from dino_core.errors import ConfigError
from dino_core.process import started_by_torchrun


@dataclass(frozen=True)
class _Ground:
    """What is known about a run before it is planned.

    Attributes:
        request: What was asked for.
        config: The recipe, on resume with the choices of the earlier run.
        saved: The state that the run continues from; None for a new run.
        counters: Where the run is.
        device: Where this process computes.
        dtype: Data type inside the network.
    """

    request: RunRequest
    config: TrainConfig
    saved: SavedState | None
    counters: Counters
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class _Planned:
    """What was chosen: the plan, the start at the planned input size, and the trial, if any."""

    plan: Plan
    start: Start
    trial: Trial | None


def build_run(request: RunRequest) -> Run:
    """Check everything, choose what is left open, and build everything; nothing is written.

    Raises:
        ConfigError, DataError, CheckpointError: settings, data or weights are wrong.
        DinoError: not even one image fits in memory.
    """
    ground = _ground(request)
    # Before the network is built, since new heads are initialized at random, equally in all
    # processes.
    seed_everything(ground.config.seed)
    start = _start(ground)
    start.model.backbone.fold_batch_norm()  # saves two passes over every feature map
    # The optimizer and the average are made later, from the parameters on the device.
    start.model.to(ground.device)
    planned = _planned(ground, start)
    return _assembled(ground, planned)


def accumulation(wanted: int, planned_processes: int, processes: int) -> int:
    """Batches per step that keep its images where a run is resumed with other processes."""
    # The planned number of images per step is kept as nearly as possible, so the learning rate
    # still fits.
    return max(1, round(wanted * planned_processes / processes))


def _ground(request: RunRequest) -> _Ground:
    """Check the request, find the state that it continues from, choose device and data type."""
    config, dataset, folder = request.config, request.dataset, RunFolder(request.out)
    check_settings(config)
    check_data(dataset)
    check_loggers(config)
    _check_process_group()
    saved: SavedState | None = None
    counters = Counters(processes=world_size(), planned_processes=world_size())
    if request.resume:
        # What was chosen at the start stays, even if the rules or the machine are different now.
        config = filled(config, folder.read_settings().train)
        saved = load_state(folder.state)
        # The heads' columns would otherwise silently mean other classes.
        if saved.meta.classes != dataset.classes:
            raise ConfigError(f"{request.out}: the run was started on data with other classes")
        counters = saved.counters
        counters.continue_with(world_size())
    # Other processes may be slower, and would find the folder that rank 0 has just created.
    elif rank() == 0:
        folder.check_new()
    device = device_of_process(config.device)
    check_options(config, device)
    return _Ground(request, config, saved, counters, device, choose_dtype(config, device))


def _check_process_group() -> None:
    """Raises ConfigError where torchrun started several processes that do not train together."""
    if started_by_torchrun() and int(os.environ["WORLD_SIZE"]) > 1 and not is_distributed():
        raise ConfigError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but they are no process group",
            "with dino_core.engine.parallel.group.process_group(): train(...)",
        )


def _start(ground: _Ground) -> Start:
    request = ground.request
    if ground.saved is not None:
        return resumed_start(ground.saved.meta)
    return start_from(
        request.model,
        request.weights,
        request.dataset.classes,
        request.model_config,
        ground.config.class_aliases,
    )


def _planned(ground: _Ground, start: Start) -> _Planned:
    """Plan the run and set the model up for it; for a new run, try the worst batch."""
    config, dataset = ground.config, ground.request.dataset
    # A plan may be asked for more processes than run now (`--plan`). A resumed run is planned
    # for those it was started with, so that the plan stays the same.
    processes = ground.request.processes or ground.counters.planned_processes
    planner = Planner.of(config, dataset, start, Machine.here(ground.device, processes))
    the_plan = planner.plan()
    start.model.set_gradient_checkpointing(the_plan.config.gradient_checkpointing)
    # Before the trial: frozen parts keep no activations, which decides what fits.
    freeze(start.model, the_plan.config.freeze)
    if ground.saved is not None:
        # The earlier session made the decisions, tried its worst batch and noted the input size.
        return _Planned(replace(the_plan, decisions=()), start, None)
    start = start.at_size(the_plan.config.image_size)
    if not config.probe or config.shard == "fsdp":  # before it is sharded, the model may not fit
        return _Planned(the_plan, start, None)
    probe = Probe(start.model, ground.device, ground.dtype)
    the_plan, trial = planner.plan_that_fits(the_plan, probe, start.preprocess)
    return _Planned(the_plan, start, trial)


def _assembled(ground: _Ground, planned: _Planned) -> Run:
    """Put the run together, with the saved weights, average and moments on resume."""
    start, counters, dataset = planned.start, ground.counters, ground.request.dataset
    config, folder = planned.plan.config, RunFolder(ground.request.out)
    if planned.trial is not None:
        # From the first step on, instead of learning it from a failed one.
        counters.parts = planned.trial.parts
    stepper = _stepper(ground, planned)
    loader = training_loader(config, dataset, start.preprocess, ground.device)
    if config.cached_views:
        stepper.cache = cached_loader(config, start.preprocess, loader, folder.features)
    batches = stepper.cache or loader
    clock = RunClock(counters, ground.device)
    run = Run(
        dataset=dataset,
        folder=folder,
        plan=planned.plan,
        trial=planned.trial,
        start=start,
        stepper=stepper,
        stream=BatchStream(batches, counters.epoch, counters.batch, counters.mixed_batches),
        counters=counters,
        clock=clock,
        saver=RunSaver(folder, stepper, counters, clock),
        album=Album(folder, dataset, start.preprocess, config.plots and rank() == 0),
        accumulate=accumulation(config.accumulate, counters.planned_processes, world_size()),
        resumed_step=counters.step,
    )
    # This session's first checkpoint is due only after new steps.
    if ground.saved is not None:
        run.saver.saved_step = counters.step
    run.apply_care()
    return run


def _stepper(ground: _Ground, planned: _Planned) -> Stepper:
    """Average and optimizer around the model, with their saved values on resume."""
    model, config = planned.start.model, planned.plan.config
    ema = average_of(model, config, ground.device)
    optimizer = build_optimizer(model, config)
    if ground.saved is not None:
        ground.saved.restore(model, ema, optimizer)
    return Stepper(config, model, ema, optimizer, ground.device, ground.dtype)
