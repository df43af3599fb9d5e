"""A bundle's model as C++ sources for TensorFlow Lite Micro: no file system is needed, and nothing is copied."""

from __future__ import annotations

import textwrap
from math import prod

from edgerec._version import __version__
from edgerec.contract.manifest import Manifest
from edgerec.contract.tensors import pixel_table
from edgerec.tflite.flatbuffer import read_graph
from edgerec.tflite.memory import microcontroller_bytes
from edgerec.utils.atomic import sha256

_PER_LINE = 16
# Where MicroMutableOpResolver spells an operator otherwise than its name in the schema.
_SPELLED = {
    "BATCH_MATMUL": "BatchMatMul",
    "CUMSUM": "CumSum",
    "PADV2": "PadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}
_C_TYPES = {"uint8": "std::uint8_t", "int8": "std::int8_t", "float32": "float"}
_FIELDS = {"uint8": "uint8", "int8": "int8", "float32": "f"}


def sources(content: bytes, manifest: Manifest) -> dict[str, bytes]:
    """``model.h``, ``model.cc`` and ``model_operators.h``.

    The first two need nothing but a C++11 compiler; the third lists the operators for TFLite Micro's resolver.
    """
    made = f"// Made by edgerec {__version__} of {_comment(manifest.name)}; SHA-256 {sha256(content)}.\n"
    files = {
        "model.h": made + _header(content, manifest),
        "model.cc": made + _definitions(content, manifest),
        "model_operators.h": made + _operators(content),
    }
    return {name: text.encode() for name, text in files.items()}


def usage(content: bytes, manifest: Manifest) -> list[str]:
    """The part of the bundle's README that says how a firmware takes them."""
    given, answer = _FIELDS[manifest.input.dtype], _FIELDS[manifest.output.dtype]
    stored = "edgerec::kStored[pixels[i]]" if _table(manifest) else "pixels[i]"
    arena = microcontroller_bytes(read_graph(content))
    return [
        "Copy `model.h`, `model.cc` and `model_operators.h` into the firmware, which has TensorFlow Lite Micro:",
        "",
        "```cpp",
        '#include "model.h"',
        '#include "model_operators.h"',
        '#include "tensorflow/lite/micro/micro_interpreter.h"',
        '#include "tensorflow/lite/schema/schema_generated.h"',
        "",
        "alignas(16) static uint8_t arena[edgerec::kArenaBytes];",
        "",
        "int classify(const uint8_t* pixels) {  // rows of pixels, kInputHeight of kInputWidth with kInputChannels",
        "  static edgerec::ModelOperators operators;",
        "  static const TfLiteStatus added = edgerec::AddModelOperators(operators);",
        "  static tflite::MicroInterpreter interpreter(",
        "      tflite::GetModel(edgerec::kModel), operators, arena, sizeof(arena));",
        "  static const TfLiteStatus ready = interpreter.AllocateTensors();",
        "  if (added != kTfLiteOk || ready != kTfLiteOk) return -1;",
        "  for (size_t i = 0; i < edgerec::kInputSize; ++i) {",
        f"    interpreter.input(0)->data.{given}[i] = {stored};",
        "  }",
        "  if (interpreter.Invoke() != kTfLiteOk) return -1;",
        f"  const auto* scores = interpreter.output(0)->data.{answer};",
        "  int best = 0;",
        "  for (int i = 1; i < edgerec::kLabelCount; ++i) {",
        "    if (scores[i] > scores[best]) best = i;",
        "  }",
        "  return best;  // its name is edgerec::kLabels[best]",
        "}",
        "```",
        "",
        f"The model takes {len(content):,} bytes of flash, the arena {arena:,} bytes of RAM by estimate:",
        "`interpreter.arena_used_bytes()` tells what it really took.",
        "",
    ]


def _header(content: bytes, manifest: Manifest) -> str:
    _, height, width, channels = manifest.input.shape
    arena = microcontroller_bytes(read_graph(content))
    given = _C_TYPES[manifest.input.dtype]
    answer = _C_TYPES[manifest.output.dtype]
    stored = (
        "// What is stored for a pixel of 0 to 255.\nextern const Input kStored[256];\n" if _table(manifest) else ""
    )
    return f"""#ifndef EDGEREC_MODEL_H_
#define EDGEREC_MODEL_H_

#include <cstddef>
#include <cstdint>

namespace edgerec {{

// The .tflite file, at an address that is a multiple of 16.
extern const unsigned char kModel[];
constexpr std::size_t kModelBytes = {len(content)};

// Arena for the interpreter, by estimate and with a margin.
constexpr std::size_t kArenaBytes = {arena};

// Input: {"RGB" if channels == 3 else "grey"}, row by row{": the pixels themselves, 0 to 255" if not stored else ""}.
using Input = {given};
constexpr int kInputHeight = {height};
constexpr int kInputWidth = {width};
constexpr int kInputChannels = {channels};
constexpr std::size_t kInputSize = {prod(manifest.input.shape)};
constexpr float kInputScale = {_float(manifest.input.scale)};
constexpr int kInputZeroPoint = {manifest.input.zero_point};
{stored}
// Output: a score for each label, (stored - zero point) * scale.
using Output = {answer};
constexpr float kOutputScale = {_float(manifest.output.scale)};
constexpr int kOutputZeroPoint = {manifest.output.zero_point};

constexpr int kLabelCount = {len(manifest.labels)};
extern const char* const kLabels[kLabelCount];

}}  // namespace edgerec

#endif  // EDGEREC_MODEL_H_
"""


def _definitions(content: bytes, manifest: Manifest) -> str:
    rows = (content[at : at + _PER_LINE] for at in range(0, len(content), _PER_LINE))
    array = "\n".join("    " + " ".join(f"0x{byte:02x}," for byte in row) for row in rows)
    labels = "\n".join(f"    {_literal(label)}," for label in manifest.labels)
    table = "\n".join(textwrap.wrap(", ".join(_table(manifest)), 112, initial_indent="    ", subsequent_indent="    "))
    stored = f"\nconst Input kStored[256] = {{\n{table},\n}};\n" if table else ""
    return f"""#include "model.h"

namespace edgerec {{

alignas(16) const unsigned char kModel[kModelBytes] = {{
{array}
}};
{stored}
const char* const kLabels[kLabelCount] = {{
{labels}
}};

}}  // namespace edgerec
"""


def _operators(content: bytes) -> str:
    names = sorted({operator.name for operator in read_graph(content).operators})
    added = "\n".join(f"  if (operators.Add{spelled(name)}() != kTfLiteOk) return kTfLiteError;" for name in names)
    return f"""#ifndef EDGEREC_MODEL_OPERATORS_H_
#define EDGEREC_MODEL_OPERATORS_H_

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

namespace edgerec {{

// The {len(names)} operators that the model needs, and no others: the rest is not linked.
using ModelOperators = tflite::MicroMutableOpResolver<{len(names)}>;

inline TfLiteStatus AddModelOperators(ModelOperators& operators) {{
{added}
  return kTfLiteOk;
}}

}}  // namespace edgerec

#endif  // EDGEREC_MODEL_OPERATORS_H_
"""


def spelled(operator: str) -> str:
    """An operator's name as ``MicroMutableOpResolver::Add…`` has it: ``CONV_2D`` is ``Conv2D``."""
    parts = operator.split("_")
    return _SPELLED.get(operator) or "".join(part if part == "2D" else part.capitalize() for part in parts)


def _table(manifest: Manifest) -> list[str]:
    """What is stored for each pixel of 0 to 255, as C++ has it; none where the pixel itself is."""
    table = pixel_table(manifest.normalise, manifest.input)
    if table is None:
        return []
    return [_float(float(n)) if manifest.input.dtype == "float32" else str(int(n)) for n in table]


def _float(number: float) -> str:
    text = f"{number:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _literal(text: str) -> str:
    """A string of C++ with nothing that a compiler could read otherwise."""
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return f'"{"".join(plain)}"'


def _comment(text: str) -> str:
    """One line, which a backslash at its end does not continue."""
    return "".join(c if c.isprintable() and c != "\\" else "_" for c in text)
