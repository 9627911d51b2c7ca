"""`dino train`: settings from every source into one training run, shown as it happens."""

from __future__ import annotations

import contextlib
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dino_cli import (
    data_options,
    errors,
    model_view,
    options,
    output,
    processes,
    render,
    train_options,
)
from dino_cli.settings import Settings, model_input, model_overrides, resolve_settings
from dino_core.engine.loggers.table import LOGGER_NAMES
from dino_core.errors import ConfigError, DataError
from dino_core.process import started_by_torchrun
from dino_core.recipes import find_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dino_core.data.check.findings import Finding
    from dino_core.data.records import DatasetIndex
    from dino_core.engine.request import RunRequest

app = typer.Typer(**options.SETTINGS)

DEFAULT_MODEL = "dino-nano"


@app.command(
    epilog=options.examples(
        "dino train data/ --epochs 20",
        "dino train data/ --minutes 10 --batch 4 --set train.warmup_steps=50",
        "dino train data/ --plan --config r50-4scale-12ep",
        "dino train --resume runs/train",
    )
)
def train(
    context: typer.Context,
    data: train_options.Data = None,
    model: train_options.Model = None,
    weights: train_options.Weights = None,
    class_alias: train_options.ClassAlias = None,
    backbone: train_options.Backbone = None,
    epochs: train_options.Epochs = None,
    steps: train_options.Steps = None,
    minutes: train_options.Minutes = None,
    batch: train_options.Batch = "auto",
    accumulate: train_options.Accumulate = None,
    lr: train_options.Lr = None,
    image_size: train_options.ImageSize = None,
    dtype: train_options.Dtype = None,
    device: train_options.Device = None,
    devices: train_options.Devices = None,
    freeze: train_options.Freeze = None,
    ema: train_options.Ema = None,
    augment: train_options.Augment = None,
    patience: train_options.Patience = None,
    seed: train_options.Seed = None,
    config: train_options.Config = None,
    assignments: train_options.Assignments = None,
    resume: train_options.Resume = None,
    logger: train_options.Logger = None,
    val_split: train_options.ValSplit = None,
    strict: train_options.Strict = False,
    plan: train_options.Plan = False,
    as_json: train_options.PlanJson = False,
    format: data_options.Format = None,
    out: options.Out = None,
) -> None:
    """Train or fine-tune a model on DATA; the result is `best.safetensors` in the run folder."""
    given = {
        "epochs": epochs, "steps": steps, "minutes": minutes, "batch": _batch(batch),
        "accumulate": accumulate, "lr": lr, "image_size": image_size, "dtype": dtype,
        "device": device, "freeze": freeze, "ema": ema, "augment": augment, "patience": patience,
        "seed": seed, "val_split": val_split, "loggers": _loggers(logger),
        "class_aliases": class_alias or None,
    }  # fmt: skip
    asked = _Asked(
        data, format, model, weights, backbone, config, given, assignments or [], resume, out,
        strict, plan, as_json, devices,
    )  # fmt: skip
    asked.check()
    # The device decides how processes are joined, so settings are resolved once before that and
    # again inside, where a restarted process may find that it has to resume.
    where = str(asked.settings(resume).train.device)
    if devices is not None and started_by_torchrun():
        processes.check_devices(devices)
    elif devices is not None and devices > 1 and not plan:
        # The processes that are started run this same command line under torchrun's variables, and
        # take the branch above.
        raise typer.Exit(processes.launch(devices, where, context.obj))
    with processes.one_of_several(where):
        _run(asked, where)


@dataclass(frozen=True)
class _Asked:
    """What the command line asks for; `given` holds the options that are training settings."""

    data: Path | None
    format: str | None
    model: str | None
    weights: str | None
    backbone: str | None
    config: str | None
    given: Mapping[str, Any]
    assignments: Sequence[str]
    resume: Path | None
    out: Path | None
    strict: bool
    plan: bool
    as_json: bool
    devices: int | None

    def check(self) -> None:
        """Raises ConfigError for options that do not go together."""
        if self.as_json and not self.plan:
            raise ConfigError(
                "--json goes with --plan", "a run writes metrics.jsonl and summary.json"
            )
        if self.resume is None:
            return
        if self.config is not None or self.out is not None:
            raise ConfigError(
                "--resume takes its settings and folder from the run", "no --config, --out"
            )
        if self.backbone is not None:
            raise ConfigError("--resume takes the backbone from the run", "leave out --backbone")
        if self.plan:
            raise ConfigError(
                "--plan is for a new run", f"{self.resume}/config.toml holds that run's plan"
            )

    def settings(self, resume: Path | None) -> Settings:
        """The settings from every source; those of a resumed run come from its config.toml."""
        if resume is not None:
            source: Path | None = _run_config(resume)
        else:
            source = find_recipe(self.config) if self.config else None
        return resolve_settings(source, self.given, self.assignments)


