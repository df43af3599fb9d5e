"""Pictures of a run: learning curves, confusion matrix, worst mistakes, the layers of a variant."""

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
    figure = _figure(8.5, float(np.clip(0.22 * len(names) + 1.5, 2.5, 60)))
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
    _save(figure, path)
