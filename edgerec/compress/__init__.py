"""From a float model to an int8 .tflite that answers the same. Needs the train extra."""

from edgerec.compress.quantize import quantize
from edgerec.compress.variant_report import QuantizeReport

__all__ = ["QuantizeReport", "quantize"]
