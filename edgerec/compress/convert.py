"""Convert Keras models to .tflite files in each precision, and check the results."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.layer_comparison.graph_matching import layer_name
from edgerec.contract.tensors import Normalize, pixel_table
from edgerec.errors import ModelError
from edgerec.runtime.interpreter import input_spec, open_interpreter
from edgerec.tflite.flatbuffer import float_tensors, pack, parse, read_graph
from edgerec.tflite.probing import remember
from edgerec.utils.native_output import captured_stderr
from edgerec.utils.optional import require

# This pattern matches the tensor names of biases and batch normalizations that the converter fused.
_FUSED = re.compile(r"/(BiasAdd(/ReadVariableOp)?|FusedBatchNormV3)\d*$")
_FAKE_QUANTIZED_WEIGHTS = re.compile(r"/\w+Quant/FakeQuantWithMinMaxVars\w*$")


def to_float32(model: Any) -> bytes:
    """Convert a Keras model to a float32 .tflite file.

    The input has the shape ``(1, H, W, C)``, and the output has the shape ``(1, classes)``.
    """
    return _convert(_converter(model))


def to_int8(model: Any, calibration: npt.NDArray[np.float32] | None = None) -> bytes:
    """Convert a Keras model to an int8 .tflite file with uint8 input and output.

    Args:
        model: a quantization-aware model, or a float model.
        calibration: normalized images float32 ``(N, H, W, C)`` that set the activation ranges; required for a float
            model.
    """
    tf = require("tensorflow")
    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.uint8  # third-party TFLite tools expect uint8 scores
    if calibration is not None:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: ([image[np.newaxis]] for image in calibration)
    return _convert(converter)


def to_float16(model: Any) -> bytes:
    """Convert a Keras model to a .tflite file with float16 weights, which halves the file size.

    Inputs, outputs and computation remain float32.
    """
    tf = require("tensorflow")
    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return _convert(converter)


def to_dynamic(model: Any) -> bytes:
    """Convert a Keras model with dynamic-range quantization, i.e. int8 weights and float32 activations.

    During inference, kernels quantize activations to int8 if this is faster.
    """
    tf = require("tensorflow")
    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return _convert(converter)


def to_int16x8(model: Any, calibration: npt.NDArray[np.float32]) -> bytes:
    """Convert a Keras model to a .tflite file with int8 weights and int16 activations.

    The input and output are float32.

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
    """Apply post-training int8 quantization, but keep the selected layers, the input and the output in float32.

    Args:
        model: a float model.
        calibration: as for :func:`to_int8`.
        float_layers: names of the Keras layers that stay float32.

    Raises:
        ModelError: the .tflite file has no operator for one of these layers.
    """
    tf = require("tensorflow")
    operators = {op.outputs[0].name: layer_name(op) for op in read_graph(to_float32(model)).operators}
    if missing := set(float_layers) - set(operators.values()):
        raise ModelError(
            f"cannot keep the layer {min(missing)!r} in float: the converted model has no operator with this name, "
            "which may have been fused into another operator. Choose from "
            f"{', '.join(dict.fromkeys(operators.values()))}"
        )
    nodes = [output for output, layer in operators.items() if layer in float_layers]
    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[np.newaxis]] for image in calibration)
    with captured_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow warns that its interpreter is deprecated
        options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=nodes)
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=converter.representative_dataset, debug_options=options
        )
        return bytes(debugger.get_nondebug_quantized_model())


def plain_names(content: bytes) -> bytes:
    """Shorten the tensor names in a .tflite file to layer names, for readability in model viewers.

    The converter joins the names of all fused layers and of the fake-quantization operators. These names take several
    kilobytes, and no interpreter needs them.
    """
    model = parse(content)
    for subgraph in model.subgraphs:
        used: Counter[str] = Counter()
        for tensor in subgraph.tensors:
            name = _plain((tensor.name or b"").decode())
            tensor.name = f"{name}{used[name] or ''}".encode()
            used[name] += 1
    content = pack(model)
    remember(content)
    return content


def _plain(name: str) -> str:
    parts = [_FAKE_QUANTIZED_WEIGHTS.sub("/weights", part.replace("/quant_", "/")) for part in name.split(";")]
    return ";".join([part for part in parts if not _FUSED.search(part)] or parts[:1])


def check_int8(content: bytes, normalize: Normalize) -> None:
    """Check that a .tflite file is fully quantized to int8, and that its input equals the uint8 pixel values.

    The file must have no float tensor, and ``quantize(normalize(p)) == p`` must hold for every pixel value p.

    Raises:
        ModelError: one of these conditions is not met.
    """
    graph = read_graph(content, "the converted model")
    if floats := float_tensors(graph):
        names = ", ".join(tensor.name[-60:] for tensor in floats[:3])
        raise ModelError(f"the converted model is not full int8: it has {len(floats)} float tensors ({names})")
    shape = graph.inputs[0].shape
    if shape[:1] != (1,):
        raise ModelError(f"the converted model has the input shape {list(shape)}, expected a batch size of 1")
    spec = input_spec(open_interpreter(content, where="the converted model"), "the converted model")
    if spec.dtype != "uint8" or pixel_table(normalize, spec) is not None:
        raise ModelError(
            "the converted model's quantized input does not equal the pixel values: the input is "
            f"{spec.dtype} with scale {spec.scale:.8f} and zero point {spec.zero_point}"
        )


def _converter(model: Any) -> Any:
    tf = require("tensorflow")
    signature = tf.TensorSpec([1, *model.input_shape[1:]], tf.float32)
    # A tf.Module is used because the converter would trace every layer of a Keras model again, which is slow.
    module = tf.Module()
    module.weights = list(model.variables)
    module.scores = tf.function(lambda pixels: model(pixels, training=False), [signature], autograph=False)
    return tf.lite.TFLiteConverter.from_concrete_functions([module.scores.get_concrete_function()], module)


def _convert(converter: Any) -> bytes:
    with captured_stderr() as native_stderr:
        try:
            content = bytes(converter.convert())
        except Exception as error:  # the converter's C++ errors have no common exception class
            native_stderr.seek(0)
            problem = f"{error}\n{native_stderr.read().decode(errors='replace')}".strip().splitlines()[0]
            raise ModelError(f"TensorFlow cannot convert the model to TFLite: {problem}") from error
    remember(content)  # this process created the model, so it is safe to run
    return content
