"""Draw plots of compressed models, layers and calibration sets."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgerec.utils.figures import BLUE, DARK, GRAY, ORANGE, new_figure, plain, save_figure

PALE = "#d5dbe1"
# Latency bars are truncated if they are longer than this multiple of the median.
OUTLIER = 4.0


class Measured(Protocol):
    """Accuracy, size and latency of a compressed model.

    See :class:`edgerec.compress.compare.VariantRow` for the units.
    """

    @property
    def variant(self) -> str: ...
    @property
    def top1(self) -> float: ...
    @property
    def top1_low(self) -> float: ...
    @property
    def top1_high(self) -> float: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def gzip_bytes(self) -> int: ...
    @property
    def median_ms(self) -> float | None: ...
    @property
    def p95_ms(self) -> float | None: ...


def comparison_plot(float_top1: float, rows: Sequence[Measured], path: Path, accuracy: str = "top-1") -> None:
    """Save the figure of :func:`comparison_figure` as a PNG file."""
    save_figure(comparison_figure(float_top1, rows, accuracy), path)


def comparison_figure(
    float_top1: float, rows: Sequence[Measured], accuracy: str = "top-1", exported: Collection[str] = ()
) -> Any:
    """Draw bar charts of the variants' accuracy, size and latency, and label each bar with its value.

    Args:
        float_top1: accuracy of the float Keras model, 0 to 1, which is drawn as a line.
        rows: variants, from top to bottom. The latency is omitted if it was not measured for any variant.
        accuracy: name of the accuracy metric.
        exported: names of the variants to mark as exported.
    """
    timed = any(row.median_ms is not None for row in rows)
    figure = new_figure(11 if timed else 8.5, 1.5 + 0.34 * len(rows))
    panels = figure.subplots(1, 3 if timed else 2, sharey=True)
    _accuracy_bars(panels[0], float_top1, rows, accuracy)
    _byte_bars(panels[1], rows)
    if timed:
        _millisecond_bars(panels[2], rows)
    names = [f"{plain(row.variant, 40)}{' (exported)' if row.variant in exported else ''}" for row in rows]
    panels[0].set_yticks(range(len(rows)), names, fontsize=9)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    for label, row in zip(panels[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.variant in exported else "normal")
    handles: dict[str, Any] = {}
    for axes in panels:
        axes.grid(alpha=0.25, axis="x")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right"]].set_visible(False)
        drawn, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _accuracy_bars(axes: Any, float_top1: float, rows: Sequence[Measured], accuracy: str) -> None:
    places = range(len(rows))
    values = np.array([[row.top1, row.top1_low, row.top1_high] for row in rows]) * 100
    lowest = min(values[:, 1].min(), 100 * float_top1)
    # Start the accuracy axis above zero if all accuracies are high, so that small differences remain visible.
    start = 5 * math.floor(lowest / 5 - 0.2) if lowest > 50 else 0
    axes.barh(places, values[:, 0] - start, left=start, height=0.66, color=BLUE, label=accuracy)
    errors = np.abs(values[:, 1:] - values[:, :1]).T
    axes.errorbar(
        *(values[:, 0], places, None, errors),
        fmt="none",
        ecolor="black",
        elinewidth=1,
        capsize=2.5,
        label="95 % confidence interval",
    )
    axes.axvline(100 * float_top1, color=ORANGE, linewidth=1, linestyle="--", label="float Keras")
    right = max(100 * float_top1, values[:, 2].max())
    for place, value in zip(places, values[:, 0], strict=True):
        _number(axes, right, place, f"{value:.2f}")
    axes.set_xlim(start, right + 0.22 * (right - start))
    axes.set_xticks([tick for tick in axes.get_xticks() if start <= tick <= 100.0001])
    note = f" (axis starts at {start} %)" if start else ""
    axes.set_xlabel(f"{accuracy} on test images, %{note}", fontsize=9)
    axes.set_title("Accuracy", fontsize=10, loc="left")


def _byte_bars(axes: Any, rows: Sequence[Measured]) -> None:
    sizes, packed = [row.size_bytes / 1024 for row in rows], [row.gzip_bytes / 1024 for row in rows]
    axes.barh(range(len(rows)), sizes, height=0.66, color=GRAY, label="file")
    axes.barh(range(len(rows)), packed, height=0.3, color=ORANGE, label="file compressed with gzip")
    for place, row in enumerate(rows):
        end = max(sizes[place], packed[place])
        _number(axes, end, place, f"{row.size_bytes:,} ({row.gzip_bytes:,})")
    axes.set_xlim(0, 1.75 * max(*sizes, *packed))
    axes.set_xlabel("KiB; numbers are bytes (gzip)", fontsize=9)
    axes.set_title("Size", fontsize=10, loc="left")


def _millisecond_bars(axes: Any, rows: Sequence[Measured]) -> None:
    known = {place: row for place, row in enumerate(rows) if row.median_ms is not None}
    medians = np.array([row.median_ms for row in known.values()], float)
    p95 = np.array([row.p95_ms or row.median_ms for row in known.values()], float)
    # Truncate long bars, because one slow variant would make all other bars too short to compare.
    end = min(float(p95.max()), OUTLIER * float(np.median(p95)))
    axes.barh(list(known), np.minimum(p95, end), height=0.66, color=PALE, label="95th percentile of the times")
    axes.barh(list(known), np.minimum(medians, end), height=0.66, color=DARK, label="median time")
    for place, median, slow in zip(known, medians, p95, strict=True):
        cut = " (bar cut)" if slow > end else ""
        _number(axes, min(slow, end), place, f"{median:.3g} ({slow:.3g}){cut}")
    axes.set_xlim(0, 1.6 * end or 1)
    axes.set_xlabel("ms per image; numbers are median (95th percentile)", fontsize=9)
    axes.set_title("Time", fontsize=10, loc="left")


def _number(axes: Any, x: float, y: float, text: str) -> None:
    # Indent the text with an offset, because SVG ignores leading spaces.
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5)


def layer_bars(
    names: Sequence[str],
    ratios: Sequence[tuple[float | None, float | None, float | None]],
    marked: Sequence[bool],
    limits_db: tuple[float, float],
    title: str,
    path: Path,
) -> None:
    """Plot the signal-to-quantization-noise ratio (SQNR) of each layer to a PNG file.

    Args:
        names: names of the layers in execution order, from top to bottom.
        ratios: three SQNR values in dB for each layer, or None if unknown. The first value is drawn as a bar, and is
            measured with the whole model quantized. The other two are drawn as dots, and are measured with only this
            layer quantized, at its output and at the logits.
        marked: whether each layer is drawn in orange.
        limits_db: SQNR below which noise matters, and SQNR above which the output counts as exact.
        title: title of the plot.
        path: output path for the PNG file.
    """
    low_db, exact_db = limits_db
    figure = new_figure(8.5, float(np.clip(0.22 * len(names) + 1.5, 2.5, 60)))
    axes = figure.subplots()
    rows = np.arange(len(names))
    sqnr, own, alone = (
        np.array([np.nan if v is None else v for v in column], float) for column in zip(*ratios, strict=True)
    )
    costly = np.array(marked, bool)
    for color, label, some in (
        (BLUE, "whole model quantized, at the layer", ~costly),
        (ORANGE, "the same, costliest layer and layers with findings", costly),
    ):
        if some.any():
            axes.barh(rows[some], np.nan_to_num(sqnr)[some], color=color, height=0.7, label=label)
    axes.plot(own, rows, "o", color=GRAY, markersize=4, label="only this layer quantized, at the layer")
    axes.plot(alone, rows, "D", color="black", markersize=3.5, label="only this layer quantized, at the logits")
    low_label = f"{low_db:g} dB: the noise is a tenth of the signal"
    axes.axvline(low_db, color="black", linestyle=":", linewidth=1, label=low_label)
    axes.set_yticks(rows, [name.replace("$", r"\$") for name in names], fontsize=8)
    for tick, mark in zip(axes.get_yticklabels(), marked, strict=True):
        tick.set_color(ORANGE if mark else "black")
    axes.set(
        title=title.replace("$", r"\$"), xlabel="signal-to-quantization-noise ratio, dB", ylim=(len(names) - 0.4, -0.6)
    )
    # Exclude layers with exact outputs from the axis range, because their high SQNR would compress the other bars.
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
    """Write a PNG file with a contact sheet of the images above a histogram of their pixel values.

    Args:
        images: uint8 ``(N, H, W, C)``.
        titles: title of each image. The images are sorted by title. If there are more than ``most`` images, they are
            evenly sampled.
        reference: images whose histogram is drawn in the background, uint8 ``(N, H, W, C)``, or None.
        name: name of the calibration set, for the heading.
        path: output path for the PNG file.
        most: maximum number of images to draw.
    """
    by_title = sorted(range(len(images)), key=lambda i: titles[i])
    some = [by_title[i] for i in np.linspace(0, len(images) - 1, num=min(most, len(images)), dtype=int)]
    columns = int(np.clip(len(some), 5, 10))
    rows = -(-len(some) // columns)
    small = images[some, :: -(-images.shape[1] // 128), :: -(-images.shape[2] // 128)]
    height, width = small.shape[1:3]
    tall = 11 / columns * height / width * 1.25 * rows
    figure = new_figure(11, tall + 3.4)
    shown = f", {len(some)} of them shown" if len(some) < len(images) else ""
    figure.suptitle(f"{name}: {len(images)} images{shown}".replace("$", r"\$"))
    above, below = figure.subplots(2, 1, height_ratios=(tall, 3))
    # Combine all images into one large image, because creating axes for each image would take seconds.
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
    edges = np.arange(0, 257, 8)
    gray = images.shape[3] == 1
    channels = [("gray", "black")] if gray else [("red", "#c0392b"), ("green", "#2e8b57"), ("blue", BLUE)]

    def draw(pixels: npt.NDArray[np.uint8], note: str, **style: Any) -> None:
        for channel, (name, color) in enumerate(channels):
            fractions = np.histogram(pixels[..., channel], edges)[0] / pixels[..., channel].size
            axes.stairs(fractions, edges, color=color, label=name + note, **style)

    if reference is not None and reference.shape[3] == images.shape[3]:
        draw(reference, ", training images", fill=True, alpha=0.15)
    draw(images, "", linewidth=1.5)
    axes.set(xlabel="pixel value", ylabel="fraction of the pixels", xlim=(0, 256))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, ncols=2)
