"""Calibration sets: the training pictures that set activation ranges in post-training quantization."""

from edgerec.compress.calibration.draw import draw, make, pin_range, read_recipe, show
from edgerec.compress.calibration.sets import CalibrationSet

__all__ = ["CalibrationSet", "draw", "make", "pin_range", "read_recipe", "show"]
