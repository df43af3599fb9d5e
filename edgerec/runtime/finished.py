"""What a .tflite file that others made says of itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgerec.contract.flatbuffer import Graph, read_graph
from edgerec.contract.input_layer import with_input_layer
from edgerec.contract.metadata import Metadata, normalise_for, read_metadata
from edgerec.contract.tensors import AnyNormalise, Normalise, TensorSpec, parse_normalise
from edgerec.errors import ModelError
from edgerec.runtime.interpreter import input_spec, open_interpreter, output_spec

_DTYPES = ("FLOAT32", "UINT8", "INT8")
# Operators that change how the output is stored, not what it says.
_AFTER = ("DEQUANTIZE", "QUANTIZE", "RESHAPE", "SQUEEZE")


@dataclass(frozen=True)
class Finished:
    """A .tflite file that is an image classifier.

    Attributes:
        where: its path, for messages.
        content: its bytes.
        input, output: its tensors as it declares them.
        last_operator: what computes the output, past operators that only store it otherwise.
        activation: what makes scores of the output; ``none`` where the model does so itself.
        metadata: what is written in the file, if anything is.
    """

    where: str
    content: bytes
    input: TensorSpec
    output: TensorSpec
    last_operator: str
    activation: str
    metadata: Metadata | None

    @classmethod
    def open(cls, path: Path) -> Finished:
        """Read the file; raises :class:`ModelError` when it is no image classifier."""
        where = str(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{where} cannot be read: {error.strerror}") from None
        graph = read_graph(content, where)
        _check(graph, where)
        metadata = read_metadata(content, where)
        interpreter = open_interpreter(content, where=where)
        answer, last = output_spec(interpreter, where), _last_operator(graph)
        activation = _activation(last, answer, where)
        return cls(where, content, input_spec(interpreter, where), answer, last, activation, metadata)

    @property
    def classes(self) -> int:
        """How many scores it gives."""
        return 2 if self.activation == "binary" else self.output.size

    def expected(self, text: str | None) -> AnyNormalise:
        """Return the normalization in ``text``, or else the one that the file states."""
        return parse_normalise(text) if text else normalise_for(self.input, self.metadata, self.where)

    def normalised(self, text: str | None) -> tuple[Finished, Normalise]:
        """Return the model to run and what pixels become at its input.

        A normalization that differs between channels, or a model that takes BGR, gets a layer at the start of its
        graph (:func:`~edgerec.contract.input_layer.with_input_layer`), and pixels then stay as they are.

        Args:
            text: the normalization as :func:`parse_normalise` reads it; None lets pixels pass through a quantized
                input, and takes what the metadata states for a float input.
        """
        normalise = self.expected(text)
        if isinstance(normalise, Normalise):
            return self, normalise
        content = with_input_layer(self.content, normalise, self.where)
        spec = input_spec(open_interpreter(content, where=self.where), self.where)
        return replace(self, content=content, input=spec, metadata=None), Normalise.named("pixels")


def _check(graph: Graph, where: str) -> None:
    """Refuse what no bundle can hold, before an interpreter sees it."""
    if any(operator.name == "CUSTOM edgetpu-custom-op" for operator in graph.operators):
        raise ModelError(
            f"{where} was compiled for the Edge TPU and runs nowhere else, so that nothing could verify it: "
            "import the file from before the compiler; --target coral compiles it where edgetpu_compiler is installed"
        )
    for what, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        if len(tensors) != 1:
            raise ModelError(f"{where} has {len(tensors)} {what}s, an image classifier has one")
        shape, dtype = tensors[0].shape, tensors[0].dtype
        if dtype not in _DTYPES:
            raise ModelError(f"{where}: its {what} is {dtype}, expected {', '.join(_DTYPES)}: convert it with one")
        if -1 in shape[1:]:  # a batch of any size is used as one
            raise ModelError(
                f"{where}: its {what} has a dynamic shape {list(shape)} (-1 is any): convert it with a fixed one"
            )
    shape = graph.inputs[0].shape
    sized = len(shape) == 4 and all(1 <= n <= 4096 for n in shape[1:3])
    if not sized or shape[0] not in (1, -1) or shape[3] not in (1, 3):
        raise ModelError(f"{where} takes {list(shape)}, expected [1, height, width, 1 or 3], 4096 pixels at most")
    shape = graph.outputs[0].shape
    if len(shape) < 2 or shape[0] not in (1, -1) or sum(n > 1 for n in shape) > 1:
        raise ModelError(f"{where} gives {list(shape)}, expected [1, classes]: it is no image classifier")


def _last_operator(graph: Graph) -> str:
    """The operator that computes the output, past those that only store it otherwise; empty without one."""
    makers = {id(tensor): operator for operator in graph.operators for tensor in operator.outputs}
    operator = makers.get(id(graph.outputs[0]))
    while operator is not None and operator.name in _AFTER:
        earlier = makers.get(id(operator.inputs[0]))
        if earlier is None:
            break
        operator = earlier
    return operator.name if operator is not None else ""


def _activation(last: str, answer: TensorSpec, where: str) -> str:
    if answer.size == 1:
        if last != "LOGISTIC":
            raise ModelError(
                f"{where} gives one number that no sigmoid made (its last operator is {last}): it is no classifier; "
                "end a classifier of two classes in a sigmoid, or in two outputs"
            )
        return "binary"
    return "none" if last in ("SOFTMAX", "LOGISTIC") else "softmax"
