"""The options of `dino train`: one type each, with the help that a user reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dino_cli import data_options
from dino_core.config import MIN_IMAGE_SIZE
from dino_core.engine.loggers.table import LOGGER_NAMES

Data = Annotated[Path | None, data_options.data_argument(show_default=False)]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|FILE",
        help="Model to start from; default: the recipe's, else dino-nano.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FILE|none",
        help="Starting weights, or none for random ones; default: the model's own.",
    ),
]
ClassAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--class-alias",
        metavar="NEW=OLD",
        help="Start DATA's class NEW from the model's class OLD; repeatable.",
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        metavar="NAME",
        help="Replace the model's backbone by any timm network with feature maps; random weights.",
    ),
]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Train for N epochs.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Train for N optimizer steps.")]
Minutes = Annotated[
    float | None, typer.Option("--minutes", min=0.01, help="Train for N minutes of wall time.")
]
Batch = Annotated[
    str, typer.Option("--batch", metavar="auto|N", help="Images per forward pass, per process.")
]
Accumulate = Annotated[
    int | None, typer.Option("--accumulate", min=1, help="Forward passes per optimizer step.")
]
Lr = Annotated[float | None, typer.Option("--lr", help="Learning rate of the head.")]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size", min=MIN_IMAGE_SIZE, help="Long side of the network's input, in pixels."
    ),
]
Dtype = Annotated[
    Literal["auto", "fp32", "bf16"] | None,
    typer.Option("--dtype", help="Data type of the network's computation."),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps."),
]
Devices = Annotated[
    int | None,
    typer.Option("--devices", min=1, help="Number of GPUs (or CPU processes) on this machine."),
]
Freeze = Annotated[
    Literal["none", "backbone"] | None,
    typer.Option("--freeze", help="Part of the network that is not trained."),
]
Ema = Annotated[
    bool | None,
    typer.Option("--ema/--no-ema", help="Keep a moving average of the weights, and use that."),
]
Augment = Annotated[
    Literal["none", "default", "strong", "published"] | None,
    typer.Option("--augment", help="Random changes of the training images."),
]
Patience = Annotated[
    int | None,
    typer.Option("--patience", min=1, help="Stop after N evaluations without a better AP."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed.")]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="RECIPE|FILE.toml",
        help="A published recipe, or a file with the tables train and model.",
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Set any setting; repeatable."),
]
Resume = Annotated[
    Path | None,
    typer.Option("--resume", metavar="RUN", help="Resume the run in this folder."),
]
Logger = Annotated[
    str | None,
    typer.Option(
        "--logger",
        metavar="NAMES",
        help=f"Experiment loggers, comma-separated: {', '.join(LOGGER_NAMES)}.",
    ),
]
ValSplit = Annotated[
    float | None,
    typer.Option(
        "--val-split",
        min=0,
        max=0.9,
        help="Share of the images set apart for validation when DATA has no val split.",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit 3 instead of training on data with errors.")
]
Plan = Annotated[
    bool, typer.Option("--plan", help="Show what would be done and why; write nothing.")
]
PlanJson = Annotated[bool, typer.Option("--json", help="With --plan: print it as JSON.")]
