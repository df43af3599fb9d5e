"""Pictures of variants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

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


def layer_bars(
    names: Sequence[str],
    ratios: Sequence[tuple[float | None, float | None, float | None]],
    marked: Sequence[bool],
    limits_db: tuple[float, float],
    title: str,
    path: Path,
) -> None:
    """Layers in execution order from above: the bar is the SQNR in the whole model, dots are that of the layer's own
    noise at its output and at the logits (``ratios``, dB). The ``marked`` are orange; ``limits_db`` are from where on a
    ratio is good, and from where on it is called exact.
    """
    low_db, exact_db = limits_db
    figure = new_figure(8.5, float(np.clip(0.22 * len(names) + 1.5, 2.5, 60)))
    axes = figure.subplots()
    rows = np.arange(len(names))
    sqnr, own, alone = (
        np.array([np.nan if v is None else v for v in column], float) for column in zip(*ratios, strict=True)
    )
    colours = [ORANGE if mark else BLUE for mark in marked]
    axes.barh(rows, np.nan_to_num(sqnr), color=colours, height=0.7, label="in the whole model")
    axes.plot(own, rows, "o", color=GREY, markersize=4, label="its own noise, at its output")
    axes.plot(alone, rows, "D", color="black", markersize=3.5, label="its own noise, at the logits")
    axes.axvline(low_db, color=ORANGE, linewidth=1, label=f"{low_db:g} dB: noise of a tenth")
    axes.set_yticks(rows, [name.replace("$", r"\$") for name in names], fontsize=8)
    for tick, mark in zip(axes.get_yticklabels(), marked, strict=True):
        tick.set_color(ORANGE if mark else "black")
    axes.set(title=title.replace("$", r"\$"), xlabel="signal to quantization noise, dB", ylim=(len(names) - 0.4, -0.6))
    # What is exact would press the others together.
    finite = [ratio for row in ratios for ratio in row if ratio is not None and ratio < exact_db]
    axes.set_xlim(0, 10 + max(finite, default=low_db))
    axes.grid(alpha=0.25, axis="x")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    save_figure(figure, path)
