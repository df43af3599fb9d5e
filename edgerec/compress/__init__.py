"""Compress a float model into an int8 .tflite model, and compare the two. Requires the train extra."""

from edgerec.compress.quantize import quantize
from edgerec.compress.variant_report import QuantizeReport

__all__ = ["QuantizeReport", "quantize"]
