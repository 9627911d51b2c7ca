"""`dino check`: what is wrong with labelled data, on the terminal, as JSON and as a page."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from dino_cli import errors, options, output, render

if TYPE_CHECKING:
    from dino_core.data.check.findings import CheckReport, Finding
    from dino_core.data.records import DatasetIndex

app = typer.Typer(**options.SETTINGS)

_POOL_IMAGES = 100  # fewer are decoded sooner than processes start
_EXAMPLES = 2
_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}


@app.command(
    epilog=options.examples(
        "dino check data/                     # findings here, pictures in runs/check/report.html",
        "dino check data/ --strict --json     # for scripts: exit 3 on any error or warning",
    )
)
def check(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Labelled data: folder or file.")],
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 3 on any error or warning; notes are allowed.")
    ] = False,
    form: options.Format = None,
    as_json: options.Json = False,
    out: options.Out = None,
) -> None:
    """Find broken and doubled images, missing or odd labels, and gaps in the classes of DATA.

    An error loses data or makes scores meaningless, a warning is most likely a mistake, a note is
    worth knowing. Every image is decoded; nothing in DATA is changed.
    """
    from dino_core.data.load import load_dataset

    dataset = load_dataset(data, form, val_split=0.0)
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
    if strict and (report.count("error") or report.count("warning")):
        raise typer.Exit(errors.BAD_DATA)


def _check(dataset: DatasetIndex) -> CheckReport:
    """Run the check with progress on stderr."""
    from dino_core.data.check.run import ImagesDecoded, check_steps
    from dino_core.process import usable_cores

    images = sum(map(len, dataset.splits.values()))
    with render.ticker("images", images) as progress:
        for event in check_steps(dataset, usable_cores() if images >= _POOL_IMAGES else 0):
            if not isinstance(event, ImagesDecoded):
                return event
            progress.advance(event.done - progress.done)
    raise AssertionError("a check ends with its report")


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
    show_findings(report.findings, report.root, sys.stdout)
    counts = [render.counted(report.count(s), s) for s in ("error", "warning", "note")]
    print(", ".join(counts) if report.findings else "nothing found")


def show_findings(findings: Sequence[Finding], root: Path, stream: TextIO) -> None:
    """Findings grouped by severity, each with its count and first places, to people."""
    terminal = render.console(stream)
    fits = terminal.width if render.is_terminal(stream) else None
    severity = ""
    for finding in findings:
        if finding.severity != severity:
            severity = finding.severity
            terminal.print(f"{severity}s", style=_STYLES[severity], markup=False)
        terminal.print(f"  {finding.message}", markup=False, highlight=False)
        for line in _places(finding, root):
            terminal.print(
                _shortened(f"      {line}", fits), style="dim", markup=False, highlight=False
            )


def _places(finding: Finding, root: Path) -> Iterator[str]:
    """The remedy and the first places of a finding, relative to the data set."""
    if finding.hint:
        yield f"fix: {finding.hint}"
    for example in finding.examples[:_EXAMPLES]:
        yield example.detail.replace(f"{root}{os.sep}", "")
    more = len(finding.examples) - _EXAMPLES
    if more > 0:
        yield f"... and {more:,} more"


def _shortened(line: str, width: int | None) -> str:
    """Cut at the end to a terminal's width."""
    return line if width is None or len(line) <= width else f"{line[: width - 3]}..."
