"""Detect images of unknown classes by the reconstruction error of an autoencoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.preprocess import Image
from edgerec.contract.tensors import Normalize, dequantize
from edgerec.errors import ModelError
from edgerec.runtime.image_model import ImageModel


class Autoencoder(ImageModel):
    """Computes the reconstruction errors of images. Not thread-safe: use one object per thread."""

    def __init__(self, model: bytes, normalize: Normalize, **options: Any) -> None:
        """Load an autoencoder.

        Args:
            model: the .tflite file.
            normalize: input pixel normalization.
            options: further arguments of :class:`ImageModel`.

        Raises:
            ModelError: the file is not a TFLite model, or its output does not have the shape of its input.
        """
        super().__init__(model, normalize, **options)
        self._normalize = normalize

    def _check_output(self, where: str) -> None:
        if self.output.shape != self.input.shape:
            raise ModelError(
                f"{where} is not an autoencoder: its output has the shape {list(self.output.shape)}, expected "
                f"the shape of its input, {list(self.input.shape)}"
            )

    def reconstruction(self, pixels: Image) -> npt.NDArray[np.float32]:
        """Return the reconstruction of a uint8 image of shape ``(height, width, channels)`` as normalized pixels."""
        return dequantize(self.invoke(pixels), self.output).reshape(self.input.shape[1:])

    def error(self, pixels: Image) -> float:
        """Return the reconstruction error: the mean squared difference between input and output."""
        difference = self.reconstruction(pixels) - self._normalize.apply(pixels.astype(np.float32))
        return float(np.mean(np.square(difference, dtype=np.float64)))

    def scores(self, pixels: Image) -> npt.NDArray[np.float32]:
        """Return the reconstruction error as a float32 array of shape ``(1,)``."""
        return np.array([self.error(pixels)], np.float32)
