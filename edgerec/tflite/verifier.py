"""Check that all offsets in a .tflite file point into the file, and that its graph is valid.

LiteRT verifies a model's offsets, but tflite-runtime 2.14 crashes if one is wrong. FlatBuffers has a verifier only for
C++, so this module checks all tables in the TFLite schema (version 3) with the standard library.
"""

from __future__ import annotations

import struct

from edgerec.errors import ModelError
from edgerec.tflite.graph_check import GraphCheck
from edgerec.tflite.tables import Table, read_number

_MIN_TABLE_BYTES = 8
# The total size of all tables is limited to MAX_GROWTH * file size + MIN_BYTES.
MAX_GROWTH, MIN_BYTES = 8, 1 << 20

# _TABLES maps the field numbers of each table to field types.
# A field type is the type of a table, a tuple with the type of a vector's tables, or the size of a vector's numbers.
# _TABLES omits scalar fields, because they are stored in the table itself.
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
# Field numbers of required fields, whose presence runtimes do not check.
_REQUIRED = {"Model": (1, 2, 4), "SubGraph": (0, 1, 2, 3), "Operator": (1, 2)}
# Only the options of RESHAPE, SQUEEZE and CONCAT_EMBEDDINGS have non-scalar fields.
_OPTIONS = {17: "Shape", 30: "Shape", 3: "Embeddings"}


def check_bounds(model: bytes, where: str = "the model") -> None:
    """Raise :class:`ModelError` if an offset in a .tflite file points outside the file, or its graph is invalid."""
    try:
        size = _Walk(model).table(read_number(model, "<I", 0), "Model")
        if size > MAX_GROWTH * len(model) + MIN_BYTES:
            raise ValueError("the parsed model does not fit into memory, because too many tables share the same data")
        GraphCheck(model).check()
    except (struct.error, ValueError, IndexError) as error:
        raise ModelError(f"{where} is a damaged TFLite model ({error}): copy or convert it again") from None


class _Walk:
    """Checks all tables in a file and computes their total size. A shared table counts once per reference."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._sizes: dict[tuple[int, str], int] = {}

    def table(self, at: int, name: str) -> int:
        """Check a table and all tables that it references, and return the total size in bytes."""
        if (at, name) in self._sizes:
            return self._sizes[at, name]
        self._sizes[at, name] = 0
        table = Table(self._data, at)
        if any(field not in table.fields for field in _REQUIRED.get(name, ())):
            raise ValueError(f"a {name} table lacks a required field")
        kinds = _TABLES[name]
        if name == "Operator" and 3 in table.fields:
            kinds = kinds | {4: _OPTIONS.get(table.number(3, "<B"), "Options")}
        size = _MIN_TABLE_BYTES
        for field, kind in kinds.items():
            if field in table.fields:
                content = self._content(table, field, kind)
                size += 0 if name == "Buffer" else content
        self._sizes[at, name] = size
        return size

    def _content(self, table: Table, field: int, kind: _Kind) -> int:
        """Check the table, vector or string referenced by a field, and return its size in bytes."""
        if isinstance(kind, tuple):
            items = table.vector(field, 4)
            return sum(self.table(at + read_number(self._data, "<I", at), kind[0]) for at in items)
        if isinstance(kind, str) and kind != _STRING:
            return self.table(table.target(field), kind)
        items = table.vector(field, kind if isinstance(kind, int) else 1)
        if kind == _STRING and self._data[items.stop : items.stop + 1] != b"\0":
            raise ValueError("a string is not null-terminated")
        return items.stop - items.start
