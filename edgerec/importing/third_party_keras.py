"""Load complete third-party Keras models (Keras 2 or 3) without executing code from the file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.errors import ModelError
from edgerec.importing.from_keras3 import from_keras3
from edgerec.importing.graph_rewriter import layers_of
from edgerec.importing.image_input import with_image_input
from edgerec.importing.indexing import selects_channels, with_indexing_layers
from edgerec.importing.keras_files import check_keras_file, load_keras2
from edgerec.importing.layer_allowlist import AUGMENTATION
from edgerec.train.backend import reported_as
from edgerec.train.precision import in_float32
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

# Layers that do not change the range of pixel values, such as augmentation, resizing and reshaping.
_VALUE_PRESERVING = AUGMENTATION | {
    *("InputLayer", "Functional", "Sequential", "Model", "Identity", "Dropout", "SpatialDropout2D", "GaussianNoise"),
    *("ZeroPadding2D", "Resizing", "CenterCrop", "Reshape", "Permute"),
}
# A layer that scales 255 to at most this value is treated as a normalization layer.
MAX_NORMALIZED = 10


def read_third_party(path: str | Path) -> Any:
    """Load a complete Keras 2 or 3 model (``.keras`` or ``.h5``) as an uncompiled tf_keras model in float32.

    If the model's input layout is not ``(batch, height, width, channels)``, the model is rebuilt for this layout
    (:func:`edgerec.importing.image_input.with_image_input`).

    No code from the file is executed. Before Keras reads the file, every class name in the file is compared with a list
    of supported names: the layers, initializers, regularizers and constraints of Keras, common arithmetic operators,
    and edgerec's own layers. A file with any other name is an error. A Keras 3 model is rebuilt with tf_keras layers
    (:func:`edgerec.importing.from_keras3.from_keras3`), and its outputs are compared with the original's.

    Raises:
        ModelError: the file does not exist, is damaged or has weights only, or a layer is not supported.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path} does not exist; expected a complete .keras or .h5 model, or a SavedModel folder")
    with reported_as(f"{path} cannot be read as a Keras model"):
        if check_keras_file(path) >= 3:
            model = from_keras3(require("keras").models.load_model(path, compile=False, safe_mode=True), str(path))
        else:
            model = in_float32(load_keras2(path))
            model = with_indexing_layers(model, str(path))
        return with_image_input(model, str(path))


def expects_pixels(model: Any) -> bool:
    """Return True if the model's first layers normalize raw pixels in [0, 255]."""
    for layer in layers_of(model):
        kind = type(layer).__name__
        if kind in _VALUE_PRESERVING or selects_channels(layer):
            continue
        scale, offset = _first_scaling(layer, kind)
        return bool(255 * np.abs(scale).max() <= MAX_NORMALIZED or np.abs(offset).max() > MAX_NORMALIZED)
    return False


def _first_scaling(layer: Any, kind: str) -> tuple[Any, Any]:
    """Return a layer's scale and offset, or an infinite scale if the layer is not a normalization layer."""
    if kind == "Rescaling":
        return np.asarray(layer.scale), np.asarray(layer.offset)
    if kind == "Normalization" and not layer.invert:
        scale = 1 / np.sqrt(np.asarray(layer.variance))
        return scale, -np.asarray(layer.mean) * scale
    if kind == "DepthwiseConv2D" and tuple(layer.kernel_size) == (1, 1):
        kernel, *bias = layer.get_weights()
        # Ignore a trainable bias, because only a fixed bias reveals the expected input range.
        return kernel, bias[0] if bias and not layer.trainable else np.zeros(1)
    return np.array(np.inf), np.zeros(1)
