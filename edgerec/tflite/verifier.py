"""Check that all offsets in a .tflite file point into the file, and that the graph is valid.

LiteRT verifies the offsets of a model itself, but tflite-runtime 2.14 does not verify them and crashes. This module
verifies all offsets of the TFLite schema (version 3) in the binary format of FlatBuffers
(https://flatbuffers.dev/internals), using only the standard library.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from edgerec.errors import ModelError
from edgerec.tflite.graph_check import GraphCheck

# Estimated size of a table in the file in bytes. For a file without shared tables, the sum is less than the file size.
_TABLE_BYTES = 8
MAX_GROWTH, MIN_BYTES = 8, 1 << 20

# Kinds of the fields of each table, by field number: a string (_STRING), a vector of numbers (bytes per number),
# a table (its name) or a vector of tables (tuple with the name). Fields with a single number are not listed, because
# they are stored in the table itself, whose bounds are checked.
_STRING = "string"
_Kind = str | int | tuple[str]
_TABLES: dict[str, dict[int, _Kind]] = {
    "Model": {
        1: ("OperatorCode",),
        2: ("SubGraph",),
        3: _STRING,
        4: ("Buffer",),
        5: 4,
        6: ("Metadata",),
        7: ("SignatureDef",),
    },
    "OperatorCode": {1: _STRING},
    "SubGraph": {0: ("Tensor",), 1: 4, 2: 4, 3: ("Operator",), 4: _STRING},
    "Tensor": {0: 4, 3: _STRING, 4: "Quantization", 6: "Sparsity", 7: 4, 9: ("VariantSubType",)},
    "Quantization": {0: 4, 1: 4, 2: 4, 3: 8, 5: "Options"},
    "Sparsity": {0: 4, 1: 4, 2: ("Dimension",)},
    "Dimension": {3: "Indices", 5: "Indices"},
    "Indices": {0: 1},
    "VariantSubType": {0: 4},
    "Operator": {1: 4, 2: 4, 4: "Options", 5: 1, 7: 1, 8: 4, 12: "Options"},
    "Buffer": {0: 1},
    "Metadata": {0: _STRING},
    "SignatureDef": {0: ("TensorMap",), 1: ("TensorMap",), 2: _STRING, 3: _STRING},
    "TensorMap": {0: _STRING},
    "Options": {},
    "Shape": {0: 4},
    "Embeddings": {1: 4, 2: 4},
}
# Required fields of each table, by field number. Runtimes do not check whether these fields are present.
_REQUIRED = {"Model": (1, 2, 4), "SubGraph": (0, 1, 2, 3), "Operator": (1, 2)}
# Tables with the options of RESHAPE, SQUEEZE and CONCAT_EMBEDDINGS, by type of the options. The options of all
# other operators contain only numbers.
_OPTIONS = {17: "Shape", 30: "Shape", 3: "Embeddings"}


def check_bounds(model: bytes, where: str = "the model") -> None:
    """Raise :class:`ModelError` if an offset in a .tflite file points outside of it, or the graph is not valid."""
    walk = _Walk(model)
    try:
        size = walk.table(walk.number("<I", 0), "Model")
        if size > MAX_GROWTH * len(model) + MIN_BYTES:
            raise ValueError("its tables share so many parts that parsing it would take far more memory than the file")
        GraphCheck(model, walk.fields).check()
    except (struct.error, ValueError, IndexError) as error:
        raise ModelError(f"{where} is a damaged TFLite model ({error}): copy or convert it again") from None


class _Walk:
    """Visits each table of a file once, and sums the sizes of all tables. A shared table counts for each reference."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._sizes: dict[tuple[int, str], int] = {}

    def number(self, form: str, at: int) -> int:
        """Return the number at a position of the file; ``form`` is its format as in the module struct.

        Raises:
            struct.error, ValueError: the position is outside of the file.
        """
        if at < 0:  # struct would count from the end of the file
            raise ValueError("a table is outside of the file")
        return int(struct.unpack_from(form, self._data, at)[0])

    def table(self, at: int, name: str) -> int:
        """Check a table and all tables, vectors and strings that it refers to; return their total size in bytes."""
        if (at, name) in self._sizes:
            return self._sizes[at, name]
        self._sizes[at, name] = 0
        fields = self.fields(at)
        if any(field not in fields for field in _REQUIRED.get(name, ())):
            raise ValueError(f"a {name} table lacks a required field")
        size = _TABLE_BYTES
        for field, kind in self._kinds(name, fields).items():
            if field in fields:
                target = self._target(fields[field] + self.number("<I", fields[field]), kind)
                size += 0 if name == "Buffer" else target
        self._sizes[at, name] = size
        return size

    def _kinds(self, name: str, fields: Mapping[int, int]) -> dict[int, _Kind]:
        kinds = _TABLES[name]
        if name == "Operator" and 3 in fields:
            return kinds | {4: _OPTIONS.get(self._data[fields[3]], "Options")}
        return kinds

    def fields(self, at: int) -> dict[int, int]:
        """Return the position of each field of a table, by field number."""
        if at % 4:
            raise ValueError("a table is not aligned")
        vtable = at - self.number("<i", at)
        size, length = self.number("<H", vtable), self.number("<H", vtable + 2)
        if size < 4 or size % 2 or length < 4 or at + length > len(self._data):
            raise ValueError("a table is outside of the file")
        positions = {}
        for field in range((size - 4) // 2):
            if offset := self.number("<H", vtable + 4 + 2 * field):
                if not 4 <= offset < length:
                    raise ValueError("a field is outside of its table")
                positions[field] = at + offset
        return positions

    def _target(self, at: int, kind: _Kind) -> int:
        """Check the table, vector or string at a position, and return its size in bytes."""
        if isinstance(kind, str) and kind != _STRING:
            return self.table(at, kind)
        width = 4 if isinstance(kind, tuple) else kind if isinstance(kind, int) else 1
        count, begin = self.number("<I", at), at + 4
        end = begin + count * width
        if begin % width or end + (kind == _STRING) > len(self._data):
            raise ValueError("a vector or string is outside of the file")
        if kind == _STRING and self._data[end]:
            raise ValueError("a string does not end with a zero byte")
        if isinstance(kind, tuple):
            return sum(self.table(offset + self.number("<I", offset), kind[0]) for offset in range(begin, end, 4))
        return end - begin
