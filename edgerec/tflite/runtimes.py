"""What a device offers: the TFLite runtimes that edgerec knows, processors. Needs no package."""

from __future__ import annotations

import os

# Packages and their interpreter modules, in the order of preference: the fast successor, the last small one, the one
# inside TensorFlow.
RUNTIMES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "tensorflow": "tensorflow.lite.python.interpreter",
}


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
