"""`dino models`: names that can be used, what a model file holds, other projects' checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dino_cli import options, render
from dino_core.errors import ConfigError

app = typer.Typer(**options.SETTINGS, invoke_without_command=True)

Name = Annotated[str, typer.Argument(metavar="MODEL", help="Model name or file.")]


@app.callback(
    epilog=options.examples(
        "dino models                                        # the same as `dino models list`",
        "dino models import checkpoint0011_4scale.pth r50.safetensors",
    )
)
def models(context: typer.Context) -> None:
    """List models, look into one, import checkpoints of other DINO code."""
    if context.invoked_subcommand is None:
        list_models()


@app.command(name="list", epilog=options.examples("dino models list", "dino models list --json"))
def list_models(as_json: options.Json = False) -> None:
    """List the models that have a name, and whether their weights are here."""
    from dino_core.checkpoints.zoo import BUILT_IN
    from dino_core.variants import VARIANTS

    rows: list[dict[str, Any]] = []
    for name, variant in VARIANTS.items():
        path = BUILT_IN.get(name)
        here = path if path is not None and path.is_file() else None
        rows.append(
            {
                "name": name,
                "backbone": variant.model.backbone,
                "levels": variant.model.num_levels,
                "queries": variant.model.num_queries,
                "max_side": variant.preprocess.max_side,
                "weights": "built in" if here else "import",
                "mb": round(here.stat().st_size / 1e6, 1) if here else None,
            }
        )
    if as_json:
        print(json.dumps({"schema": 1, "models": rows}, ensure_ascii=False))
        return
    columns = ("name", "backbone", "levels", "queries", "max_side", "weights", "mb")
    render.print_table(columns, [[row[c] for c in columns] for row in rows])


@app.command(
    epilog=options.examples(
        "dino models info dino-nano", "dino models info runs/train/best.safetensors --json"
    )
)
def info(model: Name, as_json: options.Json = False) -> None:
    """Show what a model file says about itself: classes, input, training, licence, checksum."""
    described = _described(model)
    if as_json:
        print(json.dumps({"schema": 1, **described}, ensure_ascii=False))
        return
    for key, value in described.items():
        if key == "classes":
            value = ", ".join(filter(None, value["names"]))
        if isinstance(value, dict):
            print(f"{key}:")
            for name, item in value.items():
                print(f"  {name}: {json.dumps(item, ensure_ascii=False)}")
        else:
            print(f"{key}: {value}")


def _described(model: str) -> dict[str, Any]:
    """Facts of a model file, or of a known variant whose weights are not here."""
    from dino_core.checkpoints.zoo import BUILT_IN, resolve
    from dino_core.config import to_dict
    from dino_core.inference.metadata import read_metadata
    from dino_core.metadata import to_json
    from dino_core.variants import VARIANTS

    built_in = BUILT_IN.get(model)
    if model in VARIANTS and not Path(model).is_file() and not (built_in and built_in.is_file()):
        variant = VARIANTS[model]
        return {
            "variant": model,
            "file": None,
            "model": to_dict(variant.model),
            "preprocess": to_dict(variant.preprocess),
        }
    path = resolve(model)
    facts = {"file": str(path), "mb": round(path.stat().st_size / 1e6, 1), "sha256": _sha256(path)}
    return {**facts, **json.loads(to_json(read_metadata(path)))}


def _sha256(path: Path) -> str:
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
    from dino_core.checkpoints.convert import import_checkpoint
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
