"""How a training run is built: everything checked and chosen, nothing written."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from dino_core.config import (
    ModelConfig,
    PreprocessConfig,
    ResolvedConfig,
    TrainConfig,
    to_dict,
)
from dino_core.data.augment.mixing import build_mixing
from dino_core.data.augment.transforms import build_transform
from dino_core.data.batching import ShapeBatches
from dino_core.data.dataset import DetectionDataset
from dino_core.data.loader import Loader, LoaderSettings
from dino_core.data.records import DatasetIndex
from dino_core.engine.batches import BatchStream
from dino_core.engine.feature_cache import FeatureCache
from dino_core.engine.loggers.group import check_loggers
from dino_core.engine.optimizer import build_optimizer
from dino_core.engine.parallel.collectives import (
    is_distributed,
    rank,
    world_size,
)
from dino_core.engine.parallel.group import device_of_process
from dino_core.engine.planning.choice import choose
from dino_core.engine.planning.facts import Machine, check_data
from dino_core.engine.planning.plan import check_settings, filled
from dino_core.engine.plots.album import Album
from dino_core.engine.run import Run
from dino_core.engine.run_folder import RunFolder
from dino_core.engine.setup import (
    Start,
    average_of,
    check_options,
    choose_dtype,
    start_from,
)
from dino_core.engine.state import (
    Counters,
    SavedState,
    load_state,
    seed_everything,
)
from dino_core.engine.step import Stepper
from dino_core.errors import ConfigError
from dino_core.models.dino import Dino
from dino_core.process import started_by_torchrun


def prepare(
    config: TrainConfig,
    dataset: DatasetIndex,
    out: Path,
    model: str,
    weights: str | Path | None,
    model_config: ModelConfig | None,
    resume: bool,
    processes: int | None = None,
) -> Run:
    """Check everything, choose what is left open and build everything; nothing is written.

    `processes` plans for another number of them than train; only a plan can be made then.
    """
    check_settings(config)
    check_data(dataset)
    check_loggers(config)
    folder = RunFolder(out)
    saved: SavedState | None = None
    if started_by_torchrun() and int(os.environ["WORLD_SIZE"]) > 1 and not is_distributed():
        raise ConfigError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but they are no process group",
            "with dino_core.engine.parallel.group.process_group(): train(...)",
        )
    if resume:
        config = filled(config, folder.read_settings().train)
        saved = load_state(folder.state)
        if saved.meta.classes != dataset.classes:
            raise ConfigError(f"{out}: the run was started on data with other classes")
    elif rank() == 0:
        folder.check_new()
    counters = Counters(processes=world_size(), planned_processes=world_size())
    if saved is not None:
        counters = saved.counters
        counters.go_on_with(world_size())
    device, seed = device_of_process(config.device), config.seed
    check_options(config, device)
    seed_everything(seed)
    if saved is not None:
        start = Start(Dino(saved.meta.model), saved.meta.preprocess, None, "resume")
    else:
        start = start_from(model, weights, dataset.classes, model_config, config.class_aliases)
    start.model.backbone.fold_batch_norm()  # two passes over every map less
    network = start.model.to(device)
    dtype = choose_dtype(config, device)
    machine = Machine.here(device, processes or counters.planned_processes)
    sampler_of = partial(_sampler, dataset=dataset, device=device)
    the_plan, start, trial = choose(
        config, dataset, start, machine, device, sampler_of, new=saved is None
    )
    resolved = the_plan.config
    ema = average_of(network, resolved, device)
    optimizer = build_optimizer(network, resolved)
    if trial is not None:
        counters.parts = trial.parts
    if saved is not None:
        saved.restore(network, ema, optimizer)
        told = saved.meta.provenance
        start = replace(
            start, origin=str(told.get("start", "resume")), history=tuple(told.get("history", ()))
        )
    stepper = Stepper(resolved, network, ema, optimizer, device, dtype)
    loader = _loader(resolved, dataset, start, device)
    if resolved.cached_views:
        kept = folder.features / _fingerprint(resolved, start.preprocess)
        stepper.cache = FeatureCache(kept, loader, resolved.cached_views, seed)
    batches = stepper.cache or loader
    stream = BatchStream(batches, counters.epoch, counters.batch, counters.mixed_batches)
    run = Run(
        dataset=dataset,
        folder=folder,
        plan=the_plan,
        trial=trial,
        start=start,
        stepper=stepper,
        ema=ema,
        stream=stream,
        counters=counters,
        album=Album(folder, dataset, start.preprocess, config.plots and rank() == 0),
        resumed_step=counters.step,
        accumulate=accumulation(resolved.accumulate, counters.planned_processes, world_size()),
        earlier_s=counters.elapsed_s,
        clock_s=counters.elapsed_s,
        saved_step=counters.step if saved is not None else -1,
    )
    run.take_care()
    return run


def accumulation(wanted: int, planned_processes: int, processes: int) -> int:
    """Micro-batches a step that keep its images, where a run goes on with other processes."""
    return max(1, round(wanted * planned_processes / processes))


def _sampler(
    config: ResolvedConfig, start: Start, dataset: DatasetIndex, device: torch.device
) -> ShapeBatches:
    return _loader(config, dataset, start, device).mixed_sampler()


def _loader(
    config: ResolvedConfig, dataset: DatasetIndex, start: Start, device: torch.device
) -> Loader:
    preprocess = start.preprocess
    transform = build_transform(config.augment, preprocess, scale=config.scale_jitter)
    records = dataset.splits["train"]
    mixing = build_mixing(config.mosaic, config.copy_paste, config.augment, preprocess, records)
    images = DetectionDataset(records, preprocess, transform, config.seed, mixing)
    settings = LoaderSettings(
        config.batch,
        seed=config.seed,
        drop_last=True,
        rank=rank(),
        world_size=world_size(),
        workers=config.workers,
        pin_memory=device.type == "cuda",
        skip_unreadable=True,
    )
    return Loader(images, settings)


def _fingerprint(config: ResolvedConfig, preprocess: PreprocessConfig) -> str:
    """A name for all that decides which images stand in which batch, and what they look like."""
    settings = (to_dict(config), to_dict(preprocess), rank(), world_size())
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
