"""The small CNN of many beginner tutorials: two convolutional layers and two dense layers."""

from __future__ import annotations

from typing import Any

from edgerec.recipe import ModelSection


def simple_cnn(keras: Any, x: Any, section: ModelSection) -> Any:
    """A small CNN from beginner tutorials: two convolution and pooling stages (32 and 64 channels), then Dense 64."""
    layers = keras.layers
    for channels in (32, 64):
        x = layers.Conv2D(max(1, round(channels * section.width)), 3, activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    if section.dropout:
        x = layers.Dropout(section.dropout)(x)
    x = layers.Dense(max(1, round(64 * section.width)), activation="relu")(x)
    return layers.Dropout(section.dropout)(x) if section.dropout else x
