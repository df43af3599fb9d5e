"""Check whether the Edge TPU can run a model, predict the result of its compiler, and run the compiler."""

from edgerec.tflite.edgetpu.compiler import EdgeTpuReport, compile_for_edgetpu, left_on_cpu
from edgerec.tflite.edgetpu.diagnosis import Diagnosis, OperatorPlacement, diagnose

__all__ = [
    "Diagnosis",
    "EdgeTpuReport",
    "OperatorPlacement",
    "compile_for_edgetpu",
    "diagnose",
    "left_on_cpu",
]
