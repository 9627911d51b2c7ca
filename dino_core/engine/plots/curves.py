"""curves.png: losses, learning rate and scores over steps, from the rows of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dino_core.engine.plots.figure import ACCENT, GRAY, panels, render, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_TERMS = (("loss_class", "class"), ("loss_bbox", "box L1"), ("loss_giou", "GIoU"))
_SCORES = (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"))
_COLORS = (ACCENT, "#e08214", "#2f8f4e")
_SMOOTH_FROM = 30  # number of points from which on a running mean is drawn


def draw_curves(rows: Sequence[Row]) -> bytes:
    """Draw the curves as PNG.

    Args:
        rows: Rows of the events "step", "evaluation" and "warning"; others are ignored.
    """
    steps = [row for row in rows if row.get("event") == "step"]
    scores = [row for row in rows if row.get("event") == "evaluation"]

    def draw(figure: Figure) -> None:
        axes = panels(figure, [["loss", "terms"], ["scores", "lr"]])
        _draw_lines(axes["loss"], steps, (("loss", "all terms"),), "Training loss")
        _draw_lines(axes["terms"], steps, _TERMS, "Its parts (last layer)")
        _draw_scores(axes["scores"], scores)
        _draw_lines(axes["lr"], steps, (("lr", "lr"),), "Learning rate of the head")
        axes["lr"].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=False)
        last = max((row["step"] for row in (*steps, *scores)), default=1)
        for part in axes.values():
            part.set_xlim(0, 1.02 * last)
        for row in rows:
            if row.get("event") == "warning":
                axes["loss"].axvline(row.get("step", 0), color=GRAY, linewidth=0.7, linestyle=":")

    return render((12, 7), draw)


def series(rows: Sequence[Row], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of a column, from the rows in which it is a number."""
    pairs = [(r["step"], r[name]) for r in rows if isinstance(r.get(name), (int, float))]
    table = np.array(pairs, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Mean of each value and the finite ones among `width` // 2 neighbors on either side."""
    kernel = np.ones(2 * (width // 2) + 1)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), kernel, mode="same")
    count = np.convolve(finite.astype(np.float64), kernel, mode="same")
    result = np.full(len(values), np.nan)
    return np.asarray(np.divide(total, count, out=result, where=count > 0))


def _draw_lines(
    axes: Axes, rows: Sequence[Row], columns: Sequence[tuple[str, str]], title: str
) -> None:
    axes.set_title(title)
    drawn = 0
    for (name, label), color in zip(columns, _COLORS, strict=False):
        steps, values = series(rows, name)
        if not len(steps):
            continue
        drawn += 1
        smooth = len(steps) >= _SMOOTH_FROM and name != "lr"
        axes.plot(
            steps, values, color=color, alpha=0.3 if smooth else 1.0,
            linewidth=1.5, marker="" if len(steps) > 1 else "o", label="" if smooth else label,
        )  # fmt: skip
        if smooth:
            mean = running_mean(values, max(3, len(values) // 20))
            axes.plot(steps, mean, color=color, linewidth=1.8, label=label)
    if not drawn:
        say(axes, "no step was reported yet")
        return
    _step_axis(axes)
    if len(columns) > 1:
        axes.legend()


def _draw_scores(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_title("Validation")
    if not rows:
        say(axes, "no evaluation")
        return
    for (name, label), color in zip(_SCORES, _COLORS, strict=True):
        steps, values = series(rows, name)
        if len(steps):
            axes.plot(steps, values, color=color, marker="o", markersize=3, label=label)
    steps, values = series(rows, "ap")
    if len(steps):
        best = int(np.argmax(values))
        axes.plot(steps[best], values[best], marker="*", markersize=13, color=_COLORS[0])
        axes.annotate(
            f"best {values[best]:.3f}", (steps[best], values[best]), xytext=(0, 8),
            textcoords="offset points", ha="center", color=_COLORS[0],
        )  # fmt: skip
        axes.set_ylim(0, min(1.02, max(0.05, 1.15 * _highest(rows))))
        axes.legend(loc="best")
    _step_axis(axes)


def _step_axis(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")


def _highest(rows: Sequence[Row]) -> float:
    return max(float(series(rows, name)[1].max(initial=0.0)) for name, _ in _SCORES)
