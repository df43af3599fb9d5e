"""Pictures of a run: learning curves, confusion matrix, worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.files import replacing
from edgerec.data import Dataset
from edgerec.optional import require
from edgerec.train.evaluate import Figures

BLUE, ORANGE, GREY = "#2a6f97", "#e07a2f", "#8d99a6"


def _figure(width: float, height: float) -> Any:
    # Figure itself, not pyplot: nothing global, no screen.
    return require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def learning_curves(history: list[dict[str, float]], best: int, path: Path) -> None:
    """Loss and accuracy of training and validation over the epochs; the chosen epoch is marked."""
    figure = _figure(9, 3.8)
    epochs = [row["epoch"] for row in history]
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [row[key] for row in history], ".-", color=GREY, label="training")
        axes.plot(epochs, [row[f"val_{key}"] for row in history], ".-", color=BLUE, label="validation")
        axes.axvline(best, color=ORANGE, linewidth=1, label=f"kept: epoch {best}")
        axes.set(xlabel="epoch", title=key)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    _save(figure, path)


def confusion_matrix(figures: Figures, path: Path) -> None:
    """Rows are the true classes; the colour is the part of the row, the number the count."""
    counts = np.array(figures.confusion)
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = float(np.clip(0.5 * len(counts) + 2, 4, 24))
    figure = _figure(size, size)
    axes = figure.subplots()
    names = [label.replace("$", r"\$") for label in figures.labels]  # a dollar begins a formula
    axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"accuracy {figures.accuracy:.2%} on {figures.images} images")
    ticks = range(len(counts))
    axes.set_xticks(ticks, names, rotation=90 if len(max(figures.labels, key=len)) > 2 else 0)
    axes.set_yticks(ticks, names)
    if len(counts) <= 30:
        for row, column in np.argwhere(counts):
            colour = "white" if parts[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=colour, fontsize=8)
    _save(figure, path)


def worst_mistakes(
    dataset: Dataset, part: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], path: Path, most: int = 24
) -> None:
    """The wrong answers that the model was surest of, as it sees the pictures."""
    classes, predicted = dataset.classes[part], scores.argmax(axis=1)
    wrong = np.flatnonzero(predicted != classes)
    wrong = wrong[np.argsort(-scores[wrong, predicted[wrong]], kind="stable")][:most]
    columns = min(6, max(1, len(wrong)))
    rows = max(1, -(-len(wrong) // columns))
    figure = _figure(max(4.0, 1.9 * columns), 2.3 * rows + 0.4)
    total = int((predicted != classes).sum())
    figure.suptitle(
        f"worst of {total} mistakes on {len(part)} images" if total else f"no mistake on {len(part)} images"
    )
    for cell, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if cell >= len(wrong):
            continue
        i = wrong[cell]
        image = dataset.images[part[i]]
        axes.imshow(image[:, :, 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255)
        answer = f"{dataset.labels[predicted[i]]} {scores[i, predicted[i]]:.0%}"
        axes.set_title(f"{answer}\nis {dataset.labels[classes[i]]}".replace("$", r"\$"), fontsize=8)
    _save(figure, path)


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
    figure = _figure(11, tall + 3.4)
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
    _save(figure, path)


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
