"""An autoencoder for anomaly detection, whose reconstruction error is large for images unlike the training images."""

from __future__ import annotations

from typing import Any

from edgerec.models.blocks import conv
from edgerec.recipe import ModelSection

# Minimum height and width of a feature map after pooling, in pixels.
NARROWEST_PX = 3
CODE_CHANNELS, CHANNELS = 8, 16


def autoencoder(keras: Any, x: Any, section: ModelSection) -> Any:
    """An autoencoder for novelty detection: images unlike the training images have a large reconstruction error.

    The encoder consists of convolutions and max pooling, and the decoder of convolutions and upsampling. Transposed
    convolutions are not used, because pruning with quantization-aware training does not support them. If pooling rounds
    a side down, the decoder pads this side.
    """
    layers, channels, sides = keras.layers, x.shape[3], [x.shape[1]]
    while sides[-1] >= 2 * NARROWEST_PX:
        sides.append(sides[-1] // 2)

    def convolve(x: Any, count: int, name: str) -> Any:
        return layers.ReLU(name=f"{name}_relu")(
            conv(keras, x, max(1, round(count * section.width)), 3, name, bias=True)
        )

    for number in range(1, len(sides)):
        x = layers.MaxPooling2D(name=f"down{number}_pool")(convolve(x, CHANNELS, f"down{number}"))
    x = convolve(x, CODE_CHANNELS, "code")
    if section.dropout:
        x = layers.Dropout(section.dropout)(x)
    for number in reversed(range(1, len(sides))):
        x = layers.UpSampling2D(name=f"up{number}_size")(x)
        if rest := sides[number - 1] - 2 * sides[number]:
            x = layers.ZeroPadding2D(((0, rest), (0, rest)), name=f"up{number}_pad")(x)
        x = convolve(x, CHANNELS, f"up{number}")
    return layers.Conv2D(channels, 3, padding="same", name="reconstruction", dtype="float32")(x)
