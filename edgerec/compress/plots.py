"""Pictures of variants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgerec.train.plots import BLUE, GREY, ORANGE, new_figure, save_figure

if TYPE_CHECKING:
    from edgerec.compress.compare import Row


def accuracy_against_size(float_top1: float, rows: Sequence[Row], path: Path) -> None:
    """Top-1 over the size of the file (a dot) and of the file compressed by gzip (a ring), for each variant."""
    figure = new_figure(9, 5)
    axes = figure.subplots()
    axes.axhline(100 * float_top1, color=GREY, linewidth=1, linestyle="--", label="float Keras")
    for number, row in enumerate(rows):
        top1, size, packed = 100 * row.top1, row.size_bytes / 1024, row.gzip_bytes / 1024
        axes.plot([packed, size], [top1, top1], color=GREY, linewidth=0.8, zorder=1)
        axes.plot(size, top1, "o", color=BLUE, label=None if number else "file")
        axes.plot(packed, top1, "o", color=ORANGE, markerfacecolor="white", label=None if number else "gzip")
    axes.set_xscale("log")
    axes.margins(0.12)
    # Names stand in a column at the right, each with a line to its file: points that coincide stay readable.
    low, high = axes.get_ylim()
    place = high
    for row in sorted(rows, key=lambda row: (-row.top1, -row.size_bytes)):
        place = min(place - (high - low) / 20, 100 * row.top1)
        axes.annotate(
            row.variant,
            (row.size_bytes / 1024, 100 * row.top1),
            xytext=(1.03, place),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5},
        )
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "1235" else "")
    axes.set(xlabel="KiB", ylabel="top-1 on held-out pictures, %", title="Accuracy against size")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower left")
    save_figure(figure, path)
