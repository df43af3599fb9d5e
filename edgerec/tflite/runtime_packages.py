"""Python packages that contain a TFLite interpreter."""

from __future__ import annotations

# Maps runtime packages to their interpreter modules, in order of preference.
# LiteRT is the current and fastest runtime, and tflite-runtime is its predecessor.
RUNTIMES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "tensorflow": "tensorflow.lite.python.interpreter",
}
