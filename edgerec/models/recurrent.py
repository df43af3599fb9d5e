"""Networks that read a picture row by row, as a text line by line."""

from __future__ import annotations

from typing import Any

from edgerec.models.blocks import dropped
from edgerec.recipe import ModelSection


def lstm(keras: Any, x: Any, section: ModelSection) -> Any:
    """The rows of the picture as a sequence, read by an LSTM of 128 units; int8 by ptq alone."""
    return dropped(keras, keras.layers.LSTM(_units(section))(_rows(keras, x)), section)


def gru(keras: Any, x: Any, section: ModelSection) -> Any:
    """The rows of the picture as a sequence, read by a GRU of 128 units; int8 by ptq alone, up to 256 rows."""
    return dropped(keras, keras.layers.GRU(_units(section))(_rows(keras, x)), section)


def _units(section: ModelSection) -> int:
    return max(1, round(128 * section.width))


def _rows(keras: Any, x: Any) -> Any:
    _, height, width, channels = x.shape
    return keras.layers.Reshape((height, width * channels))(x)
