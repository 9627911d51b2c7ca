"""`dino check`: what is wrong with labeled data, on the terminal, as JSON and as a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_cli import data_options, errors, findings_view, options, output, render
from dino_core.data.fault_kinds import SEVERITIES

if TYPE_CHECKING:
    from dino_core.data.check.findings import CheckReport
    from dino_core.data.records import DatasetIndex

app = typer.Typer(**options.SETTINGS)

_POOL_IMAGES = 100  # fewer are decoded sooner than processes start


@app.command(
    epilog=options.examples(
        "dino check data/                     # findings here, pictures in runs/check/report.html",
        "dino check data/ --strict --json     # for scripts: exit 3 on any error or warning",
    )
)
def check(
    data: data_options.Data,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 3 on any error or warning; notes are allowed.")
    ] = False,
    format: data_options.Format = None,
    as_json: options.Json = False,
    out: options.Out = None,
) -> None:
    """Find broken and duplicate images, missing or odd labels, and gaps in the classes of DATA.

    An error loses data or makes scores meaningless, a warning is most likely a mistake, a note is
    worth knowing. Every image is decoded; nothing in DATA is changed.
    """
    from dino_core.data.load import read_dataset, unusable

    dataset = read_dataset(data, format)
    with output.output_folder(out, "check") as folder:
        report = _check(dataset)
        page = folder.path / "report.html"
        _write_page(page, report)
        answer = {"schema": 1, **report.to_dict(), "report": str(page)}
        output.write_json(folder.path / "findings.json", answer)
        folder.keep()
    if as_json:
        print(json.dumps(answer, ensure_ascii=False), flush=True)
    else:
        _print_report(report)
    render.note(f"report in {page}")
    too_many = strict and (report.count("error") or report.count("warning"))
    if too_many or unusable(dataset) is not None:
        raise typer.Exit(errors.BAD_DATA)


def _check(dataset: DatasetIndex) -> CheckReport:
    """Run the check with progress on stderr."""
    from dino_core.data.check.images import examine_all
    from dino_core.data.check.run import check_dataset, image_files
    from dino_core.process import usable_cores

    files = image_files(dataset)
    facts = []
    with render.ticker("images", len(files)) as progress:
        for each in examine_all(files, usable_cores() if len(files) >= _POOL_IMAGES else 0):
            facts.append(each)
            progress.advance(1)
    return check_dataset(dataset, facts)


def _write_page(path: Path, report: CheckReport) -> None:
    from dino_core.data.check.report import html_report
    from dino_core.files import atomic_file

    with atomic_file(path) as file:
        file.write(html_report(report).encode("utf-8", "replace"))


def _print_report(report: CheckReport) -> None:
    for name, split in report.splits.items():
        boxes = render.counted(split.boxes, "box", "boxes")
        print(f"{name}: {render.counted(split.images, 'image')}, {boxes}")
    classes = render.counted(len(report.boxes_of_class), "class", "classes")
    print(f"{classes}, format {report.format}")
    findings_view.show_findings(report.findings, report.root, sys.stdout)
    counts = [render.counted(report.count(s), s) for s in SEVERITIES]
    print(", ".join(counts) if report.findings else "nothing found")
