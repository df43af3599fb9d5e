"""Read and write TFLite metadata: labels and normalization that are stored in a .tflite file for other tools.

The format is metadata_schema.fbs of tflite-support, version 1.0. The metadata is a separate flatbuffer, which is stored
in a buffer of the model with the name TFLITE_METADATA. The label file is in an uncompressed zip archive, appended
to the model. Interpreters ignore both.
"""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgerec.contract.tensors import (
    NORMALISE_CHOICES,
    AnyNormalise,
    ChannelNormalise,
    Normalise,
    TensorSpec,
    identity_normalise,
)
from edgerec.errors import ModelError
from edgerec.tflite.flatbuffer import pack, parse
from edgerec.tflite.schema import tflite_schema
from edgerec.utils.optional import require

LABEL_FILE = "labels.txt"
# Limits for damaged files, which could otherwise make the reader use too much memory.
MAX_LABEL_BYTES = 1 << 24
MAX_TEXT_BYTES = 1 << 16
MAX_ITEMS = 10_000
MAX_BUFFERS = 1_000_000

METADATA_ENTRY = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
# Class identifiers of Google's Knowledge Graph, WordNet and Wikidata, which are not readable labels.
_IDENTIFIERS = re.compile(r"/[mg]/\w+|n\d{8}|Q\d+|None|\?+|background", re.IGNORECASE)
# Command-line options that override a part of the metadata.
_OPTIONS = {"labels": "--labels", "normalise": "--normalise"}

# Names of the fields of each table that is used, in the order of their slots. A union has two slots.
_Fields = tuple[str, ...]
_MODEL = (
    *("name", "description", "version", "subgraph_metadata"),
    *("author", "license", "associated_files", "min_parser_version"),
)
_SUBGRAPH = ("name", "description", "input_tensor_metadata", "output_tensor_metadata")
_TENSOR = ("name", "description", "dimension_names", "content", "process_units", "stats", "associated_files")
_CONTENT = ("content_properties_type", "content_properties")
_IMAGE = ("color_space",)
_PROCESS_UNIT = ("options_type", "options")
_NORMALIZATION = ("mean", "std")
_FILE = ("name", "description", "type", "locale", "version")
_BYTES = {"content_properties_type", "color_space", "options_type", "type"}
_IMAGE_PROPERTIES, _RGB, _GRAYSCALE, _NORMALIZATION_OPTIONS, _TENSOR_AXIS_LABELS = 2, 1, 2, 1, 2
# Fields of the tables in TFLite's schema.fbs.
_TFLITE = ("version", "operator_codes", "subgraphs", "description", "buffers", "metadata_buffer", "metadata")
_TFLITE_ENTRY = ("name", "buffer")
_TFLITE_BUFFER = ("data",)


@dataclass(frozen=True)
class Metadata:
    """TFLite metadata of a model file.

    Attributes:
        name, description: human-readable name and description of the model.
        labels: label of each output; empty if there are none.
        normalise: conversion of pixels to the real values of the input, with one entry for all channels or one entry
            per channel; empty if the metadata does not state it.
        label_file: name of the embedded label file, followed by its locale if it has one.
        faults: reason why ``labels`` or ``normalise`` cannot be used, by the name of the part.
    """

    name: str
    description: str
    labels: tuple[str, ...]
    normalise: tuple[Normalise, ...]
    label_file: str = ""
    faults: Mapping[str, str] = field(default_factory=dict)


def with_metadata(content: bytes, labels: Sequence[str], normalise: Normalise, name: str) -> bytes:
    """Add metadata to a classifier and return the new .tflite bytes. The same arguments always give the same bytes.

    Args:
        content: .tflite bytes of a model with one image input. Its operators and tensors are not changed.
        labels: label of each output.
        normalise: conversion of pixels to the real values of the input.
        name: human-readable name of the model.

    Raises:
        ModelError: the model already has metadata.
    """
    schema, model = tflite_schema(), parse(content)
    if has_metadata(content):
        raise ModelError("cannot add TFLite metadata, because the model already has TFLite metadata")
    subgraph = model.subgraphs[0]
    channels = int(subgraph.tensors[subgraph.inputs[0]].shape[-1])
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(_metadata_buffer(labels, normalise, name, channels), np.uint8)
    entry.name, entry.buffer = METADATA_ENTRY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or ()), entry]
    return _with_label_file(pack(model), "".join(f"{label}\n" for label in labels).encode())


