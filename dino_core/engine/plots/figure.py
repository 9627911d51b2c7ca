"""Renders one matplotlib figure as PNG, without pyplot, global state or the user's settings.

matplotlib is imported with the first plot: importing it takes longer than a training step.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from dino_core.inference.draw import class_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCENT, GRAY, BAD = "#1f6fb2", "#8a8a8a", "#c0392b"
_STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called "$5"
}
_MORE_FONTS = (  # for characters that matplotlib's own DejaVu Sans lacks
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "Arial Unicode MS"),
    *("Microsoft YaHei", "PingFang SC", "Noto Sans"),
)
_DPI = 100


def render(size_inches: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    """Draw on an empty figure.

    Args:
        size_inches: Width and height.
        draw: Draws on the figure.

    Returns:
        The bytes of a PNG file.
    """
    with _quietly():
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # a matplotlibrc may ask for LaTeX, a dark style or other fonts
            settings: Any = matplotlib.rcParams
            settings.update(_STYLE)
            settings["font.family"] = ["DejaVu Sans", *_fonts_at_hand()]
            figure = Figure(figsize=size_inches, dpi=_DPI, layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
    return buffer.getvalue()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence matplotlib's messages about fonts and caches."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _fonts_at_hand() -> list[str]:
    from matplotlib.font_manager import get_font_names

    known = set(get_font_names())
    return [name for name in _MORE_FONTS if name in known]


def rgb(label: str) -> tuple[float, float, float]:
    """Color of a class, the same as that of its boxes in images, as matplotlib expects it."""
    red, green, blue = class_color(label)
    return red / 255, green / 255, blue / 255


def short(name: str, limit: int = 18) -> str:
    """A class name, cut so that it fits beside an axis."""
    return name if len(name) <= limit else name[: limit - 1] + "…"


def panels(figure: Figure, layout: list[list[str]], **options: Any) -> dict[str, Axes]:
    """Named axes in a grid; a name in several cells spans them."""
    grid: Any = layout
    return cast("dict[str, Axes]", figure.subplot_mosaic(grid, **options))


def say(axes: Axes, text: str) -> None:
    """Write a sentence into axes that have nothing to show."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GRAY, transform=axes.transAxes)
