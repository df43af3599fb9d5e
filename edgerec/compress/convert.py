"""Keras to TFLite bytes."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.layer_comparison.graph_matching import layer_name
from edgerec.contract.tensors import Normalise, pixel_table
from edgerec.errors import ModelError
from edgerec.runtime.interpreter import input_spec, open_interpreter
from edgerec.tflite.flatbuffer import float_tensors, pack, parse, read_graph
from edgerec.tflite.probing import remember
from edgerec.utils.native_output import captured_stderr
from edgerec.utils.optional import require

# Parts of the names of tensors: a bias or a normalisation that a kernel took in, and tfmot's rounded weights.
_FUSED = re.compile(r"/(BiasAdd(/ReadVariableOp)?|FusedBatchNormV3)\d*$")
_SIMULATED = re.compile(r"/\w+Quant/FakeQuantWithMinMaxVars\w*$")


def to_float32(model: Any) -> bytes:
    """The float model as TFLite: float32 ``(1, H, W, C)`` in, float32 ``(1, classes)`` out."""
    return _convert(_converter(model))


def to_int8(model: Any, calibration: npt.NDArray[np.float32] | None = None) -> bytes:
    """Full int8: uint8 pixels in, uint8 scores out, batch 1, no float tensor.

    Args:
        model: a quantization-aware model, or a float one.
        calibration: for a float model, normalised pictures float32 ``(N, H, W, C)`` that set the ranges.
    """
    tf = require("tensorflow")
    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.uint8  # other people's TFLite tools know no int8 scores
    if calibration is not None:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: ([image[np.newaxis]] for image in calibration)
    return _convert(converter)


def to_float16(model: Any) -> bytes:
    """Weights as float16, computed in float32: float32 in and out, half the size."""
    tf = require("tensorflow")
    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return _convert(converter)


def to_dynamic(model: Any) -> bytes:
    """Weights as int8, activations float32 and quantized on the way where that is quicker: float32 in and out."""
    tf = require("tensorflow")
    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return _convert(converter)


def to_int16x8(model: Any, calibration: npt.NDArray[np.float32]) -> bytes:
    """Weights as int8, activations as int16: float32 in and out.

    Args:
        model: a float model.
        calibration: as for :func:`to_int8`.
    """
    tf = require("tensorflow")
    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
    converter.representative_dataset = lambda: ([image[np.newaxis]] for image in calibration)
    return _convert(converter)


def to_mixed(model: Any, calibration: npt.NDArray[np.float32], float_layers: Collection[str]) -> bytes:
    """int8 by calibration but for some layers, which stay float32: float32 in and out.

    Args:
        model: a float model.
        calibration: as for :func:`to_int8`.
        float_layers: names of Keras layers.

    Raises:
        ModelError: a layer that no operator is named after.
    """
    tf = require("tensorflow")
    operators = {op.outputs[0].name: layer_name(op) for op in read_graph(to_float32(model)).operators}
    if missing := set(float_layers) - set(operators.values()):
        raise ModelError(
            f"layer {min(missing)!r} is no operator of its own in the .tflite (it may be part of another): "
            f"choose of {', '.join(dict.fromkeys(operators.values()))}"
        )
    nodes = [output for output, layer in operators.items() if layer in float_layers]
    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[np.newaxis]] for image in calibration)
    with captured_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorFlow's own interpreter
        options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=nodes)
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=converter.representative_dataset, debug_options=options
        )
        return bytes(debugger.get_nondebug_quantized_model())


def plain_names(content: bytes) -> bytes:
    """The file with its tensors called after their layers alone, as people read them in a viewer.

    The converter joins the names of all that it fused, with those of the helpers that simulated int8 rounding: some
    kilobytes that no interpreter needs.
    """
    model = parse(content)
    for subgraph in model.subgraphs:
        used: Counter[str] = Counter()
        for tensor in subgraph.tensors:
            name = _plain((tensor.name or b"").decode())
            tensor.name = f"{name}{used[name] or ''}".encode()  # numbered, as the converter does
            used[name] += 1
    content = pack(model)
    remember(content)
    return content


def _plain(name: str) -> str:
    parts = [_SIMULATED.sub("/weights", part.replace("/quant_", "/")) for part in name.split(";")]
    return ";".join([part for part in parts if not _FUSED.search(part)] or parts[:1])


def check_int8(content: bytes, normalise: Normalise) -> None:
    """Assert what DESIGN promises of an int8 file; raises :class:`ModelError` with the first break.

    No float tensor anywhere, batch 1, and ``quantize(normalise(p)) == p`` for every pixel value p.
    """
    graph = read_graph(content, "the converted model")
    if floats := float_tensors(graph):
        names = ", ".join(tensor.name[-60:] for tensor in floats[:3])
        raise ModelError(f"the converted model has {len(floats)} float tensors ({names}): it is not full int8")
    given = input_spec(open_interpreter(content, where="the converted model"), "the converted model")
    if given.dtype != "uint8" or pixel_table(normalise, given) is not None:
        raise ModelError(
            f"pixels do not pass through the converted model: its input is {given.dtype} "
            f"with scale {given.scale:.8f} and zero point {given.zero_point}"
        )


def _converter(model: Any) -> Any:
    tf = require("tensorflow")
    signature = tf.TensorSpec([1, *model.input_shape[1:]], tf.float32)
    # The converter saves what it is given first. Of a Keras model that traces every layer once more, half a
    # minute for MobileNetV2; of a module with the one function and its variables it does not.
    module = tf.Module()
    module.weights = list(model.variables)
    module.scores = tf.function(lambda pixels: model(pixels, training=False), [signature], autograph=False)
    return tf.lite.TFLiteConverter.from_concrete_functions([module.scores.get_concrete_function()], module)


def _convert(converter: Any) -> bytes:
    with captured_stderr() as said:
        try:
            content = bytes(converter.convert())
        except Exception as error:  # the converter's C++ raises one class for everything
            said.seek(0)
            problem = f"{error}\n{said.read().decode(errors='replace')}".strip().splitlines()[0]
            raise ModelError(f"TensorFlow cannot convert the model: {problem}") from error
    remember(content)  # this process made the model, so no check in a child process is needed
    return content
