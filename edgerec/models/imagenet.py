"""Load the ImageNet weights of the Keras applications into a model."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgerec.contract.tensors import Normalize
from edgerec.errors import ModelError, RecipeError
from edgerec.recipe import ModelSection

DOWNLOAD_TIMEOUT_S = 30.0

# Name of the layer that converts the recipe's normalization to that of the ImageNet weights.
RANGE = "imagenet_range"

# RGB mean and standard deviation of Keras' normalization modes (imagenet_utils.preprocess_input).
PIXELS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "tf": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "torch": ((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)),
    "caffe": ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class ImageNet:
    """The ImageNet weights that Keras provides for an architecture.

    Attributes:
        application: name of the model in ``keras.applications``.
        pixels: normalization that the weights expect; a key of :data:`PIXELS`. Weights with ``caffe`` also expect BGR
            order, so the input channels of the first convolution are reversed.
        widths: widths for which there are weights, if the application has an argument ``alpha``, or an empty tuple if
            there are only weights for width 1.
        options: other arguments of the application.
    """

    application: str
    pixels: Literal["tf", "torch", "caffe"]
    widths: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def require_weights(section: ModelSection, imagenet: ImageNet | None, channels: int, available: list[str]) -> ImageNet:
    """Return ``imagenet``, or raise an error if Keras provides no ImageNet weights for a recipe.

    Args:
        section: the architecture and its width.
        imagenet: description of the architecture's ImageNet weights, or None if there are no weights.
        channels: number of channels of the input, which must be 3.
        available: names of the architectures with ImageNet weights, for the error message.

    Raises:
        RecipeError: there are no weights for this architecture, width and number of channels.
    """
    if imagenet is None or channels != 3:
        raise RecipeError(
            f"Cannot use model.weights='imagenet' with {section.arch} and {channels} channels: Keras provides weights "
            f"only for RGB images and these architectures: {', '.join(available)}. Choose one, or set "
            "model.weights='none'"
        )
    widths = imagenet.widths or (1.0,)
    if section.width not in widths:
        raise RecipeError(
            f"Cannot use model.weights='imagenet' with {section.arch} and width {section.width:g}: Keras provides "
            f"weights only for width {', '.join(f'{w:g}' for w in widths)}. Choose one of these, or "
            "set model.weights='none'"
        )
    return imagenet


def match_normalization(keras: Any, x: Any, normalize: Normalize, pixels: str) -> Any:
    """Add a layer that converts the recipe's normalization to that of the ImageNet weights.

    The conversion is a 1×1 depthwise convolution with fixed weights, because every target supports this operator. In
    int8, the three output channels share one scale. With ``tf``, all 256 pixel values remain distinct. With ``torch``
    and ``caffe``, the channels have different ranges, so that a quantization step is about 1.1 pixel values, and about
    a tenth of the pixel values coincide with the next value. The error is at most half a quantization step.

    Args:
        keras: the Keras module.
        x: RGB tensor ``(batch, height, width, 3)``, normalized with ``normalize``.
        normalize: normalization of the recipe.
        pixels: normalization that the weights expect; a key of :data:`PIXELS`.
    """
    mean, deviation = (np.asarray(part) for part in PIXELS[pixels])
    convolution = keras.layers.DepthwiseConv2D(1, trainable=False, name=RANGE)
    x = convolution(x)
    kernel = (normalize.std / deviation).reshape(1, 1, 3, 1)
    convolution.set_weights([kernel, (normalize.mean - mean) / deviation])
    return x


def download_weights(keras: Any, section: ModelSection, shape: tuple[int, int, int], imagenet: ImageNet | None) -> None:
    """Download the ImageNet weights of an architecture, unless Keras has downloaded them before.

    Args:
        keras: the Keras module.
        section: the architecture and its width.
        shape: shape of the model's input, ``(height, width, channels)``.
        imagenet: description of the architecture's ImageNet weights.

    Raises:
        ModelError: the download failed, or the downloaded file is damaged.
    """
    if imagenet is None:
        raise ModelError(f"Keras has no ImageNet weights for {section.arch}")
    _application(keras, shape, section, imagenet)


def load_weights(keras: Any, model: Any, section: ModelSection, imagenet: ImageNet) -> None:
    """Copy ImageNet weights to the layers of ``model`` that have the same names. Keras caches the downloaded weights.

    Raises:
        ModelError: the download failed, or the layers of the Keras application have other names.
    """
    source_layers = {
        layer.name.replace("/", "_"): layer  # Keras 3 does not allow "/" in layer names
        for layer in _application(keras, model.input_shape[1:], section, imagenet).layers
        if layer.weights and not isinstance(layer, keras.layers.Normalization)
    }
    layers = {layer.name: layer for layer in model.layers if layer.weights and layer.name not in (RANGE, "logits")}
    if different_names := source_layers.keys() ^ layers.keys():
        raise ModelError(
            f"Cannot load the ImageNet weights, because the layers of {section.arch} and of tf_keras' "
            f"{imagenet.application} differ (e.g. {min(different_names)}): set model.weights='none', or install the "
            "tf_keras version in constraints.txt"
        )
    for name, layer in layers.items():
        layer.set_weights(source_layers[name].get_weights())
    if imagenet.pixels == "caffe":
        first = next(layer for layer in model.layers if layer.name in layers)
        kernel, *others = first.get_weights()
        first.set_weights([kernel[:, :, ::-1], *others])


def _application(keras: Any, shape: tuple[int, ...], section: ModelSection, imagenet: ImageNet) -> Any:
    build = getattr(keras.applications, imagenet.application)
    options = dict(imagenet.options) | ({"alpha": section.width} if imagenet.widths else {})
    try:
        with _network_timeout(), contextlib.redirect_stdout(sys.stderr):  # Keras reports downloads on stdout
            return build(input_shape=shape, include_top=False, weights="imagenet", **options)
    except Exception as error:  # Keras raises a bare Exception if a server cannot be reached
        reason = str(error).rpartition("-- ")[2]
        # If a file is damaged, the message of h5py contains "unable to", and the message of Keras "corrupted".
        if "unable to" in reason.lower() or "corrupted" in reason:
            raise ModelError(
                f"the ImageNet weights of {section.arch} cannot be read: remove the damaged file in "
                "~/.keras/models so that Keras downloads it again"
            ) from None
        if "fetch failure" not in str(error) and not isinstance(error, OSError):
            raise
        raise ModelError(
            f"the ImageNet weights of {section.arch} could not be downloaded ({reason}): "
            "connect this machine to the Internet once, or set model.weights to 'none' or a weights file"
        ) from None


@contextlib.contextmanager
def _network_timeout() -> Iterator[None]:
    """Context manager that sets a network timeout, because Keras sets none for downloads."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
