"""Create Matplotlib figures with readable ticks and labels, and save them as PNG files.

Labels of points are placed here, because Matplotlib has no function that prevents such labels from overlapping.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgerec.utils.atomic import replacing
from edgerec.utils.fonts import installed_fonts, split_by_font
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

BLUE, ORANGE, GRAY = "#2a6f97", "#e07a2f", "#8d99a6"
DARK = "#4a5560"
DPI = 120
_TICKS_PER_DECADE = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7))
MIN_TICKS = 4


def new_figure(width: float, height: float) -> Any:
    """Create an empty Matplotlib figure. ``width`` and ``height`` are in inches."""
    # Unlike pyplot, the Figure class needs neither global state nor a display.
    return require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path, dpi: int = DPI) -> None:
    """Save a figure as PNG. If the installed fonts lack characters, log a warning that names fonts to install."""
    use_fallback_fonts(figure)
    with replacing(path) as partial, glyph_warnings_logged(str(path)):
        figure.savefig(partial, format="png", dpi=dpi)


def use_fallback_fonts(figure: Any) -> None:
    """Set fallback fonts for text with characters that Matplotlib's default font lacks."""
    manager = require("matplotlib.font_manager")
    for text in figure.findobj(require("matplotlib.text").Text):
        if text.get_text().isascii():
            continue
        scalable = [font for font in installed_fonts() if font.scalable and "color" not in font.family.lower()]
        usable = [char for char in text.get_text() if any(font.has(char) for font in scalable)]
        families = []
        for _, font in split_by_font("".join(usable), scalable) or ():
            if font.path.suffix.lower() in (".ttf", ".otf"):
                manager.fontManager.addfont(str(font.path))
                families.append(manager.FontProperties(fname=str(font.path)).get_name())
        if families:
            text.set_fontfamily(["DejaVu Sans", *dict.fromkeys(families)])


@contextmanager
def glyph_warnings_logged(name: str) -> Iterator[None]:
    """Replace Matplotlib's warnings about missing glyphs with a single log message.

    Args:
        name: name of the figure for the log message. If empty, nothing is logged.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    glyphs = {str(one.message) for one in caught if str(one.message).startswith("Glyph ")}
    for one in caught:
        if str(one.message) not in glyphs:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if glyphs and name:
        log.warning(
            "%s: the installed fonts lack %d of the labels' characters, which are drawn as boxes: install fonts "
            "for their script, e.g. with apt install fonts-noto",
            *(name, len(glyphs)),
        )


def plain(text: str, longest: int = 1000) -> str:
    """Escape a string so that Matplotlib shows it unchanged. A long string is shortened in the middle."""
    short = text if len(text) <= longest else f"{text[: longest // 2]}…{text[1 - longest // 2 :]}"
    short = short.encode("utf-8", "backslashreplace").decode()  # File names may contain bytes that are not valid UTF-8.
    return short.replace("$", r"\$")  # Matplotlib would render text between dollar signs as a formula.


def label_log_axis(axis: Any) -> None:
    """Label a logarithmic axis with at least ``MIN_TICKS`` ticks, even if it covers less than a decade.

    Call this after everything is drawn and the margins are set.
    """
    ticker = require("matplotlib.ticker")
    _update_limits(axis)
    low, high = sorted(axis.get_view_interval())
    ticks: list[float] = []
    for steps in _TICKS_PER_DECADE:
        locator = ticker.LogLocator(subs=steps, numticks=100)
        ticks = [value for value in locator.tick_values(low, high) if low <= value <= high]
        if len(ticks) >= MIN_TICKS:
            break
    else:  # The axis covers less than half a decade and needs linear ticks.
        candidates = ticker.MaxNLocator(2 * MIN_TICKS - 1).tick_values(low, high)
        ticks = [value for value in candidates if low <= value <= high]
    while len(ticks) > 2 * MIN_TICKS:
        ticks = ticks[::2]
    axis.set_ticks(ticks, [f"{value:,.10g}" if value < 1e9 else f"{value:.3g}" for value in ticks])
    axis.set_ticks([], minor=True)


def _update_limits(axis: Any) -> None:
    """Compute the limits of an axis before Matplotlib draws the figure."""
    axis.axes.get_xlim()
    axis.axes.get_ylim()


def label_points(axes: Any, points: Sequence[tuple[float, float]], labels: Sequence[str], **style: Any) -> None:
    """Label points so that the labels overlap neither each other nor the points.

    Call this after everything is drawn and the margins are set. If there is no space beside
    a point, its label is placed further away and connected to the point with a line.

    Args:
        axes: matplotlib axes.
        points: x and y in data coordinates.
        labels: one label for each point.
        style: arguments of :meth:`matplotlib.axes.Axes.annotate`, such as ``fontsize``.
    """
    figure = axes.figure
    renderer = require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure).get_renderer()
    with glyph_warnings_logged(""):
        figure.draw_without_rendering()  # computes the layout
    pixel = figure.dpi / 72
    inside = axes.get_window_extent(renderer)
    box_of = require("matplotlib.transforms").Bbox.from_extents
    occupied = []
    for x, y in axes.transData.transform(points):
        occupied.append(box_of(x - 4 * pixel, y - 4 * pixel, x + 4 * pixel, y + 4 * pixel))
    legend = axes.get_legend()
    if legend is not None:
        occupied.append(legend.get_window_extent(renderer))
    for number, (point, label) in enumerate(zip(points, labels, strict=True)):
        others = occupied[:number] + occupied[number + 1 :]
        best = None
        for dx, dy, side in _label_positions():
            note = axes.annotate(
                plain(label),
                point,
                xytext=(dx, dy),
                textcoords="offset points",
                ha=side,
                va="center",
                arrowprops={"arrowstyle": "-", "color": GRAY, "linewidth": 0.5} if abs(dy) > 12 else None,
                **style,
            )
            note.set_in_layout(False)
            with glyph_warnings_logged(""):
                note.update_positions(renderer)
                box = require("matplotlib.text").Text.get_window_extent(note, renderer)
            outside = box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1
            overlaps = sum(box.overlaps(other) for other in others) + 10 * outside
            if best is None or overlaps < best[0]:
                if best is not None:
                    best[1].remove()
                best = overlaps, note, box
            else:
                note.remove()
            if overlaps == 0:
                break
        if best is not None:
            occupied.append(best[2])


def _label_positions() -> Iterator[tuple[float, float, str]]:
    """Yield candidate positions of a label: x and y offset in points, and horizontal alignment."""
    for dx, side in ((6, "left"), (-6, "right")):
        yield dx, 0, side
    for dy in (11, -11, 22, -22, 33, -33, 44, -44):
        for dx, side in ((0, "center"), (6, "left"), (-6, "right")):
            yield dx, dy, side
