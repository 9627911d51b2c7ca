"""From a request to a run: everything is checked, chosen and built here, and nothing is written.

Read `build_run` from top to bottom: check the request, find the run that it resumes, choose device
and data type, load the starting weights, plan, try the worst batch, and put the run together.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace

import torch

from dino_core.config import TrainConfig
from dino_core.data.records import DatasetIndex
from dino_core.engine.batches import BatchStream, cached_loader, training_loader
from dino_core.engine.clock import RunClock
from dino_core.engine.loggers.group import check_loggers
from dino_core.engine.model_setup import average_of, check_options, choose_dtype, freeze
from dino_core.engine.optimizer import build_optimizer
from dino_core.engine.parallel.collectives import gather_texts, is_distributed, rank, world_size
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
from dino_core.errors import ConfigError, DataError
from dino_core.process import started_by_torchrun


@dataclass(frozen=True)
class _Checked:
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
    checked = _checked(request)
    # Before the network is built, since new heads are initialized at random, equally in all
    # processes.
    seed_everything(checked.config.seed)
    start = _start(checked)
    start.model.backbone.fold_batch_norm()  # saves two passes over every feature map
    # The optimizer and the average are made later, from the parameters on the device.
    start.model.to(checked.device)
    planned = _planned(checked, start)
    return _assembled(checked, planned)


def accumulation(wanted: int, planned_processes: int, processes: int) -> int:
    """Batches per step that keep its images where a run is resumed with other processes."""
    # The planned number of images per step is kept as nearly as possible, so the learning rate
    # still fits.
    return max(1, round(wanted * planned_processes / processes))


def _checked(request: RunRequest) -> _Checked:
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
    _check_same_data(dataset, device)
    return _Checked(request, config, saved, counters, device, choose_dtype(config, device))


def _check_same_data(dataset: DatasetIndex, device: torch.device) -> None:
    """Raises DataError where the processes have read different data.

    An image that only one process cannot read, say on a slow network disk, would give it fewer
    batches than the others, which would then wait for it forever.
    """
    digest = hashlib.sha256(repr(dataset.classes).encode())
    for split, records in dataset.splits.items():
        digest.update(f"{split} {len(records)}".encode())
        for record in records:
            digest.update(
                f"{record.path.name} {len(record.class_indices)}".encode("utf-8", "surrogatepass")
            )
    if len(set(gather_texts(digest.hexdigest(), device))) > 1:
        raise DataError(
            f"{dataset.root}: the processes have read different images or labels",
            "see that all machines have the same files; `dino check` on each shows what differs",
        )


def _check_process_group() -> None:
    """Raises ConfigError where torchrun started several processes that do not train together."""
    if started_by_torchrun() and int(os.environ["WORLD_SIZE"]) > 1 and not is_distributed():
        raise ConfigError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but they are no process group",
            "with dino_core.engine.parallel.group.process_group(): train(...)",
        )


def _start(checked: _Checked) -> Start:
    request = checked.request
    if checked.saved is not None:
        return resumed_start(checked.saved.meta)
    return start_from(
        request.model,
        request.weights,
        request.dataset.classes,
        request.model_config,
        checked.config.class_aliases,
    )


def _planned(checked: _Checked, start: Start) -> _Planned:
    """Plan the run and set the model up for it; for a new run, try the worst batch."""
    config, dataset = checked.config, checked.request.dataset
    # A plan may be asked for more processes than run now (`--plan`). A resumed run is planned
    # for those it was started with, so that the plan stays the same.
    processes = checked.request.processes or checked.counters.planned_processes
    planner = Planner.of(config, dataset, start, Machine.here(checked.device, processes))
    plan = planner.plan()
    start.model.set_gradient_checkpointing(plan.config.gradient_checkpointing)
    # Before the trial: frozen parts keep no activations, which decides what fits.
    freeze(start.model, plan.config.freeze)
    if checked.saved is not None:
        # The earlier session made the decisions, tried its worst batch and noted the input size.
        return _Planned(replace(plan, decisions=()), start, None)
    start = start.at_size(plan.config.image_size)
    if not config.probe or config.shard == "fsdp":  # before it is sharded, the model may not fit
        return _Planned(plan, start, None)
    probe = Probe(start.model, checked.device, checked.dtype)
    plan, trial = planner.plan_that_fits(plan, probe, start.preprocess)
    return _Planned(plan, start, trial)


def _assembled(checked: _Checked, planned: _Planned) -> Run:
    """Put the run together, with the saved weights, average and moments on resume."""
    start, counters, dataset = planned.start, checked.counters, checked.request.dataset
    config, folder = planned.plan.config, RunFolder(checked.request.out)
    if planned.trial is not None:
        # From the first step on, instead of learning it from a failed one.
        counters.parts = planned.trial.parts
    stepper = _stepper(checked, planned)
    loader = training_loader(config, dataset, start.preprocess, checked.device)
    if config.cached_views:
        stepper.cache = cached_loader(config, start.preprocess, loader, folder.features)
    batches = stepper.cache or loader
    clock = RunClock(counters, checked.device)
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
    if checked.saved is not None:
        run.saver.saved_step = counters.step
    run.apply_care()
    return run


def _stepper(checked: _Checked, planned: _Planned) -> Stepper:
    """Average and optimizer around the model, with their saved values on resume."""
    model, config = planned.start.model, planned.plan.config
    ema = average_of(model, config, checked.device)
    optimizer = build_optimizer(model, config)
    if checked.saved is not None:
        checked.saved.restore(model, ema, optimizer)
    return Stepper(config, model, ema, optimizer, checked.device, checked.dtype)
