"""Import the classes generated from the TFLite schema, which come with LiteRT and TensorFlow."""

from __future__ import annotations

import struct
from typing import Any

from edgerec.errors import MissingExtraError


def tflite_schema() -> Any:
    """Return the module ``schema_py_generated`` from LiteRT or TensorFlow.

    Raises:
        MissingExtraError: neither package is installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ModuleNotFoundError:
        try:
            from tensorflow.lite.python import schema_py_generated
        except ModuleNotFoundError:
            raise MissingExtraError(f"reading the graph of a .tflite file requires LiteRT: {_advice()}") from None
    return schema_py_generated


def _advice() -> str:
    if struct.calcsize("P") == 4:
        return "LiteRT has no package for 32-bit systems, so use another computer for this"
    return "pip install ai-edge-litert"
