"""Starting from the weights that Keras' applications learned on ImageNet."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgerec.contract.tensors import Normalise
from edgerec.errors import ModelError, RecipeError
from edgerec.recipe import ModelSection

# A download fails if the server sends nothing for this long.
DOWNLOAD_TIMEOUT_S = 30.0

# What stands between the recipe's pixels and weights that expect others.
RANGE = "imagenet_range"

# Keras' name for it (imagenet_utils.preprocess_input): what is taken from a pixel, R G B, and what it is divided by.
PIXELS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "tf": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "torch": ((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)),
    "caffe": ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class ImageNet:
    """Which weights there are.

    Attributes:
        application: the name in ``keras.applications``.
        pixels: a key of :data:`PIXELS`. Those of caffe expect B G R too; the first convolution's kernel is turned.
        widths: the application takes the width as ``alpha``, and has weights for these; empty: for 1 alone.
        options: others of the application.
    """

    application: str
    pixels: Literal["tf", "torch", "caffe"]
    widths: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def checked(section: ModelSection, imagenet: ImageNet | None, channels: int, having: list[str]) -> ImageNet:
    """The weights, where they exist; raises :class:`RecipeError` with the choices where they do not."""
    if imagenet is None or channels != 3:
        raise RecipeError(
            f"model.weights is 'imagenet', which exists for {', '.join(having)} on RGB pictures; "
            f"got {section.arch} with {channels} channels: use --weights none"
        )
    widths = imagenet.widths or (1.0,)
    if section.width not in widths:
        raise RecipeError(
            f"model.weights is 'imagenet', which exists for {section.arch} of width "
            f"{', '.join(f'{w:g}' for w in widths)}; got {section.width:g}: use one of them, or --weights none"
        )
    return imagenet


def as_expected(keras: Any, x: Any, normalise: Normalise, pixels: str) -> Any:
    """Normalised R G B to what the weights expect: a fixed 1×1 depthwise convolution, which every target runs.

    In int8 its output has one scale for its three channels: with ``tf`` every pixel value keeps a number of its own;
    with ``torch`` and ``caffe``, whose channels lie differently, a step is about 1.1 pixel values, and a tenth of the
    neighbours fall together. Nothing is off by more than half a step.
    """
    mean, deviation = (np.asarray(part) for part in PIXELS[pixels])
    convolution = keras.layers.DepthwiseConv2D(1, trainable=False, name=RANGE)
    x = convolution(x)
    kernel = (normalise.std / deviation).reshape(1, 1, 3, 1)
    convolution.set_weights([kernel, (normalise.mean - mean) / deviation])
    return x


def obtain(keras: Any, section: ModelSection, shape: tuple[int, int, int], imagenet: ImageNet | None) -> None:
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


def take(keras: Any, model: Any, section: ModelSection, imagenet: ImageNet) -> None:
    """Put the weights into ``model``, by the names of its layers; Keras downloads them once.

    Raises:
        ModelError: the download failed, or this tf_keras has other layers.
    """
    theirs = {
        layer.name.replace("/", "_"): layer  # Keras 3 knows no "/" in a name
        for layer in _application(keras, model.input_shape[1:], section, imagenet).layers
        if layer.weights and not isinstance(layer, keras.layers.Normalization)
    }
    ours = {layer.name: layer for layer in model.layers if layer.weights and layer.name not in (RANGE, "logits")}
    if other := theirs.keys() ^ ours.keys():
        raise ModelError(
            f"{section.arch} and tf_keras' {imagenet.application} have not the same layers ({min(other)}): "
            "use --weights none, or the tf_keras of constraints.txt"
        )
    for name, layer in ours.items():
        layer.set_weights(theirs[name].get_weights())
    if imagenet.pixels == "caffe":
        first = next(layer for layer in model.layers if layer.name in ours)
        kernel, *others = first.get_weights()
        first.set_weights([kernel[:, :, ::-1], *others])


def _application(keras: Any, shape: tuple[int, ...], section: ModelSection, imagenet: ImageNet) -> Any:
    build = getattr(keras.applications, imagenet.application)
    options = dict(imagenet.options) | ({"alpha": section.width} if imagenet.widths else {})
    try:
        with _bounded_wait(), contextlib.redirect_stdout(sys.stderr):  # Keras reports a download on stdout
            return build(input_shape=shape, include_top=False, weights="imagenet", **options)
    except Exception as error:  # Keras raises a bare Exception if a server cannot be reached
        reason = str(error).rpartition("-- ")[2]
        if "unable to" in reason.lower() or "corrupted" in reason:  # as h5py and Keras put it
            raise ModelError(
                f"the ImageNet weights of {section.arch} cannot be read: remove the damaged file in "
                "~/.keras/models so that Keras downloads it again"
            ) from None
        if "fetch failure" not in str(error) and not isinstance(error, OSError):
            raise
        raise ModelError(
            f"the ImageNet weights of {section.arch} could not be downloaded ({reason}): "
            "connect once, or use --weights none or a file"
        ) from None


@contextlib.contextmanager
def _bounded_wait() -> Iterator[None]:
    """Set a network timeout within the ``with`` block, because Keras downloads without a timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
