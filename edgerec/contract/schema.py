"""The TFLite schema's generated classes, from whichever package has them."""

from __future__ import annotations

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
            raise MissingExtraError("reading .tflite files needs LiteRT: pip install ai-edge-litert") from None
    return schema_py_generated
