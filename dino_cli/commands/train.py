"""`dino train`: settings from every source into one training run, shown as it happens."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dino_cli import errors, model_view, options, output, processes, render
from dino_cli.settings import Settings, model_input, model_overrides, resolve_settings
from dino_core.engine.loggers.table import LOGGER_NAMES
from dino_core.errors import ConfigError
from dino_core.process import started_by_torchrun
from dino_core.recipes import find_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dino_core.data.check.findings import Finding
    from dino_core.data.records import DatasetIndex

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
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA", help="COCO, YOLO, Pascal VOC or CSV data.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME|FILE", help="Default: the recipe's model, else dino-nano."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="FILE|none", help="Start; default: the model's own."),
    ] = None,
    class_alias: Annotated[
        list[str] | None,
        typer.Option(
            "--class-alias",
            metavar="NEW=OLD",
            help="DATA's class NEW starts as the model's OLD; repeatable.",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            metavar="NAME",
            help="Any timm network with feature maps, in place of the model's; random weights.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Length of run.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Length of run.")] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.01, help="Length of run.")
    ] = None,
    batch: Annotated[
        str, typer.Option("--batch", metavar="auto|N", help="Images a forward pass.")
    ] = "auto",
    accumulate: Annotated[
        int | None, typer.Option("--accumulate", min=1, help="Forward passes a step.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Rate of the head.")] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=32, help="Long side in pixels.")
    ] = None,
    dtype: Annotated[
        Literal["auto", "fp32", "bf16"] | None, typer.Option("--dtype", help="Arithmetic.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option("--devices", min=1, help="So many GPUs (processes) here.")
    ] = None,
    freeze: Annotated[
        Literal["none", "backbone"] | None, typer.Option("--freeze", help="Keep this part as is.")
    ] = None,
    ema: Annotated[bool | None, typer.Option("--ema/--no-ema", help="Average the weights.")] = None,
    augment: Annotated[
        Literal["none", "default", "strong", "published"] | None,
        typer.Option("--augment", help="Random changes of the training images."),
    ] = None,
    patience: Annotated[
        int | None, typer.Option("--patience", min=1, help="Evaluations without gain, then stop.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything random.")] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config", metavar="RECIPE|FILE.toml", help="Published recipe, or tables train, model."
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Any setting; repeatable.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with this run folder.")
    ] = None,
    logger: Annotated[
        str | None,
        typer.Option(
            "--logger",
            metavar="NAMES",
            help=f"Comma-separated: {', '.join(LOGGER_NAMES)}.",
        ),
    ] = None,
    val_split: Annotated[
        float | None,
        typer.Option("--val-split", min=0, max=0.9, help="Share held out when DATA has no val."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would be done and why; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: as JSON.")] = False,
    form: options.Format = None,
    out: options.Out = None,
) -> None:
    """Train or fine-tune a model on DATA; `best.safetensors` in the run folder is the result."""
    if resume is not None and (config is not None or out is not None):
        raise ConfigError(
            "--resume takes its settings and folder from the run", "no --config, --out"
        )
    if as_json and not plan:
        raise ConfigError("--json goes with --plan", "a run writes metrics.jsonl and summary.json")
    if backbone is not None and resume is not None:
        raise ConfigError("--resume takes the backbone from the run", "leave out --backbone")
    if plan and resume is not None:
        raise ConfigError("--plan is for a new run", f"{resume}/config.toml holds that one's plan")
    given = {
        "epochs": epochs, "steps": steps, "minutes": minutes, "batch": _batch(batch),
        "accumulate": accumulate, "lr": lr, "image_size": image_size, "dtype": dtype,
        "device": device, "freeze": freeze, "ema": ema, "augment": augment, "patience": patience,
        "seed": seed, "val_split": val_split, "loggers": _loggers(logger),
        "class_aliases": class_alias or None,
    }  # fmt: skip
    source = _source(config, resume)
    where = str(resolve_settings(source, given, assignments or []).train.device)
    if devices is not None and started_by_torchrun():
        processes.check_devices(devices)
    elif devices is not None and devices > 1 and not plan:
        raise typer.Exit(processes.launch(devices, where, context.obj))
    from dino_core.data.check.run import quick_findings

    with processes.one_of_several(where):
        restarted = processes.decided_once(lambda: processes.restarted_run(out), where)
        resume = resume or (Path(restarted) if restarted else None)
        settings = resolve_settings(_source(config, resume), given, assignments or [])
        name = model or settings.recipe.model or DEFAULT_MODEL
        dataset = _load(data, form, resume, settings)
        if resume is None:
            model_view.ensure(weights or name)
        own_input = model_input(settings, name, weights, resume is not None)
        findings = quick_findings(dataset, own_input)
        if plan:
            _plan(dataset, findings, settings, name, weights, backbone, out, as_json, devices)
            return
        _show_data(dataset, findings)
        _train(dataset, settings, name, weights, backbone, resume, out)


def _source(config: str | None, resume: Path | None) -> Path | None:
    """The file of settings: the run's own, or `--config`, a file or a recipe's name."""
    if resume is not None:
        return _run_config(resume)
    return find_recipe(config) if config else None


def _batch(text: str) -> int | None:
    """`auto` lets the plan choose. Raises ConfigError where it is neither that nor a number."""
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


def _load(
    data: Path | None, form: str | None, resume: Path | None, settings: Settings
) -> DatasetIndex:
    """The data set, named on the command line or by the run that goes on."""
    from dino_core.data.load import load_dataset

    if data is None:
        if resume is None or "path" not in settings.data:
            raise ConfigError("no data given", "dino train DATA, a folder or file")
        data, form = Path(str(settings.data["path"])), form or str(settings.data["format"])
    train = settings.train
    return load_dataset(data, form, val_split=train.val_split, seed=train.seed)


def _show_data(dataset: DatasetIndex, findings: Sequence[Finding]) -> None:
    from dino_cli.commands.check import show_findings
    from dino_cli.train_view import data_lines

    for line in data_lines(dataset):
        render.note(line)
    show_findings(findings, dataset.root, sys.stderr)


def _plan(
    dataset: DatasetIndex,
    findings: Sequence[Finding],
    settings: Settings,
    model: str,
    weights: str | None,
    backbone: str | None,
    out: Path | None,
    as_json: bool,
    devices: int | None,
) -> None:
    """Answer `--plan`, for so many processes."""
    from dino_cli.plan_report import print_plan
    from dino_core.engine.fit import plan_run
    from dino_core.engine.request import RunRequest

    request = RunRequest(
        settings.train,
        dataset,
        out or output.free_path("train"),
        model=model,
        weights=weights,
        model_config=model_overrides(settings, model, weights, backbone),
        processes=devices,
    )
    event = plan_run(request)
    print_plan(event, dataset, findings, as_json)


def _train(
    dataset: DatasetIndex,
    settings: Settings,
    model: str,
    weights: str | None,
    backbone: str | None,
    resume: Path | None,
    out: Path | None,
) -> None:
    from dino_cli.train_view import train_view
    from dino_core.engine.events import CheckpointSaved, StepDone
    from dino_core.engine.fit import run_events
    from dino_core.engine.request import RunRequest
    from dino_core.engine.run_folder import RunFolder

    model_config = None if resume else model_overrides(settings, model, weights, backbone)
    with _folder(resume or out, settings.train.device) as folder:
        request = RunRequest(
            settings.train,
            dataset,
            folder.path,
            model=model,
            weights=weights,
            model_config=model_config,
            resume=resume is not None,
        )
        try:
            with (
                _ended_as_by_interrupt(),
                train_view() as view,
                contextlib.closing(run_events(request)) as events,
            ):
                for event in events:
                    if isinstance(event, (StepDone, CheckpointSaved)):
                        folder.keep()
                    view.show(event)
        except KeyboardInterrupt:
            if not RunFolder(folder.path).state.is_file():
                raise
            folder.keep()
            render.note(f"interrupted; go on with: dino train --resume {folder.path}")
            raise typer.Exit(errors.INTERRUPTED) from None


@contextlib.contextmanager
def _folder(out: Path | None, device: str) -> Iterator[output.OutputFolder]:
    """The run's folder, which process 0 of several chooses and makes."""
    with contextlib.ExitStack() as stack:
        made: list[output.OutputFolder] = []

        def make() -> str:
            made.append(stack.enter_context(output.output_folder(out, "train")))
            return str(made[0].path)

        path = processes.decided_once(make, device)
        yield made[0] if made else output.OutputFolder(Path(path))


@contextlib.contextmanager
def _ended_as_by_interrupt() -> Iterator[None]:
    """SIGTERM (schedulers, torchrun) and SIGHUP (the terminal is gone) end a run as Ctrl-C does.

    One that is ignored stays so: `nohup` wants no SIGHUP, a script's `&` no SIGINT.
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
