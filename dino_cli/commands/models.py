"""`dino models`: names that can be used, what a model file holds, other projects' checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_cli import errors, model_view, options, render
from dino_core.errors import ConfigError

if TYPE_CHECKING:
    from dino_core.checkpoints.published.catalogue import Published

app = typer.Typer(**options.SETTINGS, invoke_without_command=True)

Name = Annotated[str, typer.Argument(metavar="MODEL", help="Model name or file.")]


@app.callback(
    epilog=options.examples(
        "dino models                                        # the same as `dino models list`",
        "dino models import checkpoint0011_4scale.pth r50.safetensors",
    )
)
def models(context: typer.Context) -> None:
    """List models, fetch published ones, look into one, import checkpoints of other DINO code."""
    if context.invoked_subcommand is None:
        list_models()


@app.command(name="list", epilog=options.examples("dino models list", "dino models list --all"))
def list_models(
    everything: Annotated[
        bool, typer.Option("--all", help="Every published file, not one a network.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List the models that have a name, their AP on COCO, and whether their weights are here."""
    rows = model_view.model_rows(everything)
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
    """Show a model's classes, input, licence and checksum, and where its weights are from."""
    described = model_view.describe(model)
    if as_json:
        print(json.dumps({"schema": 1, **described}, ensure_ascii=False))
    else:
        model_view.print_facts(described)


@app.command(
    epilog=options.examples(
        "dino models pull dino-r50-4scale", "dino models pull dino-swinl-5scale --again"
    )
)
def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Of `dino models list`.")],
    again: Annotated[bool, typer.Option("--again", help="Even if it is here.")] = False,
    as_json: options.Json = False,
) -> None:
    """Fetch published weights, check and import them; prints the model file's path.

    They go to DINO_CACHE (default ~/.cache/dino). A transfer that broke off goes on where it was.
    """
    published = [_published(name) for name in names]
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
def verify(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|FILE]...", help="Default: all that was fetched."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Read all of a model's files: checksums, structure, weights; exit 4 if one is damaged."""
    from dino_core.checkpoints import zoo
    from dino_core.checkpoints.published.cache import cached
    from dino_core.checkpoints.published.catalogue import CATALOGUE
    from dino_core.errors import CheckpointError

    fetched = [n for n in CATALOGUE if (here := cached(n)).source or here.model]
    failure: CheckpointError | None = None
    rows: list[dict[str, object]] = []
    for name in models or fetched:
        error = ""
        try:
            if Path(name).is_file() or name in zoo.BUILT_IN:
                zoo.verify_file(zoo.resolve(name))
            else:
                zoo.verify(_published(name))
        except CheckpointError as found:
            failure, error = found, found.message
        rows.append({"model": name, "ok": not error, "error": error or None})
        if not as_json:
            print(f"{name}: {error or 'ok'}", flush=True)
    if as_json:
        print(json.dumps({"schema": 1, "verified": rows}, ensure_ascii=False))
    if not rows:
        render.note("nothing was fetched yet")
    if failure is not None:
        render.note(f"hint: {failure.hint}" if failure.hint else "see above")
        raise typer.Exit(errors.BAD_MODEL)


@app.command(epilog=options.examples("dino models path", "dino models path dino-r50-4scale"))
def path(
    model: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Default: the folder of all.")
    ] = None,
) -> None:
    """Print where the cache is, or a fetched or built-in model's file in it."""
    from dino_core.checkpoints.published.cache import cache_folder, cached
    from dino_core.errors import CheckpointError

    if model is None:
        print(cache_folder())
        return
    described = model_view.describe(model)
    if described["file"] is None:
        name = described.get("name", model)
        here = cached(str(name))
        raise CheckpointError(f"{model} is not in {here.folder}", f"dino models pull {model}")
    print(described["file"])


def _published(name: str) -> Published:
    """A name of the catalogue. Raises CheckpointError with the nearest known one."""
    from dino_core.checkpoints.published.catalogue import CATALOGUE, DEFAULTS, find_published
    from dino_core.config import nearest
    from dino_core.errors import CheckpointError

    published = find_published(name)
    if published is None:
        hint = nearest(name, {**DEFAULTS, **CATALOGUE}) or "`dino models list --all` has the names"
        raise CheckpointError(f"no published model is called '{name}'", hint)
    return published


@app.command(
    name="import",
    epilog=options.examples(
        "dino models import checkpoint0011_4scale.pth dino-r50.safetensors",
        "dino models import dino_r50_detrex.pth r50.safetensors --position-temperature 20 "
        "--position-offset 0",
    ),
)
def import_model(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A .pth file.")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="A .safetensors file.")],
    ema: Annotated[
        bool | None,
        typer.Option(
            "--ema/--no-ema",
            help="Take averaged weights, or those that were trained; default: as the code that "
            "wrote the file.",
            show_default=False,
        ),
    ] = None,
    position_temperature: Annotated[
        float | None,
        typer.Option(
            metavar="T",
            help="Of the position encoding; detrex: 10000, others: 20.",
            show_default=False,
        ),
    ] = None,
    position_offset: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Of the position encoding; detrex: -0.5, others: 0.",
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Convert a checkpoint of the official code, detrex or mmdet into a safetensors file.

    Whose it is, is recognised. A file of detrex does not tell its position encoding; most of its
    models have a temperature of 10000 and an offset of -0.5.
    """
    if destination.suffix != ".safetensors":
        raise ConfigError(f"{destination}: expected a name that ends in .safetensors")
    if destination.exists():
        raise ConfigError(f"{destination}: is there already", "choose another name")
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
    count = sum(tensor.numel() for tensor in imported.state_dict.values())
    if as_json:
        answer = {
            "schema": 1, "variant": imported.meta.variant, "parameters": count,
            "tensors": len(imported.state_dict), "out": str(destination),
            "provenance": imported.meta.provenance,
        }  # fmt: skip
        print(json.dumps(answer, ensure_ascii=False))
    for sentence in imported.meta.provenance["notes"]:
        render.note(sentence)
    render.note(
        f"{imported.meta.variant} of {imported.meta.provenance['layout']}: "
        f"{len(imported.state_dict)} tensors, {count / 1e6:.1f} M values"
    )
    render.note(f"model in {destination}")
