"""`dino models`: lists, downloads, describes, verifies and imports models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_cli import errors, model_view, options, render
from dino_core.errors import ConfigError

if TYPE_CHECKING:
    from dino_core.checkpoints.io import Checkpoint
    from dino_core.errors import CheckpointError

app = typer.Typer(**options.SETTINGS, invoke_without_command=True)

_NO_CHECKSUM = "ok, but the file carries no checksum: a changed byte may go unnoticed"

Name = Annotated[str, typer.Argument(metavar="MODEL", help="Model name or model file.")]
EveryFile = Annotated[
    bool,
    typer.Option("--all", help="List every published file, not only one per architecture."),
]
PublishedNames = Annotated[
    list[str], typer.Argument(metavar="NAME", help="Names from `dino models list`.")
]
Again = Annotated[bool, typer.Option("--again", help="Download again even if it is cached.")]
Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME|FILE]...", help="Model names or files; default: all cached models."
    ),
]
CachedName = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="Model name; default: print the cache folder."),
]
Source = Annotated[
    Path, typer.Argument(metavar="CKPT", help="Checkpoint to read, usually a .pth file.")
]
Destination = Annotated[
    Path, typer.Argument(metavar="OUT", help="Model file to write, a .safetensors file.")
]
Ema = Annotated[
    bool | None,
    typer.Option(
        "--ema/--no-ema",
        help="Import the averaged (EMA) weights, or the trained ones; default: those that the "
        "project's own code loads.",
        show_default=False,
    ),
]
PositionTemperature = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="Temperature of the position encoding; default: 10000 for detrex, 20 for others.",
        show_default=False,
    ),
]
PositionOffset = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Offset of the position encoding; default: -0.5 for detrex, 0 for others.",
        show_default=False,
    ),
]


@app.callback(
    epilog=options.examples(
        "dino models                                        # the same as `dino models list`",
        "dino models import checkpoint0011_4scale.pth r50.safetensors",
    )
)
def models(context: typer.Context) -> None:
    """List, download, inspect, verify and import models."""
    if context.invoked_subcommand is None:
        list_models()


@app.command(name="list", epilog=options.examples("dino models list", "dino models list --all"))
def list_models(every_file: EveryFile = False, as_json: options.Json = False) -> None:
    """List models with their COCO AP and where the weights are."""
    rows = model_view.model_rows(every_file)
    if as_json:
        print(json.dumps({"schema": 1, "models": rows}, ensure_ascii=False))
        return
    columns = model_view.COLUMNS
    cells = [{**row, "ap": f"{row['ap']:.3f}" if "ap" in row else None} for row in rows]
    render.print_table(columns, [[row.get(c) for c in columns] for row in cells])


@app.command(
    epilog=options.examples(
        "dino models info dino-r50-4scale", "dino models info runs/train/best.safetensors --json"
    )
)
def info(model: Name, as_json: options.Json = False) -> None:
    """Show a model's classes, input, license, checksum and origin."""
    from dino_core.checkpoints.published.names import find_model

    facts = model_view.describe(find_model(model))
    if as_json:
        print(json.dumps({"schema": 1, **facts}, ensure_ascii=False))
    else:
        model_view.print_facts(facts)


@app.command(
    epilog=options.examples(
        "dino models pull dino-r50-4scale", "dino models pull dino-swinl-5scale --again"
    )
)
def pull(names: PublishedNames, again: Again = False, as_json: options.Json = False) -> None:
    """Download published weights and print the model file's path.

    They are verified, converted into a model file, and kept in DINO_CACHE (default:
    ~/.cache/dino). Interrupted downloads resume.
    """
    from dino_core.checkpoints.published.catalogue import published_model

    published = [published_model(name) for name in names]
    from dino_core.checkpoints import zoo

    for one in published:
        with model_view.fetching(one) as progress:
            path = zoo.pull(one, progress, again=again)
        if as_json:
            answer = {"schema": 1, "name": one.name, "file": str(path)}
            print(json.dumps(answer, ensure_ascii=False), flush=True)
        else:
            print(path, flush=True)


