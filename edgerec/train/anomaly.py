"""Evaluate autoencoders: compute reconstruction errors, choose the anomaly threshold, and draw plots."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.tensors import Normalize
from edgerec.data import Dataset, Split
from edgerec.errors import RecipeError
from edgerec.recipe import Recipe
from edgerec.train.scorers import keras_scorer
from edgerec.utils.figures import BLUE, GRAY, ORANGE, label_log_axis, new_figure, save_figure
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)

# The anomaly threshold is this quantile of the validation images' reconstruction errors.
KNOWN_FRACTION = 0.99
PLOTTED_IMAGES = 8

Errors = npt.NDArray[np.float32]


def check_autoencoder(recipe: Recipe) -> None:
    """Raise :class:`RecipeError` if a recipe key has a value that autoencoders do not support."""
    arch = f"an autoencoder (model.arch={recipe.model.arch!r})"
    if recipe.data.normalize == "pixels":
        raise RecipeError(
            f"Cannot train {arch} with data.normalize='pixels', because reconstruction errors are measured in "
            "normalized pixels: set data.normalize to unit or signed"
        )
    if recipe.model.pretrained:
        raise RecipeError(
            f"Cannot train {arch} with model.weights={recipe.model.weights!r}, because autoencoders are trained from "
            "random weights: set model.weights to none"
        )
    if recipe.distill.teachers:
        raise RecipeError(
            f"Cannot train {arch} with distill.teachers, because only classifiers can be distilled: "
            "remove distill.teachers"
        )


def fit_threshold(errors: Errors, known: float) -> float:
    """Return the ``known`` quantile of the validation images' reconstruction errors.

    Args:
        errors: reconstruction errors of the validation images, ``(N,)``.
        known: fraction of validation images whose error does not exceed the result, 0 to 1.
    """
    if len(errors) * (1 - known) < 1:
        log.warning(
            "%d validation images are too few to estimate the %g quantile of their reconstruction errors: the largest "
            "error is used as the threshold. Add images, or choose a smaller fraction",
            len(errors),
            known,
        )
    # Do not interpolate the quantile, because rounding could make the threshold slightly too low.
    return float(np.quantile(errors.astype(np.float64), known, method="higher"))


def evaluate_autoencoder(
    model: Any, recipe: Recipe, dataset: Dataset, parts: Split, plots: Path, listener: Listener = ignore
) -> dict[str, Any]:
    """Evaluate a trained autoencoder on the test images, write its plots, and return its metrics.

    Returns:
        ``error``, the mean reconstruction error on the test images; ``per_class``, the mean error of each label;
        ``threshold``, the ``KNOWN_FRACTION`` quantile of the errors of the validation images; ``known``, the fraction
        of the test images whose error does not exceed the threshold; and ``images``, the number of test images.
    """
    score = keras_scorer(model, recipe.normalize)
    errors, val_errors = (score(dataset.select(part), listener)[:, 0] for part in (parts.test, parts.val))
    threshold = fit_threshold(val_errors, KNOWN_FRACTION)
    plot_reconstructions(model, recipe.normalize, dataset, parts.test, errors, plots / "reconstructions.png")
    plot_error_histogram(errors, threshold, plots / "errors.png")
    classes = dataset.classes[parts.test]
    return {
        "error": float(errors.mean(dtype=np.float64)),
        "threshold": threshold,
        "known": float(np.mean(errors <= threshold)),
        "per_class": {
            label: {"error": float(errors[classes == i].mean()), "support": int(np.sum(classes == i))}
            for i, label in enumerate(dataset.labels)
            if np.any(classes == i)
        },
        "images": len(parts.test),
        "split": "test",
    }


def plot_reconstructions(
    model: Any, normalize: Normalize, dataset: Dataset, part: npt.NDArray[np.int64], errors: Errors, path: Path
) -> None:
    """Draw images and their reconstructions, sorted by reconstruction error.

    The images are selected from those with the indices ``part``.
    """
    order = np.argsort(errors, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, PLOTTED_IMAGES).round().astype(int))]
    originals = dataset.images[part[chosen]]
    outputs = np.asarray(model(normalize.apply(originals.astype(np.float32)), training=False))
    reconstructed = np.clip(np.rint(outputs * normalize.std + normalize.mean), 0, 255).astype(np.uint8)
    figure = new_figure(1.5 * len(chosen), 3.7)
    figure.suptitle("images (above) and their reconstructions, from the smallest error to the largest", fontsize=10)
    for row, images in zip(figure.subplots(2, len(chosen), squeeze=False), (originals, reconstructed), strict=True):
        for axes, image, error in zip(row, images, errors[chosen], strict=True):
            axes.set_axis_off()
            axes.imshow(image[:, :, 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255)
            if images is reconstructed:
                axes.set_title(f"{error:.4f}", fontsize=8)
    save_figure(figure, path)


def plot_error_histogram(errors: Errors, threshold: float, path: Path) -> None:
    """Draw a histogram of the reconstruction errors, and mark the threshold."""
    low = max(float(errors.min()), 1e-9)
    bins = np.geomspace(low, max(float(errors.max()), threshold, 1.01 * low), 60)
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    axes.hist(np.maximum(errors, low), bins=bins, color=BLUE, alpha=0.7, label="test images")
    axes.axvline(threshold, color=ORANGE, label=f"threshold {threshold:.3g}")
    axes.set(xscale="log", xlabel="reconstruction error", ylabel="number of images")
    axes.margins(x=0.02)
    label_log_axis(axes.xaxis)
    axes.grid(alpha=0.25, color=GRAY)
    axes.legend(frameon=False)
    save_figure(figure, path)
