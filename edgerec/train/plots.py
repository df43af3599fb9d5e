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
    """Some of the pictures uint8 ``(N, H, W, C)`` with their titles, evenly chosen and sorted by title, above the
    histogram of all their pixel values; that of ``reference`` is drawn under it."""
    spread = np.linspace(0, len(images) - 1, num=min(most, len(images)), dtype=int)
    some = sorted(set(spread.tolist()), key=lambda i: titles[i])
    columns = min(10, len(some))
    rows = -(-len(some) // columns)
    figure = _figure(11, 1.3 * rows + 3.4)
    shown = f", {len(some)} of them shown" if len(some) < len(images) else ""
    figure.suptitle(f"{name}: {len(images)} pictures{shown}".replace("$", r"\$"))
    above, below = figure.subfigures(2, 1, height_ratios=(1.3 * rows, 3))
    for cell, axes in enumerate(above.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if cell < len(some):
            image = images[some[cell]]
            axes.imshow(image[:, :, 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255)
            axes.set_title(titles[some[cell]][:18].replace("$", r"\$"), fontsize=8)
    _pixel_histogram(below.subplots(), images, reference)
    _save(figure, path)


def _pixel_histogram(axes: Any, images: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8] | None) -> None:
    """How often each pixel value is in each channel, eight values a bin; filled for the reference."""
    edges = np.arange(0, 257, 8)
    colours = ("#c0392b", "#2e8b57", BLUE) if images.shape[3] == 3 else ("black",)
    names = ("red", "green", "blue") if images.shape[3] == 3 else ("grey",)
    for channel, (colour, label) in enumerate(zip(colours, names, strict=True)):
        if reference is not None and reference.shape[3] == images.shape[3]:
            usual = np.histogram(reference[..., channel], edges)[0] / reference[..., channel].size
            axes.stairs(usual, edges, fill=True, color=colour, alpha=0.15, label=f"{label}, training")
        parts = np.histogram(images[..., channel], edges)[0] / images[..., channel].size
        axes.stairs(parts, edges, color=colour, linewidth=1.5, label=label)
    axes.set(xlabel="pixel value", ylabel="part of the pixels", xlim=(0, 256))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, ncols=2)
