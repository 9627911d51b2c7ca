"""`dino predict`: images and videos in, annotated images and tables out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_cli import errors, model_view, options, output, render
from dino_cli.gates import ANY, Gate, parse_gate
from dino_core.config import MIN_IMAGE_SIZE
from dino_core.errors import ConfigError, printable
from dino_core.inference.outputs.table import OUTPUTS, check_outputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dino_core.inference.detector import Detector
    from dino_core.inference.prediction import Prediction
    from dino_core.inference.sources import Sources

app = typer.Typer(**options.SETTINGS)

DEFAULT_SAVE = "images,jsonl"

SourceArguments = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="Image, folder, quoted glob pattern, video, webcam index, URL, .txt list, "
        "or - for paths on stdin.",
    ),
]
Model = Annotated[
    str, typer.Option("--model", metavar="NAME|FILE", help="Model name or model file.")
]
Threshold = Annotated[
    float,
    typer.Option(
        "--threshold", metavar="SCORE", min=0, max=1, help="Minimum score of a detection, 0 to 1."
    ),
]
MaxDetections = Annotated[
    int,
    typer.Option("--max-detections", metavar="N", min=1, help="Maximum detections per image."),
]
Classes = Annotated[
    str | None,
    typer.Option("--classes", metavar="A,B", help="Detect only these classes; default: all."),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="PIXELS",
        min=MIN_IMAGE_SIZE,
        help="Long side of the network input; default: the model's own.",
    ),
]
Recursive = Annotated[
    bool, typer.Option("--recursive", "-r", help="Also search the subfolders of a folder.")
]
Every = Annotated[
    int,
    typer.Option("--every", metavar="N", min=1, help="Use every N-th frame of a video or webcam."),
]
Save = Annotated[
    str,
    typer.Option(
        "--save",
        metavar="A,B",
        show_default=False,  # it would stand behind the last line of the list
        help=f"What to write, one or more of (default: {DEFAULT_SAVE}):\n\n\b\n"
        + "\n".join(f"{kind:7} {row.help}" for kind, row in OUTPUTS.items()),
    ),
]
JsonLines = Annotated[
    bool, typer.Option("--json", help="Print one JSON record per image or frame on stdout.")
]
SkipDone = Annotated[
    bool,
    typer.Option(
        "--skip-done", help="Skip images whose results are already in --out from an earlier run."
    ),
]
FailIf = Annotated[
    str | None,
    typer.Option(
        "--fail-if",
        metavar="'CLASS>N'",
        help="Exit with code 5 if the number of detections of a class (or of 'any') in the "
        "whole run meets this condition.",
    ),
]


@app.command(
    epilog=options.examples(
        "dino predict photo.jpg photos/ 'more/*.png' --classes person,dog",
        "dino predict video.mp4 --every 2 --save images,csv",
        "find . -name '*.jpg' | dino predict - --json --fail-if 'person>0'",
    )
)
def predict(
    sources: SourceArguments,
    model: Model = "dino-nano",
    threshold: Threshold = 0.4,
    max_detections: MaxDetections = 100,
    classes: Classes = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    image_size: ImageSize = None,
    batch: options.Batch = 1,
    recursive: Recursive = False,
    every: Every = 1,
    save: Save = DEFAULT_SAVE,
    as_json: JsonLines = False,
    skip_done: SkipDone = False,
    fail_if: FailIf = None,
    out: options.Out = None,
) -> None:
    """Detect objects in images and videos; write annotated images and JSON records."""
    gate = parse_gate(fail_if) if fail_if is not None else None
    if skip_done and out is None:
        raise ConfigError("--skip-done needs the folder of the earlier run", "give it with --out")
    # Everything that can be wrong is checked before the imports and the model take seconds.
    kinds = check_outputs(options.comma_separated(save) or [])
    from dino_core.inference.outputs.writers import Writers
    from dino_core.inference.sources import open_sources

    opened = open_sources(sources, recursive=recursive, every=every)
    finished = _finished(out) if skip_done and out is not None else []
    detector = _load(model, device, dtype, image_size)
    _check_same_classes(finished, detector, out)
    if gate is not None and gate.label != ANY:
        # Raises for a class that the model does not have; such a gate would never be met.
        detector.classes.indices_of([gate.label])
    # Earlier results count in tables, gates and totals, but their images are not predicted again.
    todo = opened.without({prediction.source for prediction in finished})
    predictions = detector.predict(
        todo,
        threshold=threshold,
        max_detections=max_detections,
        classes=options.comma_separated(classes),
        batch=batch,
    )
    tally = Tally(skipped=len(finished))
    tally.found.update(label for prediction in finished for label in prediction.labels)
    with (
        output.output_folder(out, "predict") as folder,
        Writers(kinds, folder.path, detector.classes, items=opened.items, previous=finished) as w,
    ):
        try:
            for prediction in _watched(predictions, todo, tally):
                w.add(prediction)
                folder.keep()
                if as_json:
                    _print_record(prediction)
        # Inside of the writers' block, which then completes the files with what is there.
        except KeyboardInterrupt:
            tally.interrupted = True
    _report(tally, gate, folder.path if kinds and folder.path.exists() else None)
    _exit(tally, gate)


@dataclass
class Tally:
    """What a run has done so far.

    Attributes:
        images: Images and video frames predicted.
        unreadable: Files that could not be read.
        skipped: Images that an earlier run predicted.
        found: Detections by class name, those of the earlier run included.
        rate: Images per second.
        interrupted: Whether the person stopped the run.
    """

    images: int = 0
    unreadable: int = 0
    skipped: int = 0
    found: Counter[str] = field(default_factory=Counter)
    rate: float = 0.0
    interrupted: bool = False


def _finished(out: Path) -> list[Prediction]:
    """What an earlier run into `out` has predicted."""
    from dino_core.inference.outputs.previous import read_finished

    earlier = read_finished(out)
    if earlier.broken:
        count = render.counted(len(earlier.broken), "line")
        render.warn(f"{earlier.broken[0]}: {count} cannot be read; predicting those images again")
    return earlier.predictions


def _load(model: str, device: str, dtype: str, image_size: int | None) -> Detector:
    from dino_core.engine.memory import keep_freed_memory
    from dino_core.inference.detector import Detector

    model_view.ensure(model)
    keep_freed_memory()
    return Detector.load(model, device, dtype, image_size=image_size)


def _check_same_classes(finished: list[Prediction], detector: Detector, out: Path | None) -> None:
    """Raises ConfigError where the earlier run was one of a model with other classes."""
    known = set(detector.classes.names)
    for prediction in finished:
        if other := set(prediction.labels) - known:
            raise ConfigError(
                f"--skip-done: {prediction.source} was predicted in {out} by {prediction.model}, "
                f"and {detector.name} has no class '{min(other)}'",
                "use the same --model, or choose another --out",
            )


def _watched(
    predictions: Iterable[Prediction], sources: Sources, tally: Tally
) -> Iterator[Prediction]:
    """The predictions, counted and shown as progress."""
    with render.ticker("images", sources.total) as progress:
        try:
            for prediction in predictions:
                if prediction.error is not None:
                    tally.unreadable += 1
                    source = printable(prediction.source)  # as in the error
                    reason = prediction.error.removeprefix(f"{source}: ")
                    progress.warn(f"{source}: {reason}")
                else:
                    tally.images += 1
                    tally.found.update(prediction.labels)
                yield prediction
                progress.advance()
        # The generator may be closed early, and the rate is reported in any case.
        finally:
            tally.rate = progress.rate()


def _print_record(prediction: Prediction) -> None:
    from dino_core.inference.outputs.records import to_json_line

    # Flushed per record, so that a program that reads the pipe gets each result as it comes.
    print(to_json_line(prediction), flush=True)


def _report(tally: Tally, gate: Gate | None, folder: Path | None) -> None:
    """State what was done and where the results are."""
    classes = ", ".join(f"{name} {count}" for name, count in tally.found.most_common())
    images = render.counted(tally.images, "image")
    render.note(
        f"{images}, {render.counted(tally.found.total(), 'object')}"
        + (f" ({classes})" if classes else "")
        + (f", {tally.rate:.1f} images/s" if tally.images else "")
        + (f", {tally.skipped} skipped (done before)" if tally.skipped else "")
        + (f", {tally.unreadable} could not be read" if tally.unreadable else "")
    )
    if gate is not None and gate.fails(tally.found):
        render.note(f"gate not met: --fail-if {gate}, found {gate.found(tally.found)}")
    if tally.interrupted:
        render.note("interrupted; the results up to here are kept")
    if folder is not None:
        render.note(f"results in {folder}")


def _exit(tally: Tally, gate: Gate | None) -> None:
    """Leave with the exit code that INTERFACE.md assigns to what happened, if it is not 0."""
    if tally.interrupted:
        raise typer.Exit(errors.INTERRUPTED)
    if tally.unreadable:
        raise typer.Exit(errors.BAD_DATA)
    if gate is not None and gate.fails(tally.found):
        raise typer.Exit(errors.GATE)
