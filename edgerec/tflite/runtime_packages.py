"""Python packages that contain a TFLite interpreter."""

from __future__ import annotations

# Maps each runtime package to its interpreter module, in order of preference.
# LiteRT (ai-edge-litert) is the current and fastest runtime, and tflite-runtime is its predecessor.
# TensorFlow also contains an interpreter.
RUNTIMES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "tensorflow": "tensorflow.lite.python.interpreter",
}
