"""Run a .tflite image classifier on preprocessed images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.preprocess import Image
from edgerec.contract.tensors import ACTIVATIONS, BINARY, Normalize, TensorSpec, dequantize, pixel_table
from edgerec.errors import ModelError
from edgerec.runtime.interpreter import input_spec, open_interpreter, output_spec
from edgerec.utils.messages import first_sentence


class ImageModel:
    """A .tflite image classifier. Not thread-safe: use one object per thread.

    Attributes:
        input: input tensor, uint8, int8, int16 or float32 ``(1, height, width, channels)``.
        output: output tensor, ``(1, outputs)`` with any number of additional dimensions of size 1.
        classes: number of scores.
    """

    input: TensorSpec
    output: TensorSpec
    classes: int

    def __init__(
        self,
        model: bytes,
        normalize: Normalize,
        *,
        activation: str = "none",
        threads: int = 0,
        delegate: str = "",
        delegate_options: Mapping[str, str] | None = None,
        where: str = "the model",
    ) -> None:
        """Load a model.

        Args:
            model: the .tflite file.
            normalize: input pixel normalization.
            activation: function that converts the output to scores, a key of ``ACTIVATIONS``.
            threads: number of threads. 0 lets the runtime choose.
            delegate: an external delegate's shared library, ``gpu``, or an empty string for the CPU.
            delegate_options: delegate options.
            where: the model's name in error messages.

        Raises:
            ModelError: the file is not an image classifier, or this runtime cannot run it.
            DelegateError: the delegate cannot be loaded.
        """
        self._interpreter: Any = open_interpreter(
            model, threads=threads, delegate=delegate, delegate_options=delegate_options, where=where
        )
        self.input = input_spec(self._interpreter, where)
        self.output = output_spec(self._interpreter, where)
        if len(self.input.shape) != 4 or self.input.shape[0] != 1 or self.input.shape[3] not in (1, 3):
            raise ModelError(
                f"{where} is not an image classifier: its input has the shape {list(self.input.shape)}, expected [1, "
                "height, width, 1 or 3]"
            )
        self._check_output(where)
        self.classes = 2 if activation in BINARY else self.output.size
        self._where = where
        self._activate = ACTIVATIONS[activation]
        self._table = pixel_table(normalize, self.input)
        self._reset: Callable[[], None] = getattr(self._interpreter, "reset_all_variables", lambda: None)
        self._input_index = self._interpreter.get_input_details()[0]["index"]
        self._output_index = self._interpreter.get_output_details()[0]["index"]

    def _check_output(self, where: str) -> None:
        if max(self.output.shape, default=0) != self.output.size:
            raise ModelError(
                f"{where} is not a classifier: its output has the shape {list(self.output.shape)}, expected [1, "
                "classes]"
            )

    def invoke(self, pixels: Image) -> npt.NDArray[Any]:
        """Run the model on a preprocessed uint8 image of shape ``(height, width, channels)``.

        Returns:
            The output of shape ``(outputs,)`` in the dtype of the output tensor, without dequantization.
        """
        values = pixels if self._table is None else self._table[pixels]
        self._interpreter.set_tensor(self._input_index, values[np.newaxis])
        self._reset()  # Without a reset, an LSTM would keep state from the previous image.
        try:
            self._interpreter.invoke()
        except RuntimeError as error:  # allocate_tensors does not detect tensors without data.
            raise ModelError(f"{self._where} cannot be run: {first_sentence(error)}") from None
        return self._interpreter.get_tensor(self._output_index).reshape(-1)

    def scores(self, pixels: Image) -> npt.NDArray[np.float32]:
        """Return the scores in [0, 1] for a preprocessed image, as a float32 array of shape ``(classes,)``."""
        return self._activate(dequantize(self.invoke(pixels), self.output))
