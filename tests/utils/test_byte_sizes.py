"""All options that accept a size read it in the same way."""

from __future__ import annotations

import pytest

from edgerec.data.cache_limit import limit
from edgerec.utils.byte_sizes import disk_space, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000),
        ("2 GB", 2 * 10**9),
        ("1.5k", 1500),
        ("10MiB", 10 << 20),
        (" 1.5 TiB ", 3 << 39),
        ("5G", 5 * 10**9),
        ("7", 7),
        ("0", 0),
    ],
)
def test_sizes_with_units_are_converted_to_bytes(text, size, monkeypatch):
    assert parse_size(text) == size
    monkeypatch.setenv("EDGEREC_CACHE_LIMIT", text)
    assert limit() == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "5 parsecs", "1e9", "5iB", "१०MB"])
def test_text_that_is_not_a_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a valid size"):
        parse_size(text)


def test_disk_space_is_a_multiple_of_the_block_size():
    assert [disk_space(size) for size in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
