"""What makes a picture again, and fails on pictures of other things than it was trained on."""

from __future__ import annotations

from typing import Any

from edgerec.models.blocks import conv
from edgerec.recipe import ModelSection

# Pictures are halved while their side is at least twice this, so that little is left to make them again from.
NARROWEST_PX = 3
CODE_CHANNELS, CHANNELS = 8, 16


def autoencoder(keras: Any, x: Any, section: ModelSection) -> Any:
    """Makes the picture again from a narrow code, and what it never saw badly: for export --novelty, not a classifier.

    The tutorial's: convolution and pooling down, convolution and upsampling up (a transposed convolution would not
    survive pruning with quantization-aware training). A side that pooling cannot halve is padded on the way up.
    """
    layers, channels, sides = keras.layers, x.shape[3], [x.shape[1]]
    while sides[-1] >= 2 * NARROWEST_PX:
        sides.append(sides[-1] // 2)

    def convolved(x: Any, count: int, name: str) -> Any:
        return layers.ReLU(name=f"{name}_relu")(
            conv(keras, x, max(1, round(count * section.width)), 3, name, bias=True)
        )

    for number in range(1, len(sides)):
        x = layers.MaxPooling2D(name=f"down{number}_pool")(convolved(x, CHANNELS, f"down{number}"))
    x = convolved(x, CODE_CHANNELS, "code")
    if section.dropout:
        x = layers.Dropout(section.dropout)(x)
    for number in reversed(range(1, len(sides))):
        x = layers.UpSampling2D(name=f"up{number}_size")(x)
        if rest := sides[number - 1] - 2 * sides[number]:
            x = layers.ZeroPadding2D(((0, rest), (0, rest)), name=f"up{number}_pad")(x)
        x = convolved(x, CHANNELS, f"up{number}")
    return layers.Conv2D(channels, 3, padding="same", name="reconstruction", dtype="float32")(x)
