"""Check the graph of a .tflite file: tensors, operators and subgraphs refer to each other as an interpreter expects.

Runtimes check only some of these references, and crash or hang if another reference is wrong. Call
:func:`edgerec.tflite.verifier.check_bounds` first, because this module assumes that every table is within the file.
The field numbers are those of the TFLite schema, version 3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Upper limits for operator codes and tensor types, and the tensor type of strings.
_MAX_OPERATOR, _MAX_TYPE, _STRING = 400, 40, 5
_WHILE, _CUSTOM = 119, 32
# Minimum and maximum number of inputs and outputs of each operator, by its code in the schema's BuiltinOperator.
# Operators that are not listed may have any number of inputs, and need at least one output.
_UNARY: tuple[int, ...] = (
    *(1, 5, 6, 8, 11, 12, 13, 14, 17, 19, 20, 21, 25, 26, 28, 43, 47, 50, 53, 59, 66, 73, 75, 76, 77, 80, 87, 92, 93),
    *(98, 101, 104, 108, 109, 110, 111, 113, 114, 116, 117, 133, 134, 135, 150, 152, 158, 159),
)
_BINARY: tuple[int, ...] = (
    *(0, 7, 18, 23, 34, 36, 39, 40, 41, 42, 54, 55, 56, 57, 58, 61, 62, 63, 69, 70, 71, 72, 74, 78, 79, 81, 82, 84, 86),
    *(89, 90, 91, 94, 95, 97, 99, 100, 105, 107, 112, 115, 126, 128, 130, 131, 140, 145, 156, 160, 161),
)
_MANY = 1 << 16
_INPUTS: dict[int, tuple[int, int]] = dict.fromkeys(_UNARY, (1, 1)) | dict.fromkeys(_BINARY, (2, 2))
_INPUTS |= {2: (1, _MANY), 3: (2, 3), 4: (2, 3), 9: (2, 3), 10: (3, 3), 15: (2, 3), 16: (5, 24), 22: (1, 2), 24: (5, 5)}
_INPUTS |= {27: (4, 5), 30: (1, 1), 33: (5, 5), 35: (5, 5), 37: (3, 3), 38: (3, 3), 44: (20, 24), 45: (4, 4)}
_INPUTS |= {46: (12, 12), 48: (2, 2), 49: (2, 2), 52: (48, 48), 60: (3, 3), 64: (3, 3), 65: (3, 3), 67: (3, 4)}
_INPUTS |= {68: (4, 4), 83: (1, _MANY), 85: (4, 4), 88: (1, 1), 96: (3, 3), 102: (3, 3), 103: (1, 1), 106: (1, _MANY)}
_INPUTS |= {118: (1, _MANY), 119: (1, _MANY), 120: (5, 5), 121: (6, 6), 122: (3, 3), 123: (3, 3), 124: (1, 1)}
_INPUTS |= {125: (2, 2), 129: (0, 0), 132: (2, 3), 136: (0, 0), 137: (3, 3), 138: (3, 3), 139: (1, 1), 141: (3, 4)}
_INPUTS |= {142: (0, 0), 143: (1, 1), 144: (2, 2), 146: (1, 1), 147: (1, 1), 148: (1, 1), 149: (2, 2), 151: (3, 3)}
_INPUTS |= {153: (3, 3), 154: (3, 3), 155: (3, 3), 157: (3, 3), 203: (3, 3), 205: (5, 5)}
_ONE_OUTPUT = (*_UNARY, *_BINARY, 2, 3, 4, 22, 33, 37, 38, 44, 45, 60, 64, 65, 67, 83, 106, 123, 151)
_OUTPUTS: dict[int, tuple[int, int]] = dict.fromkeys(_ONE_OUTPUT, (1, 1))
_OUTPUTS |= {9: (1, 2), 48: (2, 2), 103: (2, 2), 129: (0, 0), 138: (0, 0), 144: (0, 0)}
# Positions of optional inputs, which have the index -1 if they are absent, e.g. biases and the gates of LSTMs.
_ANY = range(64)
_OPTIONAL: dict[int, Any] = {3: (2,), 4: (2,), 9: (2,), 67: (3,), 132: (2,), 141: (3,), 27: (3,), 44: _ANY, 52: _ANY}
_OPTIONAL |= {16: _ANY, 46: _ANY, _CUSTOM: range(_MANY)}
# Option fields that contain the number of a subgraph, for the operators that call one: WHILE, IF and CALL_ONCE.
_CALLS: dict[int, tuple[int, ...]] = {_WHILE: (0, 1), 118: (0, 1), 129: (0,)}


@dataclass(frozen=True)
class _Tensor:
    constant: bool
    variable: bool
    empty: bool


class GraphCheck:
    """Checks the subgraphs of a .tflite file. All tables must lie within the file."""

    def __init__(self, data: bytes, fields: Callable[[int], dict[int, int]]) -> None:
        """Read the buffers and operator codes, which all subgraphs share.

        Args:
            data: content of the file.
            fields: function that returns the position of each field of a table, by field number.
        """
        self._data, self._fields = data, fields
        root = fields(self._offset(0))
        self._buffers = [self._has_data(table) for table in self._tables(root, 4)]
        self._codes = [self._code(fields(table)) for table in self._tables(root, 1)]
        self._subgraphs = [fields(table) for table in self._tables(root, 2)]

    def check(self) -> None:
        """Check all subgraphs; raise :class:`ValueError` that describes the first error."""
        if not self._subgraphs:
            raise ValueError("it has no subgraph")
        calls = [self._check_subgraph(number) for number in range(len(self._subgraphs))]
        self._check_calls(calls)

    def _check_subgraph(self, number: int) -> set[int]:
        """Check the tensors and operators of a subgraph; return the numbers of the subgraphs that it calls."""
        graph = self._subgraphs[number]
        tensors = [self._tensor(self._fields(table)) for table in self._tables(graph, 0)]
        inputs, outputs = self._numbers(graph, 1), self._numbers(graph, 2)
        for index in (*inputs, *outputs):
            if not 0 <= index < len(tensors):
                raise ValueError(
                    f"an input or output of a graph is tensor {index}, but the graph has {len(tensors)} tensors"
                )
        known = {index for index, tensor in enumerate(tensors) if tensor.constant or tensor.variable or tensor.empty}
        known |= set(inputs)
        written: set[int] = set()
        calls: set[int] = set()
        for position, table in enumerate(self._tables(graph, 3)):
            fields = self._fields(table)
            where = f"operator {position}"
            code_index = self._scalar("<I", fields.get(0), 0)
            if code_index >= len(self._codes):
                raise ValueError(f"{where} refers to operator code {code_index}, but the model has {len(self._codes)}")
            code, reads, writes = self._codes[code_index], self._numbers(fields, 1), self._numbers(fields, 2)
            self._check_numbers(where, code, reads, writes)
            self._check_reads(where, code, reads, len(tensors), known | written)
            for index in writes:
                if not 0 <= index < len(tensors) or tensors[index].constant or index in inputs or index in written:
                    raise ValueError(f"{where} writes tensor {index}, which does not exist or already has a value")
            for index in self._numbers(fields, 8):
                if not -1 <= index < len(tensors):
                    raise ValueError(f"{where} uses the intermediate tensor {index}, which does not exist")
            written |= set(writes)
            calls |= self._called(where, code, fields)
        for index in outputs:
            if index not in known | written:
                raise ValueError(f"the output tensor {index} of a graph is never computed")
        return calls

    def _check_numbers(self, where: str, code: int, reads: list[int], writes: list[int]) -> None:
        if not 0 <= code <= _MAX_OPERATOR:
            raise ValueError(f"{where} has the unknown operator code {code}")
        minimum, maximum = _INPUTS.get(code, (0, _MANY))
        if not minimum <= len(reads) <= maximum:
            raise ValueError(f"{where} has {len(reads)} inputs, expected {minimum} to {maximum}")
        minimum, maximum = _OUTPUTS.get(code, (1, _MANY))
        if not minimum <= len(writes) <= maximum:
            raise ValueError(f"{where} has {len(writes)} outputs, expected {minimum} to {maximum}")

    def _check_reads(self, where: str, code: int, reads: list[int], tensors: int, known: set[int]) -> None:
        for position, index in enumerate(reads):
            if index == -1 and position in _OPTIONAL.get(code, ()):
                continue
            if not 0 <= index < tensors:
                raise ValueError(f"input {position} of {where} is tensor {index}, which does not exist")
            if index not in known:
                raise ValueError(f"{where} reads tensor {index} before an operator computes it")

    def _called(self, where: str, code: int, fields: dict[int, int]) -> set[int]:
        if code not in _CALLS:
            return set()
        if 4 not in fields:
            raise ValueError(f"{where} calls a subgraph, but has no options that name the subgraph")
        options = self._fields(self._offset(fields[4]))
        called = {self._scalar("<i", options.get(field), 0) for field in _CALLS[code]}
        if not all(0 < index < len(self._subgraphs) for index in called):
            raise ValueError(
                f"{where} calls the subgraphs {sorted(called)}, but the model has {len(self._subgraphs)} subgraphs"
            )
        return called

    def _check_calls(self, calls: list[set[int]]) -> None:
        """Raise :class:`ValueError` if subgraphs call each other in a cycle."""
        finished: set[int] = set()
        while len(finished) < len(calls):
            ready = {number for number, called in enumerate(calls) if number not in finished and called <= finished}
            if not ready:
                raise ValueError("subgraphs call each other in a cycle")
            finished |= ready

    def _tensor(self, fields: dict[int, int]) -> _Tensor:
        buffer = self._scalar("<I", fields.get(2), 0)
        if buffer >= len(self._buffers):
            raise ValueError(f"a tensor refers to buffer {buffer}, but the model has {len(self._buffers)} buffers")
        kind = self._scalar("<b", fields.get(1), 0)
        shape = self._numbers(fields, 0)
        if not 0 <= kind <= _MAX_TYPE:
            raise ValueError(f"a tensor has the unknown type {kind}")
        if len(shape) > 8 or any(size < 0 for size in shape):
            raise ValueError(f"a tensor has the invalid shape {shape[:9]}")
        constant = self._buffers[buffer]
        return _Tensor(constant, bool(self._scalar("<b", fields.get(5), 0)), 0 in shape or kind == _STRING)

    def _has_data(self, table: int) -> bool:
        fields = self._fields(table)
        offset, size = self._scalar("<Q", fields.get(1), 0), self._scalar("<Q", fields.get(2), 0)
        if offset > 1 and offset + size > len(self._data):
            raise ValueError("a buffer is outside of the file")
        return (offset > 1 and size > 0) or (0 in fields and self._scalar("<I", self._offset(fields[0]), 0) > 0)

    def _code(self, fields: dict[int, int]) -> int:
        return max(self._scalar("<b", fields.get(0), 0), self._scalar("<i", fields.get(3), 0))

    def _scalar(self, form: str, at: int | None, default: int) -> int:
        return default if at is None else int(struct.unpack_from(form, self._data, at)[0])

    def _offset(self, at: int) -> int:
        return at + self._scalar("<I", at, 0)

    def _numbers(self, fields: dict[int, int], field: int) -> list[int]:
        if field not in fields:
            return []
        at = self._offset(fields[field])
        return list(struct.unpack_from(f"<{self._scalar('<I', at, 0)}i", self._data, at + 4))

    def _tables(self, fields: dict[int, int], field: int) -> list[int]:
        if field not in fields:
            return []
        begin = self._offset(fields[field]) + 4
        return [self._offset(begin + 4 * number) for number in range(self._scalar("<I", begin - 4, 0))]
