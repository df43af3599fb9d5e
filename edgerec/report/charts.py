"""Figures as SVG that stands in the page's text and takes its colours and letters, light or dark."""

from __future__ import annotations

import html
import io
import re
from typing import Any

from edgerec.compress.compression_plots import PALE, comparison_figure
from edgerec.report.model import Calibration, RunReport
from edgerec.train.confidence_calibration import Reliability
from edgerec.train.training_plots import learning_curve
from edgerec.utils.figures import BLUE, DARK, GREY, ORANGE, glyph_warnings_logged, new_figure
from edgerec.utils.optional import require

# The colours that edgerec draws in, as the page's style sheet calls them.
NAMES = {
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREY: "var(--grey)",
    DARK: "var(--quiet)",
    PALE: "var(--line)",
    "#000000": "currentColor",
    "#ffffff": "var(--card)",
    "#b0b0b0": "var(--grey)",
}
_COLOUR = re.compile(r"\b(fill|stroke): (#[0-9a-f]{6})")
# Bins with fewer pictures are drawn paler.
FEW = 10


def curves(report: RunReport) -> list[str]:
    """Loss and accuracy over the epochs, a figure each."""
    drawn = []
    for key in ("loss", "accuracy"):
        figure = new_figure(4.6, 3.1)
        learning_curve(figure.subplots(), report.history, report.made.best_epoch, key)
        drawn.append(svg(figure, f"{key} of training and validation over the epochs"))
    return drawn


def comparison(report: RunReport, float_top1: float) -> str:
    """Draw accuracy, file size and time per image of the variants as SVG."""
    exported = [row.variant for row in report.variants if row.exported]
    figure = comparison_figure(float_top1, report.variants, exported=exported)
    return svg(figure, "accuracy, bytes and milliseconds of each variant")


def reliability_diagram(calibration: Calibration) -> str:
    """Accuracy over the score in bins: bars with the temperature, rings
    without; below, how many pictures."""
    figure = new_figure(4.6, 4.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    after, before = calibration.after, calibration.before
    above.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    for bar in after.bins:
        if bar.accuracy is not None:
            pale = 0.35 if bar.images < FEW else 1.0
            above.bar((bar.low + bar.high) / 2, bar.accuracy, 0.85 * (bar.high - bar.low), color=BLUE, alpha=pale, lw=0)
    above.plot(*_points(before), "o", color=ORANGE, markersize=4.5, markerfacecolor="white")
    above.set(ylabel="part that is right", ylim=(0, 1.03), xlim=(0, 1))
    below.bar(
        [(bar.low + bar.high) / 2 for bar in after.bins],
        [bar.images for bar in after.bins],
        0.85 / len(after.bins),
        color=GREY,
    )
    below.set(xlabel="score of the answer", ylabel="pictures")
    below.yaxis.get_major_locator().set_params(nbins=2, integer=True)
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return svg(figure, f"reliability of {calibration.form}")


def _points(before: Reliability) -> tuple[list[float], list[float]]:
    known = [(bar.score, bar.accuracy) for bar in before.bins if bar.score is not None and bar.accuracy is not None]
    return [score for score, _ in known], [accuracy for _, accuracy in known]


def svg(figure: Any, title: str) -> str:
    """The figure as ``<svg>`` without a reference to anything outside it; ``title`` is for those who cannot see
    it."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(color=GREY, length=3)
        axes.title.set_fontsize(11)
    text = io.StringIO()
    # Letters stay letters, and the same figure the same text.
    with require("matplotlib").rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgerec"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with glyph_warnings_logged(""):  # the browser draws the text with its own fonts
            figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)  # the same in every figure, and the page has several
    drawn = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", drawn).replace("xlink:href", "href")
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.S)
    drawn = _COLOUR.sub(lambda found: f"{found[1]}: {NAMES.get(found[2], found[2])}", drawn)
    return drawn.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