@app.command(
    epilog=options.examples("dino models verify", "dino models verify runs/train/best.safetensors")
)
def verify(models: Models = None, as_json: options.Json = False) -> None:
    """Read model files completely and report damaged ones.

    A model file carries a checksum, so that one changed byte is found. The exit code is 4 if a file
    is damaged.
    """
    from dino_core.checkpoints.published.names import fetched_models
    from dino_core.errors import CheckpointError

    failures: list[CheckpointError] = []
    rows: list[dict[str, object]] = []
    for name in models or fetched_models():
        error, checksum = "", False
        try:
            checksum = _verified(name)
        except CheckpointError as found:
            failures.append(found)
            error = found.message
        rows.append({"model": name, "ok": not error, "checksum": checksum, "error": error or None})
        if not as_json:
            print(f"{name}: {error or ('ok' if checksum else _NO_CHECKSUM)}", flush=True)
    if as_json:
        print(json.dumps({"schema": 1, "verified": rows}, ensure_ascii=False))
    if not rows:
        render.note("no model has been downloaded yet")
    if failures:
        hint = failures[-1].hint
        render.note(f"hint: {hint}" if hint else "see above")
        raise typer.Exit(errors.BAD_MODEL)


def _verified(name: str) -> bool:
    """Verify one model. Returns whether a checksum was compared; raises CheckpointError."""
    if Path(name).suffix.lower() == ".onnx":
        from dino_core.inference.runtimes import read_metadata

        read_metadata(name)
        return False
    from dino_core.checkpoints.zoo import verify_model

    return verify_model(name)


@app.command(epilog=options.examples("dino models path", "dino models path dino-r50-4scale"))
def path(model: CachedName = None) -> None:
    """Print the path of a model file, or of the cache folder."""
    from dino_core.checkpoints.published.cache import cache_folder, cached
    from dino_core.checkpoints.published.names import find_model
    from dino_core.errors import CheckpointError

    if model is None:
        print(cache_folder())
        return
    found = find_model(model)
    if found.path is None:
        name = found.published.name if found.published else model
        raise CheckpointError(
            f"{model} is not in {cached(name).folder}", f"dino models pull {model}"
        )
    print(found.path)


@app.command(
    name="import",
    epilog=options.examples(
        "dino models import checkpoint0011_4scale.pth dino-r50.safetensors",
        "dino models import dino_r50_detrex.pth r50.safetensors --position-temperature 20 "
        "--position-offset 0",
    ),
)
def import_model(
    checkpoint: Source,
    destination: Destination,
    ema: Ema = None,
    position_temperature: PositionTemperature = None,
    position_offset: PositionOffset = None,
    as_json: options.Json = False,
) -> None:
    """Convert a checkpoint of the official code, detrex or mmdet.

    A model file (.safetensors) is written. The project is recognized from the file. A detrex
    checkpoint does not state its position encoding; most detrex models use temperature 10000 and
    offset -0.5.
    """
    if destination.suffix != ".safetensors":
        raise ConfigError(f"{destination}: expected a name that ends in .safetensors")
    if destination.exists():
        raise ConfigError(f"{destination}: already exists", "choose another name")
    from dino_core.checkpoints.foreign.convert import import_checkpoint
    from dino_core.checkpoints.io import save_checkpoint

    imported = import_checkpoint(
        checkpoint,
        ema=ema,
        position_temperature=position_temperature,
        position_offset=position_offset,
    )
    destination.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(destination, imported.state_dict, imported.meta)
    _report_import(imported, destination, as_json)


def _report_import(imported: Checkpoint, destination: Path, as_json: bool) -> None:
    meta = imported.meta
    tensors = len(imported.state_dict)
    count = sum(tensor.numel() for tensor in imported.state_dict.values())
    if as_json:
        answer = {
            "schema": 1, "variant": meta.variant, "parameters": count, "tensors": tensors,
            "out": str(destination), "provenance": meta.provenance,
        }  # fmt: skip
        print(json.dumps(answer, ensure_ascii=False))
    for sentence in meta.provenance["notes"]:
        render.note(sentence)
    render.note(
        f"{meta.variant} of {meta.provenance['layout']}: {tensors} tensors, "
        f"{count / 1e6:.1f} million parameters"
    )
    render.note(f"model in {destination}")
