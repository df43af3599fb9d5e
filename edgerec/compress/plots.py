"""Pictures of variants and of calibration sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgerec.data.plots import BLUE, GREY, ORANGE, new_figure, save_figure


class Sized(Protocol):
    """What of a variant's row is drawn."""

    @property
    def variant(self) -> str: ...
    @property
    def top1(self) -> float: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def gzip_bytes(self) -> int: ...


def accuracy_against_size(float_top1: float, rows: Sequence[Sized], path: Path, gained: str = "top-1") -> None:
    """:func:`size_figure` as a PNG."""
    save_figure(size_figure(float_top1, rows, 9, 5, gained), path)


def size_figure(float_top1: float, rows: Sequence[Sized], width: float, height: float, gained: str = "top-1") -> Any:
    """Top-1, or what else is ``gained``, over the size of the file (a dot) and of the file compressed by gzip (a ring),
    for each variant; the sides are inches."""
    figure = new_figure(width, height)
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
            row.variant.replace("$", r"\$"),
            (row.size_bytes / 1024, 100 * row.top1),
            xytext=(1.03, place),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5},
        )
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "1235" else "")
    title = "Accuracy against size" if gained == "top-1" else "What is left against size"
    axes.set(xlabel="KiB", ylabel=f"{gained} on held-out pictures, %", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


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


def contact_sheet(
    images: npt.NDArray[np.uint8],
    titles: Sequence[str],
    reference: npt.NDArray[np.uint8] | None,
    name: str,
    path: Path,
    most: int = 60,
) -> None:
    """Some of the pictures uint8 ``(N, H, W, C)`` with their titles, sorted and evenly chosen by title, above the
    histogram of all their pixel values; that of ``reference`` is filled behind it."""
    by_title = sorted(range(len(images)), key=lambda i: titles[i])
    some = [by_title[i] for i in np.linspace(0, len(images) - 1, num=min(most, len(images)), dtype=int)]
    columns = int(np.clip(len(some), 5, 10))
    rows = -(-len(some) // columns)
    small = images[some, :: -(-images.shape[1] // 128), :: -(-images.shape[2] // 128)]  # more pixels are not seen
    height, width = small.shape[1:3]
    tall = 11 / columns * height / width * 1.25 * rows
    figure = new_figure(11, tall + 3.4)
    shown = f", {len(some)} of them shown" if len(some) < len(images) else ""
    figure.suptitle(f"{name}: {len(images)} pictures{shown}".replace("$", r"\$"))
    above, below = figure.subplots(2, 1, height_ratios=(tall, 3))
    # One picture of all of them: an axes each would take seconds.
    sheet = np.full((int(rows * height * 1.25), int(columns * width * 1.05), 3), 255, np.uint8)
    for cell, i in enumerate(some):
        top, left = int((cell // columns + 0.2) * height * 1.25), int(cell % columns * width * 1.05)
        sheet[top : top + height, left : left + width] = small[cell]
        title = titles[i][:18].replace("$", r"\$")
        above.text(left + width / 2, top - 0.04 * height, title, ha="center", va="bottom", fontsize=8)
    above.imshow(sheet)
    above.set_axis_off()
    _pixel_histogram(below, images, reference)
    save_figure(figure, path)


def _pixel_histogram(axes: Any, images: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8] | None) -> None:
    """How often each pixel value is in each channel, eight values a bin; filled for the reference."""
    edges = np.arange(0, 257, 8)
    grey = images.shape[3] == 1
    named = [("grey", "black")] if grey else [("red", "#c0392b"), ("green", "#2e8b57"), ("blue", BLUE)]

    def draw(pixels: npt.NDArray[np.uint8], note: str, **style: Any) -> None:
        for channel, (name, colour) in enumerate(named):
            parts = np.histogram(pixels[..., channel], edges)[0] / pixels[..., channel].size
            axes.stairs(parts, edges, color=colour, label=name + note, **style)

    if reference is not None and reference.shape[3] == images.shape[3]:
        draw(reference, ", training", fill=True, alpha=0.15)
    draw(images, "", linewidth=1.5)
    axes.set(xlabel="pixel value", ylabel="part of the pixels", xlim=(0, 256))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, ncols=2)
