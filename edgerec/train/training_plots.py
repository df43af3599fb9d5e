"""Draw a run's plots: learning curves, confusion matrix and worst mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.data import Dataset
from edgerec.train.metrics import EvaluationReport
from edgerec.utils.figures import BLUE, GRAY, ORANGE, new_figure, plain, save_figure

# Learning curves with more epochs than this are drawn without dots.
MAX_DOTS = 40


def learning_curves(history: list[dict[str, float]], best: int, path: Path) -> None:
    """Draw the training and validation loss per epoch, and the accuracy if the model is a classifier.

    Args:
        history: rows of ``history.csv``.
        best: number of the selected (best) epoch, or 0 if none has been selected yet.
        path: PNG file to write.
    """
    keys = [key for key in ("loss", "accuracy") if key in history[0]]
    figure = new_figure(4.5 * len(keys), 3.8)
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        learning_curve(axes, history, best, key)
    save_figure(figure, path)


def learning_curve(axes: Any, history: Sequence[Mapping[str, float]], best: int, key: str) -> None:
    """Draw a metric's training and validation curves.

    Args:
        axes: Matplotlib axes.
        history: rows of ``history.csv``.
        best: number of the selected (best) epoch, or 0 if none has been selected yet.
        key: ``loss`` or ``accuracy``.
    """
    epochs = [row["epoch"] for row in history]
    style = ".-" if len(epochs) <= MAX_DOTS else "-"
    axes.plot(epochs, [row[key] for row in history], style, color=GRAY, label="training")
    axes.plot(epochs, [row[f"val_{key}"] for row in history], style, color=BLUE, label="validation")
    if best:
        axes.axvline(best, color=ORANGE, linewidth=1, label=f"selected: epoch {best}")
    axes.set(xlabel="epoch", title=key)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def confusion_matrix(report: EvaluationReport, path: Path) -> None:
    """Draw the confusion matrix, with true classes as rows and predicted classes as columns.

    Each cell contains the number of images. Its color shows the fraction of the row's images.
    """
    counts = np.array(report.confusion)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = float(np.clip(0.5 * len(counts) + 2, 4, 24))
    figure = new_figure(size, size)
    axes = figure.subplots()
    names = [plain(label, 40) for label in report.labels]
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"accuracy {report.accuracy:.2%} on {report.images} images")
    ticks = range(len(counts))
    axes.set_xticks(ticks, names, rotation=90 if len(max(report.labels, key=len)) > 2 else 0)
    axes.set_yticks(ticks, names)
    if len(counts) <= 30:
        for row, column in np.argwhere(counts):
            color = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=color, fontsize=8)
    save_figure(figure, path)


def worst_mistakes(
    dataset: Dataset, part: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], path: Path, most: int = 24
) -> None:
    """Draw the most confidently misclassified images, at the model's input resolution.

    Args:
        dataset: the images.
        part: indices of the images in the dataset, ``(N,)``.
        scores: scores of the float model for these images, float32 ``(N, classes)``.
        path: PNG file to write.
        most: maximum number of images.
    """
    classes, predicted = dataset.classes[part], scores.argmax(axis=1)
    wrong = np.flatnonzero(predicted != classes)
    wrong = wrong[np.argsort(-scores[wrong, predicted[wrong]], kind="stable")][:most]
    columns = min(6, max(1, len(wrong)))
    rows = max(1, -(-len(wrong) // columns))
    figure = new_figure(max(4.0, 1.9 * columns), 2.3 * rows + 0.4)
    total = int((predicted != classes).sum())
    title = f"{total} {'mistake' if total == 1 else 'mistakes'} of the float model on {len(part)} test images"
    if total > len(wrong):
        title += f"; the {len(wrong)} with the highest scores"
    figure.suptitle(title, fontsize=10 if columns > 3 else 8)
    for cell, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if cell >= len(wrong):
            continue
        i = wrong[cell]
        image = dataset.images[part[i]]
        axes.imshow(image[:, :, 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255)
        prediction = f"predicted {plain(dataset.labels[predicted[i]], 16)} {100 * scores[i, predicted[i]]:.0f} %,"
        axes.set_title(f"{prediction}\nactually {plain(dataset.labels[classes[i]], 18)}", fontsize=7.5)
    save_figure(figure, path)
