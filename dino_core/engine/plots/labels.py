"""labels.png: statistics of the training labels, in pixels of the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dino_core.config import PreprocessConfig
from dino_core.data.records import DatasetIndex, ImageRecord, boxes_by_class
from dino_core.engine.plots.figure import ACCENT, BAD, panels, render, rgb, say, short
from dino_core.processing.preprocess import resized_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_CLASSES = 30
_IMBALANCE = 50  # ratio between classes above which the axis is logarithmic
_SIZE_BINS, _PLACE_BINS, _COUNT_BINS = 48, 32, 40


def draw_labels(dataset: DatasetIndex, preprocess: PreprocessConfig) -> bytes:
    """Boxes per class, their sizes and centers, and objects per image of the training split."""
    train, val = dataset.splits["train"], dataset.splits.get("val", ())
    boxes = _boxes_of(train, preprocess)

    def draw(figure: Figure) -> None:
        axes = panels(
            figure,
            [["classes", "sizes", "centers"], ["classes", "objects", "objects"]],
            width_ratios=[1.25, 1, 1],
            height_ratios=[1.25, 1],
        )
        _draw_classes(axes["classes"], dataset.classes.names, train, val)
        if boxes.sizes_px.size:
            _draw_sizes(figure, axes["sizes"], boxes.sizes_px)
            _draw_centers(axes["centers"], boxes.centers)
        else:
            say(axes["sizes"], "no boxes")
            say(axes["centers"], "no boxes")
        _draw_objects(axes["objects"], boxes.counts)

    return render((13, 8), draw)


@dataclass(frozen=True)
class _Boxes:
    """All objects of a split.

    Attributes:
        sizes_px: (N, 2) width and height in pixels of the network's input.
        centers: (N, 2) x and y, relative to the image.
        counts: Objects of each image.
    """

    sizes_px: NDArray[np.float64]
    centers: NDArray[np.float64]
    counts: NDArray[np.int64]


def _boxes_of(records: Sequence[ImageRecord], preprocess: PreprocessConfig) -> _Boxes:
    sizes, centers = [np.zeros((0, 2))], [np.zeros((0, 2))]
    for record in records:
        height, width = resized_size((record.height, record.width), preprocess)
        whole = np.array([record.width, record.height], np.float64)
        corners = record.boxes_xyxy_px[~record.is_crowd].astype(np.float64)
        low, high = corners[:, :2] / whole, corners[:, 2:] / whole
        sizes.append((high - low) * (width, height))
        centers.append((low + high) / 2)
    counts = np.array([int((~record.is_crowd).sum()) for record in records], np.int64)
    return _Boxes(np.concatenate(sizes), np.concatenate(centers), counts)


def _draw_classes(
    axes: Axes,
    names: Sequence[str],
    train: Sequence[ImageRecord],
    val: Sequence[ImageRecord],
) -> None:
    counts, held = boxes_by_class(train, len(names)), boxes_by_class(val, len(names))
    order = [int(i) for i in np.argsort(-counts, kind="stable") if names[i]]
    shown = order[:_MOST_CLASSES]
    values = counts[shown]
    rows = np.arange(len(shown))
    axes.barh(rows, values, color=[rgb(names[i]) for i in shown], height=0.72)
    most, least = int(values.max(initial=0)), int(min(values, default=0))
    if most > _IMBALANCE * max(1, least):
        axes.set_xscale("log")
        axes.set_xlim(left=0.5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlim(right=12.0 * most)  # room for the numbers
    else:
        axes.set_xlim(right=1.4 * max(1, most))
    size = 9 if len(shown) <= 16 else 7
    for row, index in enumerate(shown):
        lacks = not counts[index] or (len(val) > 0 and not held[index])
        text = f" {counts[index]}" + (f" (val {held[index]})" if val else "")
        place = max(float(counts[index]), 0.5 if axes.get_xscale() == "log" else 0.0)
        axes.text(place, row, text, va="center", fontsize=size, color=BAD if lacks else "black")
    axes.set_yticks(rows, [short(names[i]) for i in shown], fontsize=size)
    axes.set_ylim(max(len(shown), 6) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    hidden = len(order) - len(shown)
    more = f" (the {len(shown)} most frequent of {len(order)})" if hidden else ""
    axes.set_title(f"Boxes per class{more}")


def _draw_sizes(figure: Figure, axes: Axes, sizes_px: NDArray[np.float64]) -> None:
    from matplotlib.colors import LogNorm, Normalize

    sizes = np.maximum(sizes_px, 1.0)
    edges = np.geomspace(1.0, max(2.0, float(sizes.max()) * 1.02), _SIZE_BINS + 1)
    table, _, _ = np.histogram2d(sizes[:, 0], sizes[:, 1], bins=(edges, edges))
    shown = np.ma.masked_equal(table.T, 0)  # row: height, column: width
    most = float(table.max())
    norm = LogNorm(vmin=1, vmax=most) if most > 20 else Normalize(vmin=0, vmax=most)
    mesh = axes.pcolormesh(edges, edges, shown, cmap="viridis_r", norm=norm)
    axes.plot(edges, edges, color="#bbbbbb", linewidth=0.8, zorder=0)
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("log")
    ticks = [v for v in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048) if v <= edges[-1]]
    axes.set_xticks(ticks, [str(v) for v in ticks], fontsize=7)
    axes.set_yticks(ticks, [str(v) for v in ticks], fontsize=7)
    axes.minorticks_off()
    axes.set_xlabel("width, pixels of the network's input")
    axes.set_ylabel("height")
    small = 100 * float((sizes.max(axis=1) < 16).mean())
    axes.set_title(f"Box sizes ({small:.0f} % under 16 px)")
    bar = figure.colorbar(mesh, ax=axes, shrink=0.8, format=lambda value, _: f"{value:g}")
    bar.minorticks_off()
    bar.set_label("boxes")


def _draw_centers(axes: Axes, centers: NDArray[np.float64]) -> None:
    bins = int(
        np.clip(np.sqrt(len(centers)) / 2, 6, _PLACE_BINS)
    )  # so that a cell holds several boxes
    edges = np.linspace(0, 1, bins + 1)
    table, _, _ = np.histogram2d(centers[:, 1], centers[:, 0], bins=(edges, edges))
    axes.imshow(table, cmap="magma", extent=(0, 1, 1, 0), interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xticks([0, 0.5, 1], ["left", "", "right"])
    axes.set_yticks([0, 0.5, 1], ["top", "", "bottom"])
    axes.set_title("Box centers in the image")


def _draw_objects(axes: Axes, counts: NDArray[np.int64]) -> None:
    from matplotlib.ticker import MaxNLocator

    most = int(counts.max(initial=0))
    width = max(1, -(-(most + 1) // _COUNT_BINS))
    edges = np.arange(0, most + 1 + width, width)
    table, _ = np.histogram(counts, bins=edges)
    middle = edges[:-1] + (width - 1) / 2
    axes.bar(middle, table, width=0.85 * width, color=ACCENT)
    empty = int((counts == 0).sum())
    if empty:
        axes.bar(middle[:1], [empty], width=0.85 * width, color=BAD, label=f"{empty} without boxes")
        axes.legend()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("objects in an image")
    axes.set_ylabel("images")
    mean = float(counts.mean()) if len(counts) else 0.0
    axes.set_title(f"Objects per image: {mean:.1f} on average, at most {most}")
