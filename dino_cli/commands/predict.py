"""`dino predict`: pictures and videos in, annotated pictures and tables out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_cli import errors, model_view, options, output, render
from dino_cli.gates import ANY, Gate, parse_gate
from dino_core.config import MIN_IMAGE_SIZE
from dino_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dino_core.inference.detector import Detector
    from dino_core.inference.prediction import Prediction
    from dino_core.inference.sources import Sources

app = typer.Typer(**options.SETTINGS)

KINDS = "images, jsonl, json, coco, yolo, voc, csv, crops"


@app.command(
    epilog=options.examples(
        "dino predict photo.jpg photos/ 'more/*.png' --classes person,dog",
        "dino predict video.mp4 --every 2 --save images,csv",
        "find . -name '*.jpg' | dino predict - --json --fail-if 'person>0'",
    )
)
def predict(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Image, folder, quoted glob, video, webcam number, URL, list.txt, "
            "or - for paths on stdin.",
        ),
    ],
    model: Annotated[str, typer.Option("--model", help="Model name or file.")] = "dino-nano",
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="Lowest score that is kept.")
    ] = 0.4,
    max_detections: Annotated[
        int, typer.Option("--max-detections", min=1, help="The most objects an image.")
    ] = 100,
    classes: Annotated[
        str | None, typer.Option("--classes", metavar="A,B", help="Only these; default: all.")
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            min=MIN_IMAGE_SIZE,
            help="Long side of the input; default: the model's.",
        ),
    ] = None,
    batch: options.Batch = 1,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Look into folders of folders.")
    ] = False,
    every: Annotated[
        int, typer.Option("--every", min=1, help="Of a video, take each n-th frame.")
    ] = 1,
    save: Annotated[
        str, typer.Option("--save", metavar="A,B", help=f"Some of {KINDS}.")
    ] = "images,jsonl",
    as_json: Annotated[
        bool, typer.Option("--json", help="JSONL on stdout as results come.")
    ] = False,
    skip_done: Annotated[
        bool, typer.Option("--skip-done", help="Leave out what --out has from an earlier run.")
    ] = False,
    fail_if: Annotated[
        str | None,
        typer.Option(
            "--fail-if",
            metavar="'CLASS>N'",
            help="Exit 5 if so many of a class (or any) were found in all.",
        ),
    ] = None,
    out: options.Out = None,
) -> None:
    """Find objects in images, folders and videos; annotated pictures and JSONL in `--out`."""
    gate = parse_gate(fail_if) if fail_if is not None else None
    if skip_done and out is None:
        raise ConfigError("--skip-done needs the folder of the earlier run", "give it with --out")
    from dino_core.inference.sources import open_sources
    from dino_core.inference.writers import Writers, check_kinds, read_finished

    kinds = check_kinds(options.comma_separated(save) or [])
    opened = open_sources(sources, recursive=recursive, every=every)
    finished = read_finished(out) if skip_done and out is not None else []
    detector = _load(model, device, dtype, image_size)
    if gate is not None and gate.label != ANY:
        detector.classes.indices_of([gate.label])
    todo = opened.without({str(record["source"]) for record in finished})
    predictions = detector.predict(
        todo,
        threshold=threshold,
        max_detections=max_detections,
        classes=options.comma_separated(classes),
        batch=batch,
    )
    tally = Tally()
    for record in finished:
        tally.found.update(found["label"] for found in record["detections"])
    with (
        output.output_folder(out, "predict") as folder,
        Writers(
            kinds, folder.path, detector.classes, items=opened.items, previous=finished
        ) as writers,
    ):
        try:
            for prediction in _watched(predictions, todo, tally):
                writers.add(prediction)
                folder.keep()
                if as_json:
                    _print_line(prediction.to_dict())
        except KeyboardInterrupt:
            tally.interrupted = True
    _conclude(tally, gate, folder.path, skipped=len(finished), nothing=not kinds)


@dataclass
class Tally:
    """What a run has done so far."""

    images: int = 0
    unreadable: int = 0
    found: Counter[str] = field(default_factory=Counter)
    rate: float = 0.0
    interrupted: bool = False


def _load(model: str, device: str, dtype: str, image_size: int | None) -> Detector:
    from dino_core.engine.memory import keep_freed_memory
    from dino_core.inference.detector import Detector

    model_view.ensure(model)
    keep_freed_memory()
    return Detector.load(model, device, dtype, image_size=image_size)


def _watched(
    predictions: Iterable[Prediction], sources: Sources, tally: Tally
) -> Iterator[Prediction]:
    """The predictions, counted and shown as progress."""
    with render.ticker("images", sources.total) as progress:
        try:
            for prediction in predictions:
                if prediction.error is not None:
                    tally.unreadable += 1
                    progress.warn(f"{prediction.source}: {_reason(prediction)}")
                else:
                    tally.images += 1
                    tally.found.update(prediction.labels)
                yield prediction
                progress.advance()
        finally:
            tally.rate = progress.rate()


def _reason(prediction: Prediction) -> str:
    return (prediction.error or "").removeprefix(f"{prediction.source}: ")


def _print_line(record: Mapping[str, object]) -> None:
    from dino_core.inference.writers import to_json_line

    print(to_json_line(record), flush=True)


def _conclude(
    tally: Tally, gate: Gate | None, folder: Path, *, skipped: int, nothing: bool
) -> None:
    """Say what was done and where it is; exit with the code that stands for it."""
    objects = ", ".join(f"{name} {count}" for name, count in tally.found.most_common())
    render.note(
        f"{tally.images} images, {tally.found.total()} objects"
        + (f" ({objects})" if objects else "")
        + (f", {tally.rate:.1f} images/s" if tally.images else "")
        + (f", {skipped} done before" if skipped else "")
        + (f", {tally.unreadable} could not be read" if tally.unreadable else "")
    )
    failed = gate is not None and gate.fails(tally.found)
    if failed and gate is not None:
        render.note(f"gate not met: --fail-if {gate}, found {gate.found(tally.found)}")
    if tally.interrupted:
        render.note("interrupted; what was finished is kept")
    if not nothing and folder.exists():
        render.note(f"results in {folder}")
    if tally.interrupted:
        raise typer.Exit(errors.INTERRUPTED)
    if tally.unreadable:
        raise typer.Exit(errors.BAD_DATA)
    if failed:
        raise typer.Exit(errors.GATE)
