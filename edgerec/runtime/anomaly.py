"""How new a picture is: the error with which an autoencoder makes it again."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.preprocess import Image
from edgerec.contract.tensors import Normalise, dequantize
from edgerec.errors import ModelError
from edgerec.runtime.model import ImageModel


class Autoencoder(ImageModel):
    """Pixels in, their reconstruction error out. Not thread-safe: one for each thread."""

    def __init__(self, model: bytes, normalise: Normalise, **options: Any) -> None:
        """Prepare the .tflite bytes; raises :class:`ModelError` when they do not give what has their input's shape."""
        super().__init__(model, normalise, **options)
        self._normalise = normalise

    def _check_output(self, where: str) -> None:
        if self.output.shape != self.input.shape:
            raise ModelError(
                f"{where} gives {list(self.output.shape)}, expected its input's shape {list(self.input.shape)}: "
                "it is no autoencoder"
            )

    def reconstruction(self, pixels: Image) -> npt.NDArray[np.float32]:
        """What it makes of uint8 ``(height, width, channels)`` pixels: as many, normalised."""
        return dequantize(self.invoke(pixels), self.output).reshape(self.input.shape[1:])

    def error(self, pixels: Image) -> float:
        """The mean squared difference to the normalised pixels, 0 or more."""
        apart = self.reconstruction(pixels) - self._normalise.apply(pixels.astype(np.float32))
        return float(np.mean(np.square(apart, dtype=np.float64)))

    def scores(self, pixels: Image) -> npt.NDArray[np.float32]:
        """The error alone, float32 ``(1,)``."""
        return np.array([self.error(pixels)], np.float32)
