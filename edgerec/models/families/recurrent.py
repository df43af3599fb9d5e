"""Recurrent networks, which read an image as a sequence of rows."""

from __future__ import annotations

from typing import Any

from edgerec.models.blocks import dropout
from edgerec.recipe import ModelSection


def lstm(keras: Any, x: Any, section: ModelSection) -> Any:
    """An LSTM with 128 units that reads an image row by row. It supports only the quantization method ``ptq``."""
    return dropout(keras, keras.layers.LSTM(_units(section))(_rows(keras, x)), section)


def gru(keras: Any, x: Any, section: ModelSection) -> Any:
    """A GRU with 128 units that reads up to 256 image rows. It supports only the quantization method ``ptq``."""
    return dropout(keras, keras.layers.GRU(_units(section))(_rows(keras, x)), section)


def _units(section: ModelSection) -> int:
    return max(1, round(128 * section.width))


def _rows(keras: Any, x: Any) -> Any:
    _, height, width, channels = x.shape
    return keras.layers.Reshape((height, width * channels))(x)
