"""pr.png and confusion.png: precision and recall of an evaluation, and the classes it confuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dino_core.engine.plots.figure import GRAY, render, rgb, say, short
from dino_core.evaluation.confusion import ConfusionMatrix
from dino_core.evaluation.precision_recall import RECALLS, ClassCurve, PrecisionRecall

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED_CURVES = 12
_MOST_CLASSES = 60
_NUMBERED = 30  # largest number of rows whose cells show their counts
_LINES = ("-", "--", "-.", ":")


def draw_precision_recall(result: PrecisionRecall, title: str) -> bytes:
    """Precision over recall of each class and their mean, as PNG; `title` says what was scored.

    Of many classes, the best and the worst ones are named and the others are gray.
    """
    ranked = sorted(result.curves, key=lambda curve: -curve.ap)
    named, others = ranked, []
    if len(ranked) > _NAMED_CURVES:
        half = _NAMED_CURVES // 2
        named, others = [*ranked[:half], *ranked[-half:]], ranked[half:-half]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if not ranked:
            say(axes, "no labeled objects")
            return
        for curve in others:
            axes.plot(RECALLS, curve.precision, color="#d5d5d5", linewidth=0.8)
        for number, curve in enumerate(named):
            _draw_curve(axes, curve, _LINES[number % len(_LINES)])
        if len(ranked) > 1:
            label = f"mean of {len(ranked)} classes  AP50 {float(result.mean.mean()):.3f}"
            axes.plot(RECALLS, result.mean, color="black", linewidth=2.6, label=label)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axes.set_title(f"Precision and recall at IoU {result.iou:g}, {title}")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8,
            title="class  AP50, best F1 at score", alignment="left")  # fmt: skip

    return render((9.5, 6), draw)


def _draw_curve(axes: Axes, curve: ClassCurve, line: str) -> None:
    best = curve.best
    where = f", F1 {best.f1:.2f} at {best.threshold:.2f}" if best.threshold is not None else ""
    label = f"{short(curve.name)}  {curve.ap:.3f}{where}"
    axes.plot(
        RECALLS, curve.precision, color=rgb(curve.name), linestyle=line, linewidth=1.5, label=label
    )


def draw_confusion(matrix: ConfusionMatrix, title: str) -> bytes:
    """The confusion matrix as PNG: colors are shares of a class's objects, numbers are counts."""
    classes = len(matrix.names)
    order = np.argsort(-matrix.counts[:classes].sum(axis=1), kind="stable")
    shown = np.sort(order[:_MOST_CLASSES])  # the most frequent classes, in class order
    rows = [*shown.tolist(), classes]
    counts = matrix.counts[np.ix_(rows, rows)]
    objects = np.maximum(matrix.counts[shown].sum(axis=1), 1)
    shares = counts / np.append(objects, 1)[:, None]
    shares[-1] = np.append(
        np.minimum(counts[-1, :-1] / objects, 1.0), 0.0
    )  # false detections per object
    names = [*(short(matrix.names[i], 16) for i in shown), "background"]
    side = float(np.clip(3.0 + 0.42 * len(rows), 5.0, 15.0))
    cut = f", the {len(shown)} most frequent of {classes} classes" if len(shown) < classes else ""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        size = 8 if len(rows) <= _NUMBERED else 6
        places = range(len(rows))
        axes.set_xticks(places, names, rotation=90 if len(rows) > 6 else 0, fontsize=size)
        axes.set_yticks(places, names, fontsize=size)
        axes.set_xlabel("predicted (background: missed)")
        axes.set_ylabel("truth (background: false detection)")
        axes.axhline(len(rows) - 1.5, color=GRAY, linewidth=0.8)
        axes.axvline(len(rows) - 1.5, color=GRAY, linewidth=0.8)
        if len(rows) <= _NUMBERED:
            _write_counts(axes, shares, counts.tolist())
        bar = figure.colorbar(image, ax=axes, shrink=0.7)
        bar.set_label("share of the class's objects")
        axes.set_title(
            f"What objects were detected as, {title}\n"
            f"score ≥ {matrix.threshold:.2f}, IoU ≥ {matrix.iou:g}{cut}"
        )

    return render((side + 1.8, side), draw)


def _write_counts(axes: Axes, shares: np.ndarray[tuple[int, int], np.dtype[np.float64]],
                  counts: list[list[int]]) -> None:  # fmt: skip
    size = 9 if len(counts) <= 12 else 6.5
    for row, values in enumerate(counts):
        for column, value in enumerate(values):
            if value or row == column < len(counts) - 1:
                color = "white" if shares[row, column] > 0.55 else "black"
                axes.text(column, row, str(value), ha="center", va="center", color=color,
                          fontsize=size)  # fmt: skip
