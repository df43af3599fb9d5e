"""Check the references between a .tflite file's tensors, operators and subgraphs.

Runtimes check only some of these references, and crash or hang if another one is wrong. Call
:func:`edgerec.tflite.verifier.check_bounds` first, because this module assumes that every table is within the file.
The field numbers are those of the TFLite schema, version 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from edgerec.tflite.operators import INPUTS, MAX_CODE, OPTIONAL_INPUTS, OUTPUTS, SUBGRAPH_FIELDS, UNLIMITED
from edgerec.tflite.tables import Table

# Values of the enum TensorType in the TFLite schema.
_MAX_TENSOR_TYPE, _STRING_TENSOR_TYPE = 40, 5


@dataclass(frozen=True)
class _Tensor:
    constant: bool
    variable: bool
    empty: bool


class GraphCheck:
    """Checks the tensors and operators in all subgraphs of a .tflite file."""

    def __init__(self, data: bytes) -> None:
        """Read the buffers and operator codes of a .tflite file whose tables all lie within the file."""
        self._data = data
        root = Table.root(data)
        self._buffers = [self._has_data(buffer) for buffer in root.tables(4)]
        self._codes = [max(code.number(0, "<b"), code.number(3, "<i")) for code in root.tables(1)]
        self._subgraphs = root.tables(2)

    def check(self) -> None:
        """Check all subgraphs. Raise :class:`ValueError` for the first error."""
        if not self._subgraphs:
            raise ValueError("the model has no subgraph")
        self._check_calls([self._check_subgraph(subgraph) for subgraph in self._subgraphs])

    def _check_subgraph(self, subgraph: Table) -> set[int]:
        """Check the tensors and operators of a subgraph, and return the indices of the subgraphs that it calls."""
        tensors = [self._tensor(table) for table in subgraph.tables(0)]
        inputs, outputs = set(subgraph.numbers(1)), subgraph.numbers(2)
        for index in (*inputs, *outputs):
            if not 0 <= index < len(tensors):
                raise ValueError(
                    f"an input or output of a graph refers to tensor {index}, but the graph has only {len(tensors)} "
                    "tensors"
                )
        known = {index for index, tensor in enumerate(tensors) if tensor.constant or tensor.variable or tensor.empty}
        known |= inputs
        written: set[int] = set()
        calls: set[int] = set()
        for position, operator in enumerate(subgraph.tables(3)):
            where = f"operator {position}"
            code = self._code(where, operator)
            reads, writes = operator.numbers(1), operator.numbers(2)
            _check_counts(where, code, reads, writes)
            _check_reads(where, code, reads, len(tensors), known)
            for index in writes:
                if not 0 <= index < len(tensors) or tensors[index].constant or index in inputs or index in written:
                    raise ValueError(f"{where} writes tensor {index}, which does not exist or already has a value")
            for index in operator.numbers(8):
                if not -1 <= index < len(tensors):
                    raise ValueError(f"{where} uses the intermediate tensor {index}, which does not exist")
            written |= set(writes)
            known |= set(writes)
            calls |= self._called(where, code, operator)
        for index in outputs:
            if index not in known:
                raise ValueError(f"the output tensor {index} of a graph is never computed")
        return calls

    def _code(self, where: str, operator: Table) -> int:
        index = operator.number(0)
        if index >= len(self._codes):
            raise ValueError(
                f"{where} refers to operator code {index}, but the model has only {len(self._codes)} codes"
            )
        if not 0 <= self._codes[index] <= MAX_CODE:
            raise ValueError(f"{where} has the unknown operator code {self._codes[index]}")
        return self._codes[index]

    def _called(self, where: str, code: int, operator: Table) -> set[int]:
        if code not in SUBGRAPH_FIELDS:
            return set()
        options = operator.table(4)
        if options is None:
            raise ValueError(f"{where} calls a subgraph, but its options do not specify the subgraph")
        called = {options.number(field, "<i") for field in SUBGRAPH_FIELDS[code]}
        if not all(0 < index < len(self._subgraphs) for index in called):
            raise ValueError(
                f"{where} calls the subgraphs {sorted(called)}, but the model has only {len(self._subgraphs)} subgraphs"
            )
        return called

    def _check_calls(self, calls: list[set[int]]) -> None:
        try:
            TopologicalSorter(dict(enumerate(calls))).prepare()
        except CycleError:
            raise ValueError("subgraphs call each other in a cycle") from None

    def _tensor(self, table: Table) -> _Tensor:
        buffer, kind, shape = table.number(2), table.number(1, "<b"), table.numbers(0)
        if buffer >= len(self._buffers):
            raise ValueError(f"a tensor refers to buffer {buffer}, but the model has only {len(self._buffers)} buffers")
        if not 0 <= kind <= _MAX_TENSOR_TYPE:
            raise ValueError(f"a tensor has the unknown type {kind}")
        if len(shape) > 8 or any(size < 0 for size in shape):
            raise ValueError(f"a tensor has the invalid shape {list(shape[:9])}")
        return _Tensor(self._buffers[buffer], bool(table.number(5, "<b")), 0 in shape or kind == _STRING_TENSOR_TYPE)

    def _has_data(self, buffer: Table) -> bool:
        # Large .tflite files store the data of buffers after all tables.
        offset, size = buffer.number(1, "<Q"), buffer.number(2, "<Q")
        if offset > 1 and offset + size > len(self._data):
            raise ValueError("a buffer extends beyond the end of the file")
        return (offset > 1 and size > 0) or len(buffer.vector(0, 1)) > 0


def _check_counts(where: str, code: int, reads: tuple[int, ...], writes: tuple[int, ...]) -> None:
    minimum, maximum = INPUTS.get(code, (0, UNLIMITED))
    if not minimum <= len(reads) <= maximum:
        raise ValueError(f"{where} has {len(reads)} inputs, expected {minimum} to {maximum}")
    minimum, maximum = OUTPUTS.get(code, (1, UNLIMITED))
    if not minimum <= len(writes) <= maximum:
        raise ValueError(f"{where} has {len(writes)} outputs, expected {minimum} to {maximum}")


def _check_reads(where: str, code: int, reads: tuple[int, ...], tensors: int, known: set[int]) -> None:
    for position, index in enumerate(reads):
        if index == -1 and position in OPTIONAL_INPUTS.get(code, ()):
            continue
        if not 0 <= index < tensors:
            raise ValueError(f"input {position} of {where} refers to tensor {index}, which does not exist")
        if index not in known:
            raise ValueError(f"{where} reads tensor {index} before an operator computes it")
