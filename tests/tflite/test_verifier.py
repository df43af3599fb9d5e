"""A .tflite file that points out of itself is refused before any runtime follows it."""

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
    """Where the fields of the table at ``at`` lie."""
    places = at - struct.unpack_from("<i", data, at)[0]
    size = struct.unpack_from("<H", data, places)[0]
    offsets = struct.unpack_from(f"<{(size - 4) // 2}H", data, places + 4)
    return {field: at + offset for field, offset in enumerate(offsets) if offset}


def follow(data: bytes | bytearray, at: int) -> int:
    return at + struct.unpack_from("<I", data, at)[0]


def first_of(data: bytes | bytearray, at: int) -> int:
    """The first table of the vector that the field there points to."""
    return follow(data, follow(data, at) + 4)


def test_real_models_pass(model, real_data):
    check_bounds(model)
    for path in sorted((real_data / "edgetpu").glob("*.tflite")):
        check_bounds(path.read_bytes(), path.name)


def test_what_is_cut_off_is_refused(model):
    rng = random.Random(0)
    root = table(model, follow(model, 0))
    # Most of a file is weights; what was written first, and is pointed to, stands at its end.
    for cut in [0, 3, 8, 40, *(rng.randrange(len(model) - 8) for _ in range(200))]:
        with pytest.raises(ModelError, match="damaged"):
            check_bounds(model[:cut], "x.tflite")
    assert set(root) >= {1, 2, 4}


@pytest.mark.parametrize("offset", [0x7FFFFFFF, 0xFFFFFFFF, 0x80000000])
@pytest.mark.parametrize("field", [1, 2, 3, 4])
def test_an_offset_that_leads_out_is_refused(model, field, offset):
    data = bytearray(model)
    struct.pack_into("<I", data, table(data, follow(data, 0))[field], offset)
    with pytest.raises(ModelError, match="damaged"):
        check_bounds(bytes(data))


def test_a_table_in_front_of_the_file_is_refused(model):
    """Python would take a negative place for one counted from the end."""
    data = bytearray(model)
    at = follow(data, 0)
    struct.pack_into("<i", data, at, at + 40)
    with pytest.raises(ModelError, match="outside"):
        check_bounds(bytes(data))


def test_a_list_that_is_too_long_is_refused(model):
    for count in (len(model), 0xFFFFFFFF):
        data = bytearray(model)
        graph = first_of(data, table(data, follow(data, 0))[2])
        struct.pack_into("<I", data, follow(data, table(data, graph)[1]), count)
        with pytest.raises(ModelError, match="list"):
            check_bounds(bytes(data))


def test_a_needed_part_that_is_missing_is_refused(model):
    data = bytearray(model)
    graph = first_of(data, table(data, follow(data, 0))[2])
    places = graph - struct.unpack_from("<i", data, graph)[0]
    struct.pack_into("<H", data, places + 4 + 2 * 3, 0)  # the operators
    with pytest.raises(ModelError, match="a SubGraph lacks a part"):
        check_bounds(bytes(data))


def test_nothing_but_a_model_error_ever(model):
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
    """A small file whose lists all name one table, level by level, must not take exponential time or memory."""
    data = bytearray(model)
    tensors = follow(data, table(data, first_of(data, table(data, follow(data, 0))[2]))[0])
    count, shared = struct.unpack_from("<I", data, tensors)[0], follow(data, tensors + 4)
    for place in range(tensors + 4, tensors + 4 + 4 * count, 4):
        struct.pack_into("<I", data, place, shared - place)
    with pytest.raises(ModelError, match=r"damaged TFLite model \("):
        check_bounds(bytes(data))
    assert count > 10
    subgraphs = table(data, follow(data, 0))[2]
    graph = first_of(data, subgraphs)
    # A list of 300,000 subgraphs at the end of the file, which are all the same.
    start = len(data) + -len(data) % 4
    data += bytes(start - len(data)) + struct.pack("<I", 300_000)
    places = range(start + 4, start + 4 + 4 * 300_000, 4)
    data += b"".join(struct.pack("<I", (graph - place) & 0xFFFFFFFF) for place in places)
    struct.pack_into("<I", data, subgraphs, start - subgraphs)
    with pytest.raises(ModelError, match="damaged"):
        check_bounds(bytes(data))
