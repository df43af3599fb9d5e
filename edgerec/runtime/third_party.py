"""Open .tflite image classifiers created by other tools."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from edgerec.contract.tensors import BINARY, AnyNormalize, Normalize, TensorSpec, parse_normalize
from edgerec.errors import ModelError, unknown
from edgerec.runtime.interpreter import input_spec, open_interpreter, output_spec
from edgerec.runtime.tool_detection import Family, recognize
from edgerec.tflite.flatbuffer import MAX_MODEL_BYTES, Graph, Operator, read_graph, reading_graph
from edgerec.tflite.metadata import Metadata, normalize_for, read_metadata
from edgerec.tflite.model_input import InputLayout, layout_of, with_nhwc_input, with_normalization
from edgerec.tflite.operators import EDGETPU_CUSTOM
from edgerec.tflite.probing import Probe, probe_model
from edgerec.utils.atomic import read_at_most, sha256

log = logging.getLogger(__name__)

# Each value is a pair: the activation of a model with several outputs, and of a model with a single output.
CHOICES = {"none": ("none", "binary"), "softmax": ("softmax", ""), "sigmoid": ("sigmoid", "binary_sigmoid")}

_NONE = Metadata("", "", (), ())
_DTYPES = ("FLOAT32", "UINT8", "INT8")
# Operators that move, select, convert or average values without scaling them.
_PASSING = {
    *("DEQUANTIZE", "QUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "CAST", "SLICE", "STRIDED_SLICE"),
    *("GATHER", "GATHER_ND", "CONCATENATION", "PACK", "UNPACK", "MEAN", "REVERSE_V2", "SPLIT", "SPLIT_V", "PAD"),
    *("AVERAGE_POOL_2D", "REDUCE_MAX"),
}
_UNBOUNDED_OPERATORS = {
    *("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "BATCH_MATMUL", "ADD", "SUB", "SQUARE", "ABS"),
    *("RELU", "LEAKY_RELU", "PRELU", "ELU", "GELU", "HARD_SWISH"),
}
_ARITHMETIC = {"ADD", "SUB", "MUL", "DIV"}
# Values of the TFLite enum ActivationFunctionType: RELU_N1_TO_1, RELU6 and TANH.
_BOUNDED_ACTIVATIONS = (2, 3, 4)


@dataclass(frozen=True)
class ThirdPartyModel:
    """A .tflite image classifier created by another tool.

    Attributes:
        where: the file's path in error messages.
        sha256: the file's SHA-256 digest.
        content: the model's bytes. They differ from the file if an operator was added for ``layout``.
        input, output: the model's input and output tensors.
        last_operator: operator that computes the output, without subsequent operators that only move or average values.
        activation: function that converts the output to scores, or ``none`` if the model already returns scores.
        activation_reason: explanation of how the activation was determined.
        sums_to_one: whether an image's scores add up to 1. False if several labels can apply to an image.
        metadata: TFLite metadata in the file, or None.
        family: preprocessing used by the tool that created the file.
        layout: input layout if the input has no channel axis or its channel axis comes first, otherwise None.
    """

    where: str
    sha256: str
    content: bytes
    input: TensorSpec
    output: TensorSpec
    last_operator: str
    activation: str
    activation_reason: str
    sums_to_one: bool
    metadata: Metadata | None
    family: Family
    layout: InputLayout | None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        activation: str | None = None,
        own_labels: bool = False,
        own_normalize: bool = False,
    ) -> ThirdPartyModel:
        """Read a .tflite file and run its model on test inputs in a child process.

        Args:
            path: the .tflite file.
            activation: ``none``, ``softmax`` or ``sigmoid``. None determines the activation from the graph and from
                the outputs for test inputs.
            own_labels: whether the caller provides labels, so that invalid labels in the metadata are not an error.
            own_normalize: whether the caller provides a normalization, so that an invalid normalization in the
                metadata is not an error.

        Raises:
            ModelError: the file is not an image classifier, or the interpreter cannot run it.
        """
        where = str(path)
        if activation is not None and activation not in CHOICES:
            raise ModelError(unknown("activation", activation, CHOICES))
        try:
            content = read_at_most(path, MAX_MODEL_BYTES)
        except OSError as error:
            raise ModelError(f"{where} cannot be read: {error.strerror}") from None
        digest = sha256(content)
        graph = read_graph(content, where)
        with reading_graph(where):
            _check(graph, where)
        needs = [] if own_labels else ["labels"]
        if not own_normalize and graph.inputs[0].dtype == "FLOAT32":
            needs.append("normalize")
        metadata = read_metadata(content, where, needs=needs)
        family = recognize(graph, metadata)
        layout = layout_of(graph.inputs[0].shape)
        if layout is not None:
            content = with_nhwc_input(content, layout, where)
            shape = list(graph.inputs[0].shape)
            log.info(
                "%s has an input of shape %s (%s): added a %s operator at its start",
                *(where, shape, layout.description, layout.operator),
            )
        probe = probe_model(content)
        if probe.error:
            raise ModelError(f"{where} cannot be run: {probe.error}")
        interpreter = open_interpreter(content, where=where)
        output, last = output_spec(interpreter, where), _last_operator(graph)
        chosen, reason = _activation(graph, output, probe, activation, where)
        sums = chosen in (*BINARY, "softmax") or (chosen == "none" and _sum_to_one(last, output, probe))
        return cls(
            where,
            digest,
            content,
            input_spec(interpreter, where),
            output,
            last.name if last else "",
            chosen,
            reason,
            sums,
            metadata,
            family,
            layout,
        )

    @property
    def classes(self) -> int:
        """Number of classes, which equals the number of scores per image."""
        return 2 if self.activation in BINARY else self.output.size

    def expected(self, text: str | None) -> AnyNormalize:
        """Return the normalization parsed from ``text``, or from the metadata if ``text`` is None."""
        if not text and self.family.normalize and not self.input.quantized and not (self.metadata or _NONE).normalize:
            text = self.family.normalize
            log.info("%s: using normalization %s, as in %s models", self.where, text, self.family.name)
        return parse_normalize(text) if text else normalize_for(self.input, self.metadata, self.where)

    def normalized(self, text: str | None) -> tuple[ThirdPartyModel, Normalize]:
        """Return an equivalent model with the same normalization for all channels, and this normalization.

        If the normalization differs between channels, or if the model expects BGR,
        :func:`~edgerec.tflite.model_input.with_normalization` adds a normalization layer to the start of the graph. The
        input of the returned model is then the unchanged image.

        Args:
            text: the normalization in the format of :func:`parse_normalize`. If None, pixels are not changed for a
                quantized input, and the normalization in the metadata is used for a float input.
        """
        normalize = self.expected(text)
        if isinstance(normalize, Normalize):
            return self, normalize
        content = with_normalization(self.content, normalize, self.where)
        spec = input_spec(open_interpreter(content, where=self.where), self.where)
        return replace(self, content=content, input=spec, metadata=None), Normalize.named("pixels")


def _check(graph: Graph, where: str) -> None:
    """Raise :class:`ModelError` if the model cannot be used in a bundle."""
    if any(operator.name == EDGETPU_CUSTOM for operator in graph.operators):
        before = where.replace("_edgetpu.tflite", ".tflite")
        file = f"import {before}" if before != where else "import the .tflite file from which it was compiled"
        raise ModelError(
            f"{where} was compiled for the Edge TPU, so it cannot be verified on the CPU. Instead, {file} with "
            "--target coral. If edgetpu_compiler is installed, edgerec compiles the file again"
        )
    for what, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        if len(tensors) != 1:
            raise ModelError(f"{where} has {len(tensors)} {what}s, but an image classifier must have exactly one")
        shape, dtype = tensors[0].shape, tensors[0].dtype
        if dtype not in _DTYPES:
            raise ModelError(
                f"{where}: the {what} has dtype {dtype} instead of {' or '.join(_DTYPES)}: convert the model again"
            )
        if -1 in shape[1:]:  # A dynamic batch size is treated as 1.
            raise ModelError(
                f"{where}: the {what} has the dynamic shape {list(shape)} (-1 is any size): convert the model with a "
                "fixed shape"
            )
    shape = graph.inputs[0].shape
    sized = len(shape) == 4 and all(1 <= n <= 4096 for n in shape[1:3])
    if layout_of(shape) is None and (not sized or shape[0] not in (1, -1) or shape[3] not in (1, 3)):
        raise ModelError(
            f"{where} has an input of shape {list(shape)}; expected [1, height, width, 1 or 3], [1, 1 or 3, height, "
            "width] or [1, height, width] with at most 4096 pixels per side"
        )
    shape = graph.outputs[0].shape
    if not shape or (len(shape) > 1 and shape[0] not in (1, -1)) or sum(n > 1 for n in shape) > 1:
        raise ModelError(
            f"{where} is not an image classifier: its output has the shape {list(shape)}, expected [1, classes]"
        )


def _operators_by_tensor_id(graph: Graph) -> dict[int, Operator]:
    return {id(tensor): operator for operator in graph.operators for tensor in operator.outputs}


def _last_operator(graph: Graph) -> Operator | None:
    """Return the operator that computes the output, skipping operators that only move or average values."""
    sources = _operators_by_tensor_id(graph)
    operator = sources.get(id(graph.outputs[0]))
    while operator is not None and operator.name in _PASSING:
        # Skip constant inputs, e.g. the axis of a SPLIT operator.
        tensor = next((t for t in operator.inputs if t is not None and id(t) in sources), None)
        if tensor is None:
            break
        operator = sources[id(tensor)]
    return operator


def _unbounded(graph: Graph, operator: Operator | None) -> bool:
    """Return True if the output range is unbounded. Arithmetic with constants is ignored."""
    sources = _operators_by_tensor_id(graph)
    while operator is not None:
        if getattr(operator.options, "fusedActivationFunction", 0) in _BOUNDED_ACTIVATIONS:
            return False
        computed = [t for t in operator.inputs if t is not None and id(t) in sources]
        if operator.name not in _ARITHMETIC or len(computed) != 1:
            return operator.name in _UNBOUNDED_OPERATORS
        operator = sources[id(computed[0])]
    return False


def _activation(graph: Graph, output: TensorSpec, probe: Probe, choice: str | None, where: str) -> tuple[str, str]:
    """Return the activation that converts outputs to scores, and an explanation of how it was determined."""
    last = _last_operator(graph)
    several, single = CHOICES[choice or "none"]
    if choice is not None:
        if output.size == 1 and not single:
            raise ModelError(f"{where} has a single output, but --activation {choice} requires one output per label")
        return (single if output.size == 1 else several), "chosen with --activation"
    name = last.name if last is not None else "nothing"
    unbounded = _unbounded(graph, last)
    bounded = probe.within_unit and not unbounded
    if output.size == 1:
        if name == "LOGISTIC":
            return "binary", "computed by LOGISTIC"
        if bounded:
            return "binary", f"all outputs of {probe.runs} test inputs were in [0, 1]"
        raise ModelError(
            f"{where} is not a classifier: its single output is computed by {name} and not by a sigmoid. If the output "
            "is the logit of the second of two classes, add --activation sigmoid"
        )
    if name in ("SOFTMAX", "LOGISTIC"):
        return "none", f"computed by {name}"
    if _sum_to_one(last, output, probe):
        return "none", f"the outputs of {probe.runs} test inputs were probabilities that add up to 1"
    if bounded:
        return "none", f"all outputs of {probe.runs} test inputs were in [0, 1]"
    total = probe.highest_sum
    if probe.runs and total > 1.5 and probe.lowest >= 0 and probe.sums_to(total, 0.01 * total) and not unbounded:
        raise ModelError(
            f"the scores of {where} add up to {total:g}, expected 1: convert the model without scaling its output, "
            "or specify --activation none, softmax or sigmoid"
        )
    return "softmax", f"the outputs of {name} were not probabilities"


def _sum_to_one(last: Operator | None, output: TensorSpec, probe: Probe) -> bool:
    rounding = output.scale * output.size / 2 if output.quantized else 0.0
    exact = probe.within_unit and probe.sums_to(1.0, 0.01 + min(rounding, 0.1))
    # With many classes, most quantized scores round to 0, so their sum can be less than 1.
    return exact or (last is not None and last.name == "SOFTMAX" and probe.sums_to(1.0, 0.5) and output.quantized)
