"""The TFLite schema's generated classes, from whichever package has them."""

from __future__ import annotations

import struct
from typing import Any

from edgerec.errors import MissingExtraError


def tflite_schema() -> Any:
    """LiteRT's or TensorFlow's ``schema_py_generated`` module; raises :class:`MissingExtraError` without both."""
    try:
        from ai_edge_litert import schema_py_generated
    except ModuleNotFoundError:
        try:
            from tensorflow.lite.python import schema_py_generated
        except ModuleNotFoundError:
            raise MissingExtraError(f"reading the graph of a .tflite file needs LiteRT: {_advice()}") from None
    return schema_py_generated


def _advice() -> str:
    if struct.calcsize("P") == 4:
        return "it has no package for 32-bit systems, so use another computer for this"
    return "pip install ai-edge-litert"
