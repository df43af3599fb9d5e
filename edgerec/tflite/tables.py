"""Read the tables of a FlatBuffers file, and check that they lie within the file.

The ``flatbuffers`` package can also read tables, but does not check their bounds, and tflite-runtime does not install
it. The binary format is described on https://flatbuffers.dev/internals.
"""

from __future__ import annotations

import struct


def read_number(data: bytes, form: str, at: int) -> int:
    """Unpack a number from ``data`` at offset ``at``, using the :mod:`struct` format ``form``.

    Raises:
        struct.error, ValueError: the number is not inside ``data``.
    """
    if at < 0:  # struct interprets negative offsets as relative to the end.
        raise ValueError("a table starts before the beginning of the file")
    return int(struct.unpack_from(form, data, at)[0])


class Table:
    """A table in a FlatBuffers file, with fields identified by their position in the schema.

    All methods raise :class:`ValueError` or :class:`struct.error` if the data that they read is not inside the file.

    Attributes:
        data: content of the file.
        fields: file offset of each field in the table, keyed by field number.
    """

    def __init__(self, data: bytes, at: int) -> None:
        """Read the field offsets of a table. ``at`` is the offset of the table in the file."""
        if at % 4:
            raise ValueError("a table is not aligned")
        vtable = at - read_number(data, "<i", at)
        size, length = read_number(data, "<H", vtable), read_number(data, "<H", vtable + 2)
        if size < 4 or size % 2 or length < 4 or at + length > len(data):
            raise ValueError("a table extends beyond the end of the file")
        self.data = data
        self.fields: dict[int, int] = {}
        for field, offset in enumerate(struct.unpack_from(f"<{(size - 4) // 2}H", data, vtable + 4)):
            if offset and not 4 <= offset < length:
                raise ValueError("a field lies outside its table")
            if offset:
                self.fields[field] = at + offset

    @classmethod
    def root(cls, data: bytes) -> Table:
        """Return a FlatBuffers file's root table."""
        return cls(data, read_number(data, "<I", 0))

    def number(self, field: int, form: str = "<I", default: int = 0) -> int:
        """Return a numeric field's value, or ``default`` if the field is absent."""
        return read_number(self.data, form, self.fields[field]) if field in self.fields else default

    def target(self, field: int) -> int:
        """Return the offset of the table, vector or string referenced by a field."""
        return self.fields[field] + read_number(self.data, "<I", self.fields[field])

    def vector(self, field: int, width: int, max_items: int | None = None) -> range:
        """Return the offsets of a vector's or string's items, or an empty range if the field is absent.

        Args:
            field: field number.
            width: size of an item in bytes.
            max_items: maximum number of items, or None for no limit.
        """
        if field not in self.fields:
            return range(0)
        at = self.target(field)
        count, begin = read_number(self.data, "<I", at), at + 4
        if max_items is not None and count > max_items:
            raise ValueError(f"a vector or string has {count:,} items, but the limit is {max_items:,}")
        if begin % width or begin + count * width > len(self.data):
            raise ValueError("a vector or string extends beyond the end of the file")
        return range(begin, begin + count * width, width)

    def numbers(self, field: int, form: str = "i", max_items: int | None = None) -> tuple[int, ...]:
        """Return a vector of 4-byte numbers. ``form`` is the :mod:`struct` format character of an item."""
        items = self.vector(field, 4, max_items)
        return struct.unpack_from(f"<{len(items)}{form}", self.data, items.start)

    def content(self, field: int, max_bytes: int | None = None) -> bytes:
        """Return a string's or byte vector's bytes, or empty bytes if the field is absent."""
        items = self.vector(field, 1, max_bytes)
        return self.data[items.start : items.stop]

    def table(self, field: int) -> Table | None:
        """Return the table referenced by a field, or None if the field is absent."""
        return Table(self.data, self.target(field)) if field in self.fields else None

    def tables(self, field: int, max_items: int | None = None) -> list[Table]:
        """Return the tables in a vector field, or an empty list if the field is absent."""
        items = self.vector(field, 4, max_items)
        return [Table(self.data, at + read_number(self.data, "<I", at)) for at in items]
