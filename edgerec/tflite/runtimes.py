"""The TFLite runtimes that edgerec supports, and the number of CPUs. This module needs no third-party package."""

from __future__ import annotations

import os

# Interpreter module of each runtime package, in order of preference: LiteRT is the current and fastest runtime,
# tflite-runtime is its predecessor, and TensorFlow also contains an interpreter.
RUNTIMES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "tensorflow": "tensorflow.lite.python.interpreter",
}


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
