"""A model that knows images, over an interpreter that knows tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.preprocess import Image
from edgerec.contract.tensors import ACTIVATIONS, BINARY, Normalise, TensorSpec, dequantize, pixel_table
from edgerec.errors import ModelError
from edgerec.runtime.interpreter import input_spec, open_interpreter, output_spec
from edgerec.utils.messages import first_sentence


class ImageModel:
    """A .tflite image classifier that turns pixels into scores. Not thread-safe: create one for each thread.

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
        normalise: Normalise,
        *,
        activation: str = "none",
        threads: int = 0,
        delegate: str = "",
        delegate_options: Mapping[str, str] | None = None,
        where: str = "the model",
    ) -> None:
        """Prepare the .tflite bytes; raises :class:`ModelError` when they are no image classifier.

        ``activation`` is what makes scores of the output, a name in ``ACTIVATIONS``.
        """
        self._interpreter: Any = open_interpreter(
            model, threads=threads, delegate=delegate, delegate_options=delegate_options, where=where
        )
        self.input = input_spec(self._interpreter, where)
        self.output = output_spec(self._interpreter, where)
        if len(self.input.shape) != 4 or self.input.shape[0] != 1 or self.input.shape[3] not in (1, 3):
            raise ModelError(f"{where} takes {list(self.input.shape)}, expected [1, height, width, 1 or 3]")
        self._check_output(where)
        self.classes = 2 if activation in BINARY else self.output.size
        self._where = where
        self._activate = ACTIVATIONS[activation]
        self._table = pixel_table(normalise, self.input)
        self._reset: Callable[[], None] = getattr(self._interpreter, "reset_all_variables", lambda: None)
        self._input_index = self._interpreter.get_input_details()[0]["index"]
        self._output_index = self._interpreter.get_output_details()[0]["index"]

    def _check_output(self, where: str) -> None:
        if max(self.output.shape, default=0) != self.output.size:
            raise ModelError(f"{where} gives {list(self.output.shape)}, expected [1, classes]")

    def invoke(self, pixels: Image) -> npt.NDArray[Any]:
        """Stored output ``(outputs,)`` in the output's dtype for uint8 ``(height, width, channels)`` pixels."""
        stored = pixels if self._table is None else self._table[pixels]
        self._interpreter.set_tensor(self._input_index, stored[np.newaxis])
        self._reset()  # otherwise the state of an LSTM would carry over from the previous image
        try:
            self._interpreter.invoke()
        except RuntimeError as error:  # what could be prepared may yet lack the data of a tensor
            raise ModelError(f"{self._where} cannot be run: {first_sentence(error)}") from None
        return self._interpreter.get_tensor(self._output_index).reshape(-1)

    def scores(self, pixels: Image) -> npt.NDArray[np.float32]:
        """float32 ``(classes,)`` in [0, 1] for uint8 ``(height, width, channels)`` pixels."""
        return self._activate(dequantize(self.invoke(pixels), self.output))