def without_metadata(content: bytes) -> bytes:
    """Return the bytes of a .tflite file without its TFLite metadata and associated files."""
    model = parse(content)
    model.metadata = [entry for entry in model.metadata or () if entry.name != METADATA_ENTRY.encode()]
    return pack(model)


def has_metadata(content: bytes) -> bool:
    """Return whether a .tflite file has TFLite metadata, even if it is damaged."""
    return any(entry.name == METADATA_ENTRY.encode() for entry in parse(content).metadata or ())


def read_metadata(
    content: bytes, where: str = "the model", *, needs: Collection[str] = ("labels", "normalise")
) -> Metadata | None:
    """Read the TFLite metadata of a .tflite file; return None if the file has none.

    Args:
        content: the bytes of the file.
        where: name of the file for error messages.
        needs: the parts that the caller uses (``labels``, ``normalise``). Faults in other parts do not raise an error,
            but are recorded in :attr:`Metadata.faults`.

    Raises:
        ModelError: a part in ``needs`` is damaged, or has values that cannot be used.
    """
    try:
        root = _metadata_root(content)
        metadata = None if root is None else _metadata(root, content)
    except Exception as error:  # a damaged flatbuffer or zip can cause any error, such as struct.error or IndexError
        metadata = Metadata("", "", (), (), faults=dict.fromkeys(_OPTIONS, str(error)))
    for part in needs:
        if metadata is not None and part in metadata.faults:
            raise ModelError(
                f"{where} has damaged TFLite metadata ({metadata.faults[part]}): get the file again, or set "
                f"{_OPTIONS[part]} to use other {'labels' if part == 'labels' else 'values'}"
            )
    return metadata


def normalise_for(spec: TensorSpec, metadata: Metadata | None, where: str = "the model") -> AnyNormalise:
    """Return the normalization that a model expects at its input.

    For uint8 and int8 inputs, pixels are not normalized, as in TFLite's own tools. For other dtypes, the normalization
    is read from the metadata.

    Args:
        spec: input tensor of the model.
        metadata: TFLite metadata of the model; None if it has none.
        where: name of the model for error messages.

    Raises:
        ModelError: the metadata does not state the normalization, or states it for another number of channels.
    """
    if spec.dtype in ("uint8", "int8"):
        return identity_normalise(spec)
    if metadata is None or not metadata.normalise:
        raise ModelError(
            f"{where} takes {spec.dtype} and does not state its normalization: add --normalise {NORMALISE_CHOICES}"
        )
    if len(set(metadata.normalise)) == 1:
        return metadata.normalise[0]
    if len(metadata.normalise) != 3 or spec.shape[-1] != 3:
        raise ModelError(
            f"the metadata of {where} has {len(metadata.normalise)} normalizations for {spec.shape[-1]} channels: "
            "set the right one with --normalise"
        )
    first, second, third = metadata.normalise
    return ChannelNormalise((first.mean, second.mean, third.mean), (first.std, second.std, third.std))


def _metadata_buffer(labels: Sequence[str], normalise: Normalise, name: str, channels: int) -> bytes:
    """Return the metadata as a flatbuffer."""
    write = _Writer()
    text, table, tables = write.text, write.table, write.tables
    image = table(_IMAGE, color_space=_RGB if channels == 3 else _GRAYSCALE)
    options = table(_NORMALIZATION, mean=write.floats(normalise.mean), std=write.floats(normalise.std))
    image_input = table(
        _TENSOR,
        name=text("image"),
        description=text("The picture to classify."),
        content=table(_CONTENT, content_properties_type=_IMAGE_PROPERTIES, content_properties=image),
        process_units=tables(table(_PROCESS_UNIT, options_type=_NORMALIZATION_OPTIONS, options=options)),
    )
    file = table(_FILE, name=text(LABEL_FILE), description=text("A label a line."), type=_TENSOR_AXIS_LABELS)
    scores = table(
        _TENSOR,
        name=text("score"),
        description=text("The score of each label, 0 to 1."),
        associated_files=tables(file),
    )
    model = table(
        _MODEL,
        name=text(name),
        description=text(f"Classifies a picture as one of {len(labels)} labels. Made by edgerec."),
        subgraph_metadata=tables(
            table(_SUBGRAPH, input_tensor_metadata=tables(image_input), output_tensor_metadata=tables(scores))
        ),
        min_parser_version=text("1.0.0"),
    )
    return write.finished(model)


