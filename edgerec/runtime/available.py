"""The TFLite runtimes that edgerec knows."""

from __future__ import annotations

# Packages and their interpreter modules, in the order of preference: the fast successor, the last small one, the one
# inside TensorFlow.
RUNTIMES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "tensorflow": "tensorflow.lite.python.interpreter",
}
