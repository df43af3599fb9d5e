"""The Edge TPU: what it takes, what its compiler will map, and the compiler where there is one."""

from edgerec.tflite.edgetpu.compiler import EdgeTpuReport, compiled, left_on_cpu
from edgerec.tflite.edgetpu.diagnosis import Diagnosis, Placed, check, diagnose

__all__ = ["Diagnosis", "EdgeTpuReport", "Placed", "check", "compiled", "diagnose", "left_on_cpu"]
