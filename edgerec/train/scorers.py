"""Compute a model's scores for many images, and report progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.tensors import AnyNormalize
from edgerec.data import SelectedImages
from edgerec.runtime.image_model import ImageModel
from edgerec.train.input_pipeline import EVALUATION_BATCH
from edgerec.train.metrics import Reals
from edgerec.utils.progress import Listener, Progress, steps

# A scorer returns class scores of shape ``(N, classes)``, or an autoencoder's errors of shape ``(N, 1)``.
Scorer = Callable[[npt.NDArray[np.uint8] | SelectedImages, Listener], Reals]


def keras_scorer(model: Any, normalize: AnyNormalize) -> Scorer:
    """Return a function that computes a Keras classifier's scores or a Keras autoencoder's errors."""

    def score(pixels: npt.NDArray[np.uint8] | SelectedImages, listener: Listener) -> npt.NDArray[np.float32]:
        parts = []
        listener(Progress("evaluating", 0, len(pixels)))
        for start in range(0, len(pixels), EVALUATION_BATCH):
            batch = normalize.apply(pixels[start : start + EVALUATION_BATCH].astype(np.float32))
            outputs = np.asarray(model(batch, training=False))
            parts.append(_mean_squared_errors(outputs, batch) if outputs.shape == batch.shape else outputs)
            listener(Progress("evaluating", min(start + EVALUATION_BATCH, len(pixels)), len(pixels)))
        return np.concatenate(parts)

    return score


def _mean_squared_errors(outputs: Reals, images: Reals) -> Reals:
    squares = np.square(outputs - images, dtype=np.float64)
    return squares.reshape(len(outputs), -1).mean(axis=1, keepdims=True).astype(np.float32)


def tflite_scorer(model: ImageModel) -> Scorer:
    """Return a function that computes a .tflite model's scores with the same interpreter as on the device."""

    return lambda pixels, listener: one_by_one(map(model.scores, pixels), len(pixels), listener)


def one_by_one(scores: Iterable[Reals], count: int, listener: Listener) -> Reals:
    """Collect the scores of many images from an iterator, and report progress.

    Args:
        scores: iterator over each image's scores, float32 ``(classes,)``.
        count: number of images.
        listener: receives the progress.

    Returns:
        float32 ``(count, classes)``.
    """
    reported = steps(count)
    computed: list[Reals] = []
    for position, image_scores in enumerate(scores):
        computed.append(image_scores)
        if position in reported:
            listener(Progress("evaluating", position + 1, count))
    return np.stack(computed)
