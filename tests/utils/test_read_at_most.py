"""Reading a file with a size limit."""

from __future__ import annotations

import os
import tracemalloc

import pytest

from edgerec.utils.atomic import read_at_most


def test_memory_depends_on_the_size_of_the_file_and_not_on_the_limit(tmp_path):
    path = tmp_path / "small"
    path.write_bytes(b"content")
    tracemalloc.start()
    try:
        assert read_at_most(path, 1 << 30) == b"content"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_file_of_exactly_the_limit_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    assert read_at_most(path, 1000) == bytes(1000)
    with pytest.raises(OSError, match="larger than"):
        read_at_most(path, 999)


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has /dev/zero")
def test_endless_file_is_refused(tmp_path):
    (tmp_path / "endless").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="larger than"):
        read_at_most(tmp_path / "endless", 3 << 20)
