"""Draw the report's charts with Matplotlib as inline SVG that uses the page's fonts and colors."""

from __future__ import annotations

import html
import io
import re
from typing import Any

from edgerec.compress.compression_plots import PALE, comparison_figure
from edgerec.report.content import Calibration, ReportContent
from edgerec.train.confidence_calibration import Reliability
from edgerec.train.training_plots import learning_curve
from edgerec.utils.figures import BLUE, DARK, GRAY, ORANGE, glyph_warnings_logged, new_figure
from edgerec.utils.optional import require

# These CSS variables replace the plot colors, so that charts match the page's color scheme.
CSS_COLORS = {
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GRAY: "var(--gray)",
    DARK: "var(--quiet)",
    PALE: "var(--line)",
    "#000000": "currentColor",
    "#ffffff": "var(--card)",
    "#b0b0b0": "var(--gray)",
}
_COLOR = re.compile(r"\b(fill|stroke): (#[0-9a-f]{6})")
# Bins with fewer images than this are drawn in a lighter color.
FEW_IMAGES = 10


def curves(report: ReportContent) -> list[str]:
    """Draw the loss and accuracy per epoch as two SVG charts."""
    charts = []
    for key in ("loss", "accuracy"):
        figure = new_figure(4.6, 3.1)
        learning_curve(figure.subplots(), report.history, report.training.best_epoch, key)
        charts.append(svg(figure, f"training and validation {key} per epoch"))
    return charts


def comparison(report: ReportContent, float_top1: float) -> str:
    """Draw each variant's accuracy, file size and time per image as an SVG chart."""
    exported = [row.variant for row in report.variants if row.exported]
    figure = comparison_figure(float_top1, report.variants, exported=exported)
    return svg(figure, "accuracy, file size and time per image for each variant")


def reliability_diagram(calibration: Calibration) -> str:
    """Draw a reliability diagram (accuracy and image count by score range) as an SVG chart.

    Bars show the accuracy with temperature scaling, and rings the accuracy without it.
    """
    figure = new_figure(4.6, 4.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    after, before = calibration.after, calibration.before
    above.plot([0, 1], [0, 1], "--", color=GRAY, linewidth=1)
    for bar in after.bins:
        if bar.accuracy is not None:
            alpha = 0.35 if bar.images < FEW_IMAGES else 1.0
            above.bar(
                (bar.low + bar.high) / 2, bar.accuracy, 0.85 * (bar.high - bar.low), color=BLUE, alpha=alpha, lw=0
            )
    above.plot(*_points(before), "o", color=ORANGE, markersize=4.5, markerfacecolor="white")
    above.set(ylabel="accuracy", ylim=(0, 1.03), xlim=(0, 1))
    below.bar(
        [(bar.low + bar.high) / 2 for bar in after.bins],
        [bar.images for bar in after.bins],
        0.85 / len(after.bins),
        color=GRAY,
    )
    below.set(xlabel="score of the predicted label", ylabel="images")
    below.yaxis.get_major_locator().set_params(nbins=2, integer=True)
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return svg(figure, f"reliability diagram for {calibration.model}")


def _points(before: Reliability) -> tuple[list[float], list[float]]:
    known = [(bar.score, bar.accuracy) for bar in before.bins if bar.score is not None and bar.accuracy is not None]
    return [score for score, _ in known], [accuracy for _, accuracy in known]


def svg(figure: Any, title: str) -> str:
    """Return a figure as a self-contained ``<svg>`` element, with ``title`` as its accessible name."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRAY)
        axes.tick_params(color=GRAY, length=3)
        axes.title.set_fontsize(11)
    text = io.StringIO()
    # SVG text elements use the browser's fonts, and a fixed salt makes the output reproducible.
    with require("matplotlib").rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgerec"}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with glyph_warnings_logged(""):  # missing glyphs do not matter, because the browser uses its own fonts
            figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)  # figures share IDs, but IDs must be unique on a page
    drawn = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", drawn).replace("xlink:href", "href")
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.S)
    drawn = _COLOR.sub(lambda match: f"{match[1]}: {CSS_COLORS.get(match[2], match[2])}", drawn)
    return drawn.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