def _run(asked: _Asked, device: str) -> None:
    """Plan or train in this process, which may be one of several."""
    from dino_core.data.check.run import quick_findings

    # After torchrun has restarted its processes, they resume the run that they were training.
    restarted = processes.decided_once(lambda: processes.restarted_run(asked.out), device)
    resume = asked.resume or (Path(restarted) if restarted else None)
    settings = asked.settings(resume)
    model = asked.model or settings.recipe.model or DEFAULT_MODEL
    dataset = _load(asked, resume, settings)
    # A resumed run has its weights in its state, so nothing needs to be downloaded.
    if resume is None:
        model_view.ensure(asked.weights or model)
    own_input = model_input(settings, model, asked.weights, resume is not None)
    findings = quick_findings(dataset, own_input)
    errors_found = any(finding.severity == "error" for finding in findings)
    if not asked.plan or (asked.strict and errors_found):
        _show_data(dataset, findings)
    if asked.strict and errors_found:
        raise DataError(f"{dataset.root}: errors in the data, and --strict is set", "see above")
    if asked.plan:
        _plan(asked, settings, model, dataset, findings)
        return
    if errors_found and "train" not in dataset.lost_splits:
        render.note("training uses everything else; `dino train --strict` would end here")
    _train(asked, settings, model, dataset, resume)


def _batch(text: str) -> int | None:
    """The number of images; None for `auto`. Raises ConfigError for anything else."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--batch {text}: expected a number or auto", "e.g. --batch 8")
    return int(text)


def _loggers(text: str | None) -> list[str] | None:
    """The names given; None keeps the default. Raises ConfigError with the nearest known one."""
    return None if text is None else options.choices(text, LOGGER_NAMES, "--logger")


def _run_config(run: Path) -> Path:
    path = run / "config.toml"
    if not path.is_file():
        raise ConfigError(
            f"{run}: no training run to resume (no config.toml)",
            "--resume takes a run's folder, e.g. runs/train",
        )
    return path


def _load(asked: _Asked, resume: Path | None, settings: Settings) -> DatasetIndex:
    """The data set, named on the command line or by the run that is resumed."""
    from dino_core.data.load import load_dataset

    data, format = asked.data, asked.format
    if data is None:
        if resume is None or "path" not in settings.data:
            raise ConfigError("no data given", "dino train DATA, a folder or file")
        data, format = Path(str(settings.data["path"])), format or str(settings.data["format"])
    train = settings.train
    # The same fraction and seed split off the same validation images on resume.
    return load_dataset(data, format, val_split=train.val_split, seed=train.seed)


def _show_data(dataset: DatasetIndex, findings: Sequence[Finding]) -> None:
    from dino_cli.findings_view import show_findings
    from dino_cli.train_view import data_lines

    for line in data_lines(dataset):
        render.note(line)
    show_findings(findings, dataset.root, sys.stderr)


def _plan(
    asked: _Asked,
    settings: Settings,
    model: str,
    dataset: DatasetIndex,
    findings: Sequence[Finding],
) -> None:
    """Answer `--plan`."""
    from dino_cli.plan_view import print_plan
    from dino_core.engine.fit import plan_run

    request = _request(asked, settings, model, dataset, asked.out or output.free_path("train"))
    print_plan(plan_run(request), dataset, findings, asked.as_json)


def _request(
    asked: _Asked, settings: Settings, model: str, dataset: DatasetIndex, out: Path
) -> RunRequest:
    """A new run, as it was asked for."""
    from dino_core.engine.request import RunRequest

    return RunRequest(
        settings.train,
        dataset,
        out,
        model=model,
        weights=asked.weights,
        model_config=model_overrides(settings, model, asked.weights, asked.backbone),
        processes=asked.devices if asked.plan else None,
    )


def _train(
    asked: _Asked, settings: Settings, model: str, dataset: DatasetIndex, resume: Path | None
) -> None:
    from dino_core.engine.request import RunRequest
    from dino_core.engine.run_folder import RunFolder

    with _folder(resume or asked.out, settings.train.device) as folder:
        if resume is None:
            request = _request(asked, settings, model, dataset, folder.path)
        else:
            request = RunRequest(settings.train, dataset, folder.path, resume=True)
        try:
            _show(request, folder)
        except KeyboardInterrupt:
            # Interrupted before the run has begun: there is nothing to keep or to resume.
            if not RunFolder(folder.path).state.is_file():
                raise
            folder.keep()
            render.note(f"interrupted; resume with: dino train --resume {folder.path}")
            raise typer.Exit(errors.INTERRUPTED) from None


def _show(request: RunRequest, folder: output.OutputFolder) -> None:
    """Train, and show each event; closing the generator saves the state."""
    from dino_cli.train_view import train_view
    from dino_core.engine.events import CheckpointSaved, StepDone
    from dino_core.engine.fit import run_events

    with (
        _interrupted_by_signals(),
        train_view() as view,
        # Innermost, so the state is saved while signals are still handled and the view can show it.
        contextlib.closing(run_events(request)) as events,
    ):
        for event in events:
            # From the first step on the folder is worth keeping, even if the run fails.
            if isinstance(event, (StepDone, CheckpointSaved)):
                folder.keep()
            view.show(event)


@contextlib.contextmanager
def _folder(out: Path | None, device: str) -> Iterator[output.OutputFolder]:
    """The run's folder, which process 0 of several chooses and creates."""
    with contextlib.ExitStack() as stack:
        made: list[output.OutputFolder] = []

        def make() -> str:
            made.append(stack.enter_context(output.output_folder(out, "train")))
            return str(made[0].path)

        path = processes.decided_once(make, device)
        yield made[0] if made else output.OutputFolder(Path(path))


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM (schedulers, torchrun) and SIGHUP (a closed terminal) end a run as Ctrl-C does.

    A signal that is ignored stays ignored, as `nohup` wants for SIGHUP.
    """
    previous = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            previous[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
