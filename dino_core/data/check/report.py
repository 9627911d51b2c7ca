"""A check's findings as one HTML file that opens offline, with pictures of what is wrong."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dino_core.data.check.findings import CheckReport, Finding
from dino_core.data.check.images import reduced
from dino_core.data.fault_kinds import SEVERITIES, Severity
from dino_core.data.faults import Fault, MarkedBox
from dino_core.errors import DataError
from dino_core.processing.image_files import open_image, upright_size

_PICTURES_PER_KIND = 12
_COPIES_SHOWN = 3  # of a group of equal images
_PICTURE_SIDE = 320
_JPEG_QUALITY = 70
_MARGIN = 0.01  # around the image, so that a box on its border is seen
_TITLES: dict[Severity, str] = {"error": "Errors", "warning": "Warnings", "note": "Notes"}

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; background: #fff; color: #1b1f24;
       font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; padding-bottom: .25rem; border-bottom: 2px solid; }
h3 { font-size: 1rem; margin: 1.25rem 0 0; }
.error { color: #a40e26; } .warning { color: #7a4b00; } .note { color: #0b4f9c; }
p { margin: .1rem 0 .5rem; } .hint { color: #4b535d; }
table { border-collapse: collapse; margin: .5rem 0; }
td, th { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.pictures { display: grid; gap: .75rem; margin: .5rem 0; align-items: start;
            grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
figure { margin: 0; padding: .5rem; border: 1px solid #d0d7de; border-radius: 6px; }
@media (min-width: 40rem) { figure.group { grid-column: span 2; } }
.copies { display: grid; gap: .5rem;
          grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); }
svg { display: block; width: 100%; max-height: 20rem; margin: 0 auto; background: #eef1f4; }
rect { fill: none; stroke: #e3000f; stroke-width: 2.5px; vector-effect: non-scaling-stroke; }
.broken { padding: 2rem .5rem; text-align: center; background: #eef1f4; color: #4b535d; }
figcaption, li { font-size: .8125rem; color: #30363d; }
figcaption { margin-top: .35rem; }
summary { cursor: pointer; color: #0b4f9c; padding: .35rem 0; }
"""


def html_report(report: CheckReport) -> str:
    """The page. Each kind shows at most twelve pictures and lists every place that is known."""
    title = f"Check of {html.escape(str(report.root))}"
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>{title}</h1>",
        *_summary(report),
    ]
    for severity in SEVERITIES:
        findings = [f for f in report.findings if f.severity == severity]
        if findings:
            parts.append(f'<h2 class="{severity}">{_TITLES[severity]}</h2>')
            for finding in findings:
                parts += _section(finding, report.root)
    if not report.findings:
        parts.append("<p>Nothing was found.</p>")
    return "\n".join([*parts, "</body>\n</html>\n"])


def _summary(report: CheckReport) -> Iterable[str]:
    """Sizes of the splits, boxes of the classes, and the findings in one list."""
    counts = ", ".join(
        f'<strong class="{s}">{report.count(s):,} {s}{"" if report.count(s) == 1 else "s"}</strong>'
        for s in SEVERITIES
    )
    yield f"<p>{counts}. Format {report.format}; {report.images_decoded:,} images were decoded.</p>"
    yield '<table><tr><th>split</th><th class="number">images</th>'
    yield '<th class="number">boxes</th></tr>'
    for name, split in report.splits.items():
        yield _row(name, split.images, split.boxes)
    yield "</table>"
    classes = len(report.boxes_of_class)
    yield f"<details><summary>{classes} class{'' if classes == 1 else 'es'}</summary>"
    yield '<table><tr><th>class</th><th class="number">boxes</th></tr>'
    for name, boxes in sorted(report.boxes_of_class.items(), key=lambda item: -item[1]):
        yield _row(name, boxes)
    yield "</table></details>"


def _row(name: str, *numbers: int) -> str:
    cells = "".join(f'<td class="number">{number:,}</td>' for number in numbers)
    return f"<tr><td>{html.escape(name)}</td>{cells}</tr>"


def _section(finding: Finding, root: Path) -> Iterable[str]:
    yield f'<h3 class="{finding.severity}">{html.escape(finding.message)}</h3>'
    if finding.hint:
        yield f'<p class="hint">{html.escape(finding.hint)}</p>'
    pictured = [example for example in finding.examples if example.paths][:_PICTURES_PER_KIND]
    if pictured:
        yield '<div class="pictures">'
        yield from (_figure(example, root) for example in pictured)
        yield "</div>"
    shown = {id(example) for example in pictured}
    others = [example for example in finding.examples if id(example) not in shown]
    if others:
        yield f"<details{'' if pictured else ' open'}><summary>{len(others):,}"
        yield f"{' more' if pictured else ''} place{'' if len(others) == 1 else 's'}</summary><ul>"
        yield from (f"<li>{html.escape(_shortened(e.place, root))}</li>" for e in others)
        yield "</ul></details>"


def _figure(example: Fault, root: Path) -> str:
    caption = f"<figcaption>{html.escape(_shortened(example.place, root))}</figcaption>"
    if len(example.paths) == 1:
        return f"<figure>{_picture(example.paths[0], example.boxes)}{caption}</figure>"
    copies = "".join(_picture(path, ()) for path in example.paths[:_COPIES_SHOWN])
    return f'<figure class="group"><div class="copies">{copies}</div>{caption}</figure>'


def _shortened(detail: str, root: Path) -> str:
    """Paths in the data set's folder are shown relative to it."""
    return detail.replace(f"{root}{os.sep}", "")


def _picture(path: Path, boxes: Sequence[MarkedBox]) -> str:
    """The upright image as inline SVG with boxes over it; a remark where it cannot be shown."""
    size = upright_size(path)
    encoded = _thumbnail(path)
    if size is None or encoded is None:
        return f'<div class="broken">{html.escape(path.name)}<br>cannot be shown</div>'
    shapes = "".join(_rectangle(box) for box in boxes)
    return (
        f'<svg viewBox="{_view(size, boxes)}" role="img"><title>{html.escape(path.name)}</title>'
        f'<image width="{size[0]}" height="{size[1]}" preserveAspectRatio="none" '
        f'href="data:image/jpeg;base64,{encoded}"/>{shapes}</svg>'
    )


def _thumbnail(path: Path) -> str | None:
    """The upright image, small, as base64 of a JPEG; None where it cannot be decoded."""
    try:
        with open_image(path) as image:
            picture = reduced(image, _PICTURE_SIDE)
    except DataError:
        return None
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()


def _view(size_wh: tuple[int, int], boxes: Sequence[MarkedBox]) -> str:
    """The part of the plane to show: the image, and half of it around where boxes lie outside."""
    low, high = [], []
    for axis, side in enumerate(size_wh):
        ends = [box.xyxy_px[corner] for box in boxes for corner in (axis, axis + 2)]
        low.append(max(min([0.0, *ends]), -side / 2) - _MARGIN * side)
        high.append(min(max([float(side), *ends]), side * 1.5) + _MARGIN * side)
    return f"{low[0]:.1f} {low[1]:.1f} {high[0] - low[0]:.1f} {high[1] - low[1]:.1f}"


def _rectangle(box: MarkedBox) -> str:
    x1, y1, x2, y2 = box.xyxy_px
    x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    return (
        f'<rect x="{x1:.2f}" y="{y1:.2f}" width="{x2 - x1:.2f}" height="{y2 - y1:.2f}">'
        f"<title>{html.escape(box.label)}</title></rect>"
    )
