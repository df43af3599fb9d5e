"""A .tflite file with an offset that points outside the file is refused before a runtime reads it."""

from __future__ import annotations

import random
import struct

import pytest

from edgerec.errors import ModelError
from edgerec.tflite.verifier import check_bounds


@pytest.fixture(scope="module")
def model(bundle) -> bytes:
    return (bundle / "model.tflite").read_bytes()


def table(data: bytes | bytearray, at: int) -> dict[int, int]:
    """Return the position of each field of the table at position ``at``, by field number."""
    vtable = at - struct.unpack_from("<i", data, at)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    offsets = struct.unpack_from(f"<{(size - 4) // 2}H", data, vtable + 4)
    return {field: at + offset for field, offset in enumerate(offsets) if offset}


def follow(data: bytes | bytearray, at: int) -> int:
    return at + struct.unpack_from("<I", data, at)[0]


def first_of(data: bytes | bytearray, at: int) -> int:
    """Return the position of the first table of the vector to which the field at position ``at`` refers."""
    return follow(data, follow(data, at) + 4)


def test_verifier_accepts_real_models(model, real_data):
    check_bounds(model)
    for path in sorted((real_data / "edgetpu").glob("*.tflite")):
        check_bounds(path.read_bytes(), path.name)


def test_truncated_model_is_refused(model):
    rng = random.Random(0)
    root = table(model, follow(model, 0))
    # Flatbuffers are written from the end to the start, so that a truncated file always lacks some tables.
    for cut in [0, 3, 8, 40, *(rng.randrange(len(model) - 8) for _ in range(200))]:
        with pytest.raises(ModelError, match="damaged"):
            check_bounds(model[:cut], "x.tflite")
    assert set(root) >= {1, 2, 4}


@pytest.mark.parametrize("offset", [0x7FFFFFFF, 0xFFFFFFFF, 0x80000000])
@pytest.mark.parametrize("field", [1, 2, 3, 4])
def test_offset_outside_the_file_is_refused(model, field, offset):
    data = bytearray(model)
    struct.pack_into("<I", data, table(data, follow(data, 0))[field], offset)
    with pytest.raises(ModelError, match="damaged"):
        check_bounds(bytes(data))


def test_table_before_the_start_of_the_file_is_refused(model):
    """Python would interpret a negative position as counted from the end of the file."""
    data = bytearray(model)
    at = follow(data, 0)
    struct.pack_into("<i", data, at, at + 40)
    with pytest.raises(ModelError, match="a table starts before the beginning of the file"):
        check_bounds(bytes(data))


def test_vector_that_is_too_long_is_refused(model):
    for count in (len(model), 0xFFFFFFFF):
        data = bytearray(model)
        graph = first_of(data, table(data, follow(data, 0))[2])
        struct.pack_into("<I", data, follow(data, table(data, graph)[1]), count)
        with pytest.raises(ModelError, match="a vector or string extends beyond the end of the file"):
            check_bounds(bytes(data))


def test_missing_required_field_is_refused(model):
    data = bytearray(model)
    graph = first_of(data, table(data, follow(data, 0))[2])
    vtable = graph - struct.unpack_from("<i", data, graph)[0]
    struct.pack_into("<H", data, vtable + 4 + 2 * 3, 0)  # the operators
    with pytest.raises(ModelError, match="a SubGraph table lacks a required field"):
        check_bounds(bytes(data))


def test_random_changes_cause_only_model_errors(model):
    rng = random.Random(1)
    accepted = 0
    for _ in range(1000):
        data = bytearray(model)
        for _ in range(rng.choice((1, 3, 10))):
            low = rng.choice((0, 0, max(0, len(data) - 20_000)))
            data[rng.randrange(low, min(len(data), low + 20_000))] = rng.choice((0, 1, 127, 128, 255))
        try:
            check_bounds(bytes(data))
            accepted += 1
        except ModelError:
            pass
    assert 0 < accepted < 1000


def test_tables_that_are_shared_are_read_only_once(model):
    """The time and memory to read a small file must not be exponential if many vectors refer to the same tables."""
    data = bytearray(model)
    tensors = follow(data, table(data, first_of(data, table(data, follow(data, 0))[2]))[0])
    count, shared = struct.unpack_from("<I", data, tensors)[0], follow(data, tensors + 4)
    for entry in range(tensors + 4, tensors + 4 + 4 * count, 4):
        struct.pack_into("<I", data, entry, shared - entry)
    with pytest.raises(ModelError, match=r"damaged TFLite model \("):
        check_bounds(bytes(data))
    assert count > 10
    subgraphs = table(data, follow(data, 0))[2]
    graph = first_of(data, subgraphs)
    # Append a vector of 300,000 subgraphs that are all the same table.
    start = len(data) + -len(data) % 4
    data += bytes(start - len(data)) + struct.pack("<I", 300_000)
    entries = range(start + 4, start + 4 + 4 * 300_000, 4)
    data += b"".join(struct.pack("<I", (graph - entry) & 0xFFFFFFFF) for entry in entries)
    struct.pack_into("<I", data, subgraphs, start - subgraphs)
    with pytest.raises(ModelError, match="damaged"):
        check_bounds(bytes(data))
