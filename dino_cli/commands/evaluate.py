"""`dino eval`: the 12 COCO numbers and the AP of each class, with a gate for scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_cli import data_options, errors, model_view, options, output, render

if TYPE_CHECKING:
    from dino_core.evaluation.coco_metrics import Metrics
    from dino_core.evaluation.evaluate import EvaluationResult

app = typer.Typer(**options.SETTINGS)

NUMBERS = {
    "ap": "AP  (IoU 0.50:0.95)",
    "ap50": "AP  (IoU 0.50)",
    "ap75": "AP  (IoU 0.75)",
    "ap_small": "AP  small objects",
    "ap_medium": "AP  medium objects",
    "ap_large": "AP  large objects",
    "ar_1": "AR  1 detection",
    "ar_10": "AR  10 detections",
    "ar_100": "AR  100 detections",
    "ar_small": "AR  small objects",
    "ar_medium": "AR  medium objects",
    "ar_large": "AR  large objects",
}


@app.command(
    name="eval",
    epilog=options.examples(
        "dino eval runs/train/best.safetensors data/",
        "dino eval dino-nano data/ --json --min-ap 0.45    # exit 5 when AP is below",
    ),
)
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model name or file.")],
    data: data_options.Data,
    split: Annotated[
        str, typer.Option("--split", help="Split to evaluate: train, val or test.")
    ] = "val",
    batch: options.Batch = 8,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    format: data_options.Format = None,
    min_ap: Annotated[
        float | None,
        typer.Option(
            "--min-ap",
            min=0,
            max=1,
            help="Exit with code 5 if the AP is lower.",
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
    out: options.Out = None,
) -> None:
    """Evaluate MODEL on DATA: the 12 COCO numbers, equal to pycocotools, and AP per class."""
    with output.output_folder(out, "eval") as folder:
        result = _evaluate(model, data, split, batch, device, dtype, format)
        predictions = folder.path / "predictions.json"
        # In COCO's format of results, for other tools.
        output.write_json(predictions, result.to_coco())
        answer = {"schema": 1, "model": model, "data": str(data), "split": split}
        answer.update(result.metrics.to_dict())
        output.write_json(folder.path / "metrics.json", answer)
        # Both files are complete, and a gate that is not met is no failure of the evaluation.
        folder.keep()
    if as_json:
        print(json.dumps(answer, ensure_ascii=False), flush=True)
    else:
        _print_metrics(result.metrics)
    render.note(f"predictions in {predictions}")
    ap = result.metrics.ap
    if min_ap is not None and (ap is None or ap < min_ap):
        found = "no AP could be computed" if ap is None else f"AP {ap:.4f}"
        render.note(f"gate not met: {found}, --min-ap asks for {min_ap:g}")
        raise typer.Exit(errors.GATE)


def _evaluate(
    model: str, data: Path, split: str, batch: int, device: str, dtype: str, format: str | None
) -> EvaluationResult:
    """Run the evaluation with progress on stderr."""
    from dino_core.data.load import load_dataset
    from dino_core.engine.memory import keep_freed_memory
    from dino_core.evaluation.evaluate import start_evaluation, with_val_of_training
    from dino_core.inference.detector import Detector

    keep_freed_memory()
    # Nothing is split off here. Data without a validation split gets the images that the model's
    # own training has set apart, further below.
    dataset = load_dataset(data, format, val_split=0.0)
    shown = dataset.warnings
    for warning in shown:  # before anything else, since an error below may follow from it
        render.warn(warning)
    model_view.ensure(model)
    detector = Detector.load(model, device=device, dtype=dtype)
    dataset = with_val_of_training(dataset, detector.meta)
    evaluation = start_evaluation(detector, dataset, split, batch=batch)
    for warning in evaluation.warnings:
        if warning not in shown:
            render.warn(warning)
    with render.ticker("images", len(evaluation.records)) as ticker:
        for progress in evaluation:
            ticker.advance(progress.done - ticker.done)
        return evaluation.finish()


def _print_metrics(metrics: Metrics) -> None:
    """The 12 numbers and the classes as tables on stdout."""
    values = metrics.to_dict()
    render.print_table(
        ("metric", "value"), [(text, _fraction(values[name])) for name, text in NUMBERS.items()]
    )
    rows = [
        (name, _fraction(one.ap), _fraction(one.ap50), one.images, one.boxes)
        for name, one in metrics.per_class.items()
    ]
    print()
    render.print_table(("class", "AP", "AP50", "images", "boxes"), rows)
    if metrics.ms_per_image is not None:
        print(f"{metrics.images} images, {metrics.ms_per_image:.1f} ms per image")


def _fraction(value: float | None) -> str | None:
    """A fraction as `0.312`; None where it cannot be computed."""
    return None if value is None else f"{value:.3f}"
