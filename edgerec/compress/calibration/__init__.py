"""Sample and check the images that calibrate activation ranges for post-training quantization."""

from edgerec.compress.calibration.api import draw, make, pin_range, read_recipe, show
from edgerec.compress.calibration.calibration_set import CalibrationSet

__all__ = ["CalibrationSet", "draw", "make", "pin_range", "read_recipe", "show"]
