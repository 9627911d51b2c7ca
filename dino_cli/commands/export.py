"""`dino export`: a model as one file for another runtime, compared with torch on real images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dino_cli import errors, model_view, options, output, render
from dino_core.errors import ConfigError
from dino_core.exporters.table import (
    DEFAULT_FORMAT,
    DTYPES,
    EXPORTERS,
    check_dtype,
    find_exporter,
)

if TYPE_CHECKING:
    from dino_core.exporters.api import ExportReport
    from dino_core.exporters.verify import ParityReport

app = typer.Typer(**options.SETTINGS)

_SUFFIXES = tuple(exporter.suffix for exporter in EXPORTERS.values())


_Format = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="|".join(EXPORTERS),
        help="Format to write.",
        autocompletion=lambda: list(EXPORTERS),
    ),
]
_Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="|".join(DTYPES),
        help="Dtype of the weights.",
        autocompletion=lambda: list(DTYPES),
    ),
]


@app.command(
    epilog=options.examples(
        "dino export runs/train/best.safetensors --out best.onnx --verify photos/",
        "dino export dino-nano --image-size 320,320",
    )
)
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model name or file.")],
    form: _Format = DEFAULT_FORMAT,
    image_size: Annotated[
        str | None,
        typer.Option(
            "--image-size", metavar="H,W", help="Fixed input size; default: the model's own."
        ),
    ] = None,
    opset: Annotated[int | None, typer.Option("--opset", help="ONNX operator set.")] = None,
    dtype: _Dtype = DTYPES[0],
    verify: Annotated[
        list[str] | None,
        typer.Option(
            "--verify", metavar="IMAGES", help="Images or folder to compare on; repeatable."
        ),
    ] = None,
    as_json: options.Json = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="PATH",
            help=f"A {' or '.join(_SUFFIXES)} file or a folder; default runs/export.",
        ),
    ] = None,
) -> None:
    """Write MODEL for another runtime, metadata inside, and compare it with torch on images."""
    suffix = find_exporter(form).suffix
    check_dtype(dtype)
    images = _images(verify)
    size_hw = options.size_hw(image_size)
    model_view.ensure(model)
    is_file = out is not None and out.suffix.lower() in _SUFFIXES
    with output.output_folder(out.parent if out and is_file else out, "export") as folder:
        artifact = folder.path / (out.name if out and is_file else Path(model).stem + suffix)
        from dino_core.exporters.api import export as write

        render.note(f"exporting {model}; this takes a while")
        report = write(
            model, artifact, form, image_size=size_hw, opset=opset, dtype=dtype, verify=images
        )
        if report.parity:
            parity = folder.path / (f"{artifact.stem}.parity.json" if is_file else "parity.json")
            output.write_json(parity, report.parity.to_dict())
        folder.keep()
    if as_json:
        print(json.dumps(_answer(model, dtype, report), ensure_ascii=False), flush=True)
    _conclude(report)


def _answer(model: str, dtype: str, report: ExportReport) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "schema": 1, "model": model, "out": str(report.path), "format": report.format,
        "image_size": list(report.input_hw), "batch": report.batch, "opset": report.opset,
        "dtype": dtype, "bytes": report.bytes,
        "parity": report.parity.to_dict() if report.parity else None,
    }  # fmt: skip


def _conclude(report: ExportReport) -> None:
    """Report what was written on stderr; exit with the gate's code where it differs from torch."""
    height, width = report.input_hw
    opset = "" if report.opset is None else f", opset {report.opset}"
    shape = f"{report.batch}x3x{height}x{width}"
    render.note(f"{report.bytes / 1e6:.1f} MB, input {shape}{opset}")
    if report.parity is None:
        render.warn("not compared with torch: give images with --verify")
    else:
        _report_parity(report.parity)
    render.note(f"model in {report.path}")
    if report.parity is not None and not report.parity.ok:
        raise typer.Exit(errors.GATE)


def _images(verify: list[str] | None) -> list[str]:
    """The images to compare on: those given, else the examples of a source tree."""
    from dino_core.inference.sources import open_sources

    sources: list[str | Path] = list(verify or [])
    examples = Path(__file__).resolve().parents[2] / "examples" / "photos"
    if not sources and examples.is_dir() and any(examples.iterdir()):
        sources = [examples]
    if not sources:
        return []
    images = [item.source for item in open_sources(sources).items if item.kind == "image"]
    if not images:
        raise ConfigError("--verify: found no image file", "give images or a folder of images")
    return images


def _report_parity(parity: ParityReport) -> None:
    """Report the worst differences and whether they pass, on stderr."""
    worst = parity.to_dict()
    iou, score = worst["matched_iou_min"], worst["score_max_abs"]
    render.note(
        f"against torch on {len(parity.images)} images: logits differ by at most "
        f"{worst['logits_max_abs']:.1e}, boxes by {worst['boxes_max_abs']:.1e}; "
        f"{worst['detections']} detections, {worst['unmatched']} unmatched"
        + (f", matched IoU at least {iou:.4f}" if iou is not None else "")
        + (f", scores differ by at most {score:.1e}" if score is not None else "")
    )
    if not parity.ok:
        bad = [image.image for image in parity.images if not image.within(parity.tolerance)]
        render.note(f"gate not met: the file does not reproduce torch on {', '.join(bad)}")
