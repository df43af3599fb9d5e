"""Compress trained models into smaller .tflite files, e.g. by quantization or pruning.

This package requires the ``train`` extra.
"""

from edgerec.compress.quantize import quantize
from edgerec.compress.variant_report import QuantizeReport

__all__ = ["QuantizeReport", "quantize"]