def _with_label_file(model: bytes, labels: bytes) -> bytes:
    content = io.BytesIO(model)
    with zipfile.ZipFile(content, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(LABEL_FILE, (1980, 1, 1, 0, 0, 0)), labels)
    return content.getvalue()


def _metadata_root(content: bytes) -> _Table | None:
    model = _Table.root(content, _TFLITE)
    for entry in model.tables("metadata", _TFLITE_ENTRY):
        if entry.text("name") == METADATA_ENTRY:
            buffers = model.tables("buffers", _TFLITE_BUFFER, MAX_BUFFERS)
            data = buffers[entry.number("buffer")].content("data")
            if data[4:8] != _IDENTIFIER:
                raise ValueError(f"it does not have the identifier {_IDENTIFIER.decode()}")
            return _Table.root(data, _MODEL)
    return None


def _metadata(root: _Table, content: bytes) -> Metadata:
    subgraphs = root.tables("subgraph_metadata", _SUBGRAPH)
    inputs = subgraphs[0].tables("input_tensor_metadata", _TENSOR) if subgraphs else []
    scores = subgraphs[0].tables("output_tensor_metadata", _TENSOR) if subgraphs else []
    faults: dict[str, str] = {}

    def usable(part: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Exception as error:  # damaged metadata can cause any error, as in read_metadata
            faults[part] = str(error)
            return ()

    def labels() -> tuple[tuple[str, ...], str] | tuple[()]:
        files = scores[0].tables("associated_files", _FILE) if scores else []
        candidates = {
            file.text("name"): file.text("locale") for file in files if file.byte("type") == _TENSOR_AXIS_LABELS
        }
        return _preferred_labels(content, candidates) if candidates else ()

    chosen = usable("labels", labels)
    return Metadata(
        name=root.text("name"),
        description=root.text("description"),
        labels=chosen[0] if chosen else (),
        normalise=usable("normalise", lambda: _normalise(inputs[0]) if inputs else ()),
        label_file=chosen[1] if chosen else "",
        faults=faults,
    )


def _preferred_labels(content: bytes, files: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """Select the label file in the user's language, otherwise in English, without a locale, or any other one.

    Args:
        content: the bytes of the .tflite file.
        files: locale of each embedded label file by file name, such as ``en`` or ``de-DE``; empty if it has none.

    Returns:
        The labels, and the name of the selected file followed by its locale.
    """
    languages = [*_user_languages(), "en"]

    def rank(item: tuple[str, str]) -> int:
        name, locale = item
        language = re.split(r"[-_]", locale.lower())[0]
        if language in languages:
            return languages.index(language)
        identifiers = not locale and all(map(_IDENTIFIERS.fullmatch, _labels(content, name)))
        return len(languages) + (2 if identifiers else 1 if locale else 0)

    name, locale = min(files.items(), key=rank)
    return _labels(content, name), f"{name} ({locale})" if locale else name


def _user_languages() -> list[str]:
    """Return the language codes of the user's locale, as gettext reads them from the environment."""
    for variable in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(variable):
            codes = [re.split(r"[-_.@]", part.lower())[0] for part in value.split(":")]
            return [code for code in codes if code not in ("", "c", "posix")]
    return []


def _normalise(tensor: _Table) -> tuple[Normalise, ...]:
    for unit in tensor.tables("process_units", _PROCESS_UNIT):
        options = unit.table("options", _NORMALIZATION)
        if unit.byte("options_type") == _NORMALIZATION_OPTIONS and options is not None:
            means, stds = options.floats("mean"), options.floats("std")
            if not all(math.isfinite(mean) for mean in means) or not all(0 < std < math.inf for std in stds):
                raise ValueError(f"the normalization has the mean {means} and the std {stds}")
            return tuple(Normalise(mean, std) for mean, std in zip(means, stds, strict=True))
    return ()


def _labels(content: bytes, name: str) -> tuple[str, ...]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(name) as file:
        text = file.read(MAX_LABEL_BYTES + 1)
    if len(text) > MAX_LABEL_BYTES:
        raise ValueError(f"{name} has more than {MAX_LABEL_BYTES} bytes")
    return tuple(line.strip() for line in text.decode("utf-8-sig").split("\n") if line.strip())


class _Writer:
    """Writer for flatbuffer tables.

    A table must be written after all strings, vectors and tables to which it refers. Each method returns the offset of
    the written object.
    """

    def __init__(self) -> None:
        self._builder = require("flatbuffers").Builder(1024)
        self.text = self._builder.CreateString

    def table(self, fields: _Fields, **values: int) -> int:
        self._builder.StartObject(len(fields))
        for name, value in values.items():
            slot = fields.index(name)
            if name in _BYTES:
                self._builder.PrependInt8Slot(slot, value, 0)
            else:
                self._builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        return int(self._builder.EndObject())

    def tables(self, table: int) -> int:
        """Write a vector of one table."""
        self._builder.StartVector(4, 1, 4)
        self._builder.PrependUOffsetTRelative(table)
        return int(self._builder.EndVector())

    def floats(self, value: float) -> int:
        """Write a vector of one float32."""
        self._builder.StartVector(4, 1, 4)
        self._builder.PrependFloat32(value)
        return int(self._builder.EndVector())

    def finished(self, root: int) -> bytes:
        self._builder.Finish(root, _IDENTIFIER)
        return bytes(self._builder.Output())


class _Table:
    """Reader for one table of a flatbuffer. Sizes are limited, and offsets outside of the content cause an error."""

    def __init__(self, table: Any, fields: _Fields) -> None:
        self._table, self._fields = table, fields

    @classmethod
    def root(cls, content: bytes, fields: _Fields) -> _Table:
        return cls(require("flatbuffers").Table(content, int.from_bytes(content[:4], "little")), fields)

    def text(self, name: str) -> str:
        """Return a string field; empty if it is absent."""
        return self.content(name, MAX_TEXT_BYTES).decode()

    def content(self, name: str, max_items: int = 1 << 31) -> bytes:
        start, count = self._vector(name, 1, max_items)
        return bytes(self._table.Bytes[start : start + count])

    def floats(self, name: str) -> list[float]:
        start, count = self._vector(name, 4, MAX_ITEMS)
        return [float(n) for n in np.frombuffer(self._table.Bytes, "<f4", count, start)] if count else []

    def byte(self, name: str) -> int:
        at = self._position(name)
        return int(self._table.Bytes[at]) if at else 0

    def number(self, name: str) -> int:
        at = self._position(name)
        return int.from_bytes(self._table.Bytes[at : at + 4], "little") if at else 0

    def table(self, name: str, fields: _Fields) -> _Table | None:
        at = self._position(name)
        return self._child(at, fields) if at else None

    def tables(self, name: str, fields: _Fields, max_items: int = MAX_ITEMS) -> list[_Table]:
        start, count = self._vector(name, 4, max_items)
        return [self._child(start + 4 * i, fields) for i in range(count)]

    def _child(self, at: int, fields: _Fields) -> _Table:
        return _Table(type(self._table)(self._table.Bytes, self._table.Indirect(at)), fields)

    def _position(self, name: str) -> int:
        """Return the position of a field in the content; 0 if the field is absent."""
        offset = self._table.Offset(4 + 2 * self._fields.index(name))
        return int(self._table.Pos + offset) if offset else 0

    def _vector(self, name: str, size: int, max_items: int) -> tuple[int, int]:
        """Return the position and the number of items of a vector or string; ``(0, 0)`` if it is absent.

        Args:
            name: name of the field.
            size: size of an item in bytes.
            max_items: maximum number of items.

        Raises:
            ValueError: the vector has too many items, or is not inside of the content.
        """
        at = self._position(name)
        if not at:
            return 0, 0
        start = int(self._table.Indirect(at)) + 4
        count = int.from_bytes(self._table.Bytes[start - 4 : start], "little")
        if count > max_items or start + count * size > len(self._table.Bytes):
            raise ValueError(f"the field {name} has an invalid number of items: {count:,}")
        return start, count
