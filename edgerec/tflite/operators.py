"""Properties of TFLite operators: codes, numbers of inputs and outputs, options and kinds.

Codes and option types are values of the enums ``BuiltinOperator`` and ``BuiltinOptions`` in the TFLite schema. The
tables for the verifier use these numbers instead of names, because the tflite-runtime package does not contain the
schema.
"""

from __future__ import annotations

# Higher operator codes are rejected. The current TFLite schema uses only lower codes.
MAX_CODE = 400
CUSTOM_CODE, WHILE_CODE, IF_CODE, CALL_ONCE_CODE = 32, 119, 118, 129

# Minimum and maximum number of inputs and outputs of each operator, keyed by operator code.
_UNARY: tuple[int, ...] = (
    *(1, 5, 6, 8, 11, 12, 13, 14, 17, 19, 20, 21, 25, 26, 28, 43, 47, 50, 53, 59, 66, 73, 75, 76, 77, 80, 87, 92, 93),
    *(98, 101, 104, 108, 109, 110, 111, 113, 114, 116, 117, 133, 134, 135, 150, 152, 158, 159),
)
_BINARY: tuple[int, ...] = (
    *(0, 7, 18, 23, 34, 36, 39, 40, 41, 42, 54, 55, 56, 57, 58, 61, 62, 63, 69, 70, 71, 72, 74, 78, 79, 81, 82, 84, 86),
    *(89, 90, 91, 94, 95, 97, 99, 100, 105, 107, 112, 115, 126, 128, 130, 131, 140, 145, 156, 160, 161),
)
UNLIMITED = 1 << 16
INPUTS: dict[int, tuple[int, int]] = dict.fromkeys(_UNARY, (1, 1)) | dict.fromkeys(_BINARY, (2, 2))
INPUTS |= dict.fromkeys((2, 83, 106, IF_CODE, WHILE_CODE), (1, UNLIMITED))
INPUTS |= dict.fromkeys((CALL_ONCE_CODE, 136, 142), (0, 0))
INPUTS |= dict.fromkeys((30, 88, 103, 124, 139, 143, 146, 147, 148), (1, 1)) | {22: (1, 2)}
INPUTS |= dict.fromkeys((48, 49, 125, 144, 149), (2, 2)) | dict.fromkeys((3, 4, 9, 15, 132), (2, 3))
INPUTS |= dict.fromkeys((10, 37, 38, 60, 64, 65, 96, 102, 122, 123, 137, 138, 151, 153, 154, 155, 157, 203), (3, 3))
INPUTS |= dict.fromkeys((67, 141), (3, 4)) | dict.fromkeys((45, 68, 85), (4, 4)) | {27: (4, 5)}
INPUTS |= dict.fromkeys((24, 33, 35, 120, 205), (5, 5)) | {16: (5, 24), 44: (20, 24), 46: (12, 12), 52: (48, 48)}
INPUTS |= {121: (6, 6)}
_ONE_OUTPUT = (*_UNARY, *_BINARY, 2, 3, 4, 22, 33, 37, 38, 44, 45, 60, 64, 65, 67, 83, 106, 123, 151)
OUTPUTS: dict[int, tuple[int, int]] = dict.fromkeys(_ONE_OUTPUT, (1, 1)) | dict.fromkeys((48, 103), (2, 2))
OUTPUTS |= dict.fromkeys((CALL_ONCE_CODE, 138, 144), (0, 0)) | {9: (1, 2)}
# Positions of the optional inputs of each operator, e.g. biases and LSTM gates, keyed by operator code.
# The tensor index of an absent optional input is -1.
OPTIONAL_INPUTS: dict[int, range] = dict.fromkeys((3, 4, 9, 132), range(2, 3)) | dict.fromkeys(
    (27, 67, 141), range(3, 4)
)
OPTIONAL_INPUTS |= dict.fromkeys((16, 44, 46, 52), range(64)) | {CUSTOM_CODE: range(UNLIMITED)}
# Operators for control flow store the indices of other subgraphs in these fields of their options.
SUBGRAPH_FIELDS = {WHILE_CODE: (0, 1), IF_CODE: (0, 1), CALL_ONCE_CODE: (0,)}

# The options type of these operators does not have the same name as the operator.
OPTIONS_TYPES = {
    **dict.fromkeys(("AVERAGE_POOL_2D", "L2_POOL_2D", "MAX_POOL_2D"), "Pool2D"),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_ALL", "REDUCE_ANY", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"), "Reducer"),
    **dict.fromkeys(("MAXIMUM", "MINIMUM"), "MaximumMinimum"),
    "L2_NORMALIZATION": "L2Norm",
    "UNIDIRECTIONAL_SEQUENCE_RNN": "SequenceRNN",
}

# The Edge TPU compiler replaces all operators that it maps to the Edge TPU with this custom operator.
EDGETPU_CUSTOM = "CUSTOM edgetpu-custom-op"
# Custom operators that are built into the TFLite interpreter.
TFLITE_CUSTOM = {
    "CUSTOM TFLite_Detection_PostProcess",
    "CUSTOM Mfcc",
    "CUSTOM AudioSpectrogram",
    "CUSTOM NumericVerify",
}
RESHAPING = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
# The kind of an operator determines its color in graph drawings.
KINDS = {
    "weights": {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM"},
    "pooling": {"AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "SUM", "REDUCE_MAX", "RESIZE_BILINEAR"},
    "arithmetic": {"ADD", "MUL", "SUB", "DIV", "SOFTMAX", "LOGISTIC", "HARD_SWISH", "RELU", "RELU6", "TANH"},
    "shape": {"RESHAPE", "CONCATENATION", "PAD", "SPLIT", "TRANSPOSE", "STRIDED_SLICE", "SLICE", "SQUEEZE", "PACK"},
}
