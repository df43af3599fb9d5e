"""Check that a rebuilt model computes the same outputs as the original model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from edgerec.errors import ModelError
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

# Maximum difference between the two models' outputs, as a fraction of the largest output.
# TOLERANCE is far above float32 rounding errors, and far below the error of an incorrectly converted layer.
TOLERANCE = 1e-4


def check_same_outputs(
    original: Any, rebuilt: Any, failure: str, images: Callable[[Any], Any] = lambda images: images
) -> None:
    """Check that two models have the same outputs for random images, with pixels in [0, 1] and in [0, 255].

    Models with several inputs or outputs, or with a dynamic input size, are not compared, because
    :func:`~edgerec.importing.classifier.check_classifier` rejects them later.

    Args:
        original: the original model, of tf_keras or Keras 3.
        rebuilt: the rebuilt model, with one input ``(batch, height, width, channels)``.
        failure: beginning of the error message, stating what failed.
        images: function that converts a batch of images for ``rebuilt`` to the input layout of ``original``.

    Raises:
        ModelError: the outputs differ by more than ``TOLERANCE``, or are NaN or infinite in one of the models only.
    """
    shape = rebuilt.input_shape
    if not isinstance(shape, tuple) or None in shape[1:] or isinstance(rebuilt.output_shape, list):
        return
    pixels = np.random.default_rng(0).uniform(0, 1, (4, *shape[1:])).astype(np.float32)
    pixels[2:] *= 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras 3 warns about an unnamed array if the model's inputs have names
        expected = compute_outputs(original, images(pixels))
        actual = compute_outputs(rebuilt, pixels)
    difference = float(np.abs(expected - actual).max() / max(1.0, np.abs(expected).max()))
    if not difference <= TOLERANCE and np.isfinite(expected).all():
        raise ModelError(
            f"{failure}: the rebuilt model's outputs differ from the original's by up to {difference:.2g}; convert the "
            "model to .tflite with the tool that created it, and use edgerec import"
        )
    log.debug("%s: the outputs of the rebuilt model differ by up to %.2g", rebuilt.name, difference)


def compute_outputs(model: Any, inputs: Any) -> Any:
    """Return the outputs of a tf_keras or Keras 3 model for a batch of inputs, as a float64 array.

    The input layout may be channels first, although TensorFlow supports channels-first convolutions and pooling only on
    some CPUs.
    """
    tf = require("tensorflow")
    try:
        outputs = model(inputs, training=False)
    except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError):
        # XLA supports channels-first layers on all CPUs, but must first compile the model.
        outputs = tf.function(model, jit_compile=True)(inputs, training=False)
    return np.asarray(outputs, np.float64)
