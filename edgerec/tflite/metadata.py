"""Read and write TFLite metadata, which stores labels and normalization in .tflite files for other tools.

The format is metadata_schema.fbs of tflite-support, version 1.0. The metadata is a separate flatbuffer, stored in a
buffer of the model under the name TFLITE_METADATA. The label file is in an uncompressed zip archive, appended
to the model. Interpreters ignore both. The tflite-support package is not used, because its last release does not
support Python 3.12 and later.
"""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from edgerec.contract.tensors import (
    NORMALIZE_CHOICES,
    AnyNormalize,
    ChannelNormalize,
    Normalize,
    TensorSpec,
    identity_normalize,
)
from edgerec.errors import ModelError
from edgerec.tflite.flatbuffer import pack, parse
from edgerec.tflite.schema import tflite_schema
from edgerec.tflite.tables import Table
from edgerec.utils.optional import require

LABEL_FILE = "labels.txt"
# Metadata is limited in size, because a damaged file could otherwise exhaust the memory.
MAX_LABEL_BYTES = 1 << 24
MAX_TEXT_BYTES = 1 << 16
MAX_ITEMS = 10_000
MAX_BUFFERS = 1_000_000

METADATA_ENTRY = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
# Matches identifiers of classes in Google's Knowledge Graph, WordNet and Wikidata, which are not human-readable.
_IDENTIFIERS = re.compile(r"/[mg]/\w+|n\d{8}|Q\d+|None|\?+|background", re.IGNORECASE)
_OPTIONS = {"labels": "--labels", "normalize": "--normalize"}

# Field numbers of the tables in metadata_schema.fbs. A union has two fields, its type and its table.
# The first two fields of most metadata tables are a name and a description.
_NAME, _DESCRIPTION = 0, 1
_SUBGRAPHS, _MIN_PARSER_VERSION = 3, 7  # ModelMetadata
_INPUTS, _OUTPUTS = 2, 3  # SubGraphMetadata
_CONTENT, _PROCESS_UNITS, _FILES = 3, 4, 6  # TensorMetadata
_UNION_TYPE, _UNION = 0, 1  # Content and ProcessUnit
_COLOR_SPACE = 0  # ImageProperties
_MEAN, _STD = 0, 1  # NormalizationOptions
_FILE_TYPE, _LOCALE = 2, 3  # AssociatedFile
# Values of enums in metadata_schema.fbs.
_IMAGE_PROPERTIES, _RGB, _GRAYSCALE, _NORMALIZATION_OPTIONS, _TENSOR_AXIS_LABELS = 2, 1, 2, 1, 2
# Field numbers of the tables Model and Metadata in the TFLite schema.
_MODEL_BUFFERS, _MODEL_METADATA, _ENTRY_BUFFER = 4, 6, 1


@dataclass(frozen=True)
class Metadata:
    """A model file's TFLite metadata.

    Attributes:
        name, description: the model's human-readable name and description.
        labels: label of each output, or an empty tuple if there are none.
        normalize: pixel normalization, with one entry for all channels or one per channel, or an empty tuple if the
            metadata does not specify it.
        label_file: name of the embedded label file, followed by its locale if it has one.
        faults: reason why a part cannot be used, keyed by part (``labels`` or ``normalize``).
    """

    name: str
    description: str
    labels: tuple[str, ...]
    normalize: tuple[Normalize, ...]
    label_file: str = ""
    faults: Mapping[str, str] = field(default_factory=dict)


def with_metadata(content: bytes, labels: Sequence[str], normalize: Normalize, name: str) -> bytes:
    """Add metadata to a classifier and return the new .tflite bytes. The result is reproducible.

    Args:
        content: .tflite bytes of a model with one image input. Its operators and tensors are not changed.
        labels: label of each output.
        normalize: pixel normalization.
        name: the model's human-readable name.

    Raises:
        ModelError: the model already has metadata.
    """
    schema, model = tflite_schema(), parse(content)
    if any(entry.name == METADATA_ENTRY.encode() for entry in model.metadata or ()):
        raise ModelError("cannot add TFLite metadata: the model already has TFLite metadata")
    subgraph = model.subgraphs[0]
    channels = int(subgraph.tensors[subgraph.inputs[0]].shape[-1])
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(_metadata_buffer(labels, normalize, name, channels), np.uint8)
    entry.name, entry.buffer = METADATA_ENTRY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or ()), entry]
    return with_files(pack(model), {LABEL_FILE: "".join(f"{label}\n" for label in labels).encode()})


def without_metadata(content: bytes) -> bytes:
    """Return a .tflite file's bytes without its TFLite metadata and associated files."""
    model = parse(content)
    remove_metadata(model)
    return pack(model)


def remove_metadata(model: Any) -> None:
    """Remove the TFLite metadata from a model parsed by :func:`~edgerec.tflite.flatbuffer.parse`."""
    model.metadata = [entry for entry in model.metadata or () if entry.name != METADATA_ENTRY.encode()]


def has_metadata(content: bytes) -> bool:
    """Return whether a .tflite file contains TFLite metadata, which need not be valid."""
    return _metadata_entry(Table.root(content)) is not None


def read_metadata(
    content: bytes, where: str = "the model", *, needs: Collection[str] = ("labels", "normalize")
) -> Metadata | None:
    """Read a .tflite file's TFLite metadata, or return None if it has none.

    Args:
        content: the bytes of the file.
        where: the file's name in error messages.
        needs: the parts that the caller uses (``labels``, ``normalize``). Faults in other parts are recorded in
            :attr:`Metadata.faults` instead of raising an error.

    Raises:
        ModelError: a part in ``needs`` is damaged, or has values that cannot be used.
    """
    try:
        root = _metadata_root(content)
        metadata = None if root is None else _metadata(root, content)
    # Reading damaged metadata can raise any exception.
    except Exception as error:
        metadata = Metadata("", "", (), (), faults=dict.fromkeys(_OPTIONS, str(error)))
    for part in needs:
        if metadata is not None and part in metadata.faults:
            raise ModelError(
                f"{where} has damaged TFLite metadata ({metadata.faults[part]}): download the file again, or override "
                f"this part of the metadata with {_OPTIONS[part]}"
            )
    return metadata


def normalize_for(spec: TensorSpec, metadata: Metadata | None, where: str = "the model") -> AnyNormalize:
    """Return the normalization that a model expects for its input.

    For uint8 and int8 inputs, pixels are not normalized, as in TFLite's own tools. For other dtypes, the normalization
    is read from the metadata.

    Args:
        spec: the model's input tensor.
        metadata: the model's TFLite metadata, or None if it has none.
        where: the model's name in error messages.

    Raises:
        ModelError: the metadata does not specify the normalization, or specifies it for another number of channels.
    """
    if spec.dtype in ("uint8", "int8"):
        return identity_normalize(spec)
    if metadata is None or not metadata.normalize:
        raise ModelError(
            f"{where} has a {spec.dtype} input, but does not specify its normalization: add --normalize "
            f"{NORMALIZE_CHOICES}"
        )
    if len(set(metadata.normalize)) == 1:
        return metadata.normalize[0]
    if len(metadata.normalize) != 3 or spec.shape[-1] != 3:
        raise ModelError(
            f"the metadata of {where} has {len(metadata.normalize)} normalizations for {spec.shape[-1]} channels: "
            "set the correct normalization with --normalize"
        )
    first, second, third = metadata.normalize
    return ChannelNormalize((first.mean, second.mean, third.mean), (first.std, second.std, third.std))


def _metadata_buffer(labels: Sequence[str], normalize: Normalize, name: str, channels: int) -> bytes:
    """Serialize the metadata of a classifier as a flatbuffer."""
    builder = require("flatbuffers").Builder(1024)
    text = builder.CreateString

    def table(offsets: Mapping[int, int], numbers: Mapping[int, int] = MappingProxyType({})) -> int:
        values = {**offsets, **numbers}
        builder.StartObject(1 + max(values))
        for slot in sorted(values):
            prepend = builder.PrependInt8Slot if slot in numbers else builder.PrependUOffsetTRelativeSlot
            prepend(slot, values[slot], 0)
        return int(builder.EndObject())

    def vector(prepend: Callable[[Any], None], item: Any) -> int:
        builder.StartVector(4, 1, 4)
        prepend(item)
        return int(builder.EndVector())

    def tables(offset: int) -> int:
        return vector(builder.PrependUOffsetTRelative, offset)

    image = table({}, {_COLOR_SPACE: _RGB if channels == 3 else _GRAYSCALE})
    mean = vector(builder.PrependFloat32, normalize.mean)
    normalization = table({_MEAN: mean, _STD: vector(builder.PrependFloat32, normalize.std)})
    image_input = table(
        {
            _NAME: text("image"),
            _DESCRIPTION: text("The picture to classify."),
            _CONTENT: table({_UNION: image}, {_UNION_TYPE: _IMAGE_PROPERTIES}),
            _PROCESS_UNITS: tables(table({_UNION: normalization}, {_UNION_TYPE: _NORMALIZATION_OPTIONS})),
        }
    )
    file = table({_NAME: text(LABEL_FILE), _DESCRIPTION: text("A label a line.")}, {_FILE_TYPE: _TENSOR_AXIS_LABELS})
    scores = table(
        {
            _NAME: text("score"),
            _DESCRIPTION: text("The score of each label, 0 to 1."),
            _FILES: tables(file),
        }
    )
    model = table(
        {
            _NAME: text(name),
            _DESCRIPTION: text(f"Classifies a picture as one of {len(labels)} labels. Made by edgerec."),
            _SUBGRAPHS: tables(table({_INPUTS: tables(image_input), _OUTPUTS: tables(scores)})),
            _MIN_PARSER_VERSION: text("1.0.0"),
        }
    )
    builder.Finish(model, _IDENTIFIER)
    return bytes(builder.Output())


def with_files(model: bytes, files: Mapping[str, bytes]) -> bytes:
    """Append associated files, e.g. labels, to a .tflite file as an uncompressed zip archive."""
    content = io.BytesIO(model)
    with zipfile.ZipFile(content, "a", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return content.getvalue()


def _metadata_entry(model: Table) -> Table | None:
    # Names are compared as bytes, because the name of a metadata entry may not be valid UTF-8.
    entries = model.tables(_MODEL_METADATA)
    return next((entry for entry in entries if entry.content(_NAME) == METADATA_ENTRY.encode()), None)


def _metadata_root(content: bytes) -> Table | None:
    model = Table.root(content)
    entry = _metadata_entry(model)
    if entry is None:
        return None
    data = model.tables(_MODEL_BUFFERS, MAX_BUFFERS)[entry.number(_ENTRY_BUFFER)].content(0)
    if data[4:8] != _IDENTIFIER:
        raise ValueError(f"the metadata lacks the identifier {_IDENTIFIER.decode()}")
    return Table.root(data)


def _text(table: Table, field: int) -> str:
    return table.content(field, MAX_TEXT_BYTES).decode()


def _metadata(root: Table, content: bytes) -> Metadata:
    subgraphs = root.tables(_SUBGRAPHS, MAX_ITEMS)
    inputs = subgraphs[0].tables(_INPUTS, MAX_ITEMS) if subgraphs else []
    scores = subgraphs[0].tables(_OUTPUTS, MAX_ITEMS) if subgraphs else []
    faults: dict[str, str] = {}

    def usable(part: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Exception as error:  # Reading damaged metadata can raise any exception.
            faults[part] = str(error)
            return ()

    def labels() -> tuple[tuple[str, ...], str] | tuple[()]:
        files = scores[0].tables(_FILES, MAX_ITEMS) if scores else []
        candidates = {
            _text(file, _NAME): _text(file, _LOCALE)
            for file in files
            if file.number(_FILE_TYPE, "<B") == _TENSOR_AXIS_LABELS
        }
        return _preferred_labels(content, candidates) if candidates else ()

    chosen = usable("labels", labels)
    return Metadata(
        name=_text(root, _NAME),
        description=_text(root, _DESCRIPTION),
        labels=chosen[0] if chosen else (),
        normalize=usable("normalize", lambda: _normalize(inputs[0]) if inputs else ()),
        label_file=chosen[1] if chosen else "",
        faults=faults,
    )


def _preferred_labels(content: bytes, files: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """Select a label file in the user's language or, if there is none, in English.

    Otherwise, prefer a file without a locale.

    Args:
        content: the .tflite file's bytes.
        files: embedded label files: a dictionary that maps file names to locales, such as ``en`` or ``de-DE``, or to an
            empty string for a file without a locale.

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
    """Return the language codes from the environment variables that gettext uses, e.g. ``LANG``."""
    for variable in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(variable):
            codes = [re.split(r"[-_.@]", part.lower())[0] for part in value.split(":")]
            return [code for code in codes if code not in ("", "c", "posix")]
    return []


def _normalize(tensor: Table) -> tuple[Normalize, ...]:
    for unit in tensor.tables(_PROCESS_UNITS, MAX_ITEMS):
        options = unit.table(_UNION)
        if unit.number(_UNION_TYPE, "<B") == _NORMALIZATION_OPTIONS and options is not None:
            means, stds = (list(options.numbers(field, "f", MAX_ITEMS)) for field in (_MEAN, _STD))
            if not all(math.isfinite(mean) for mean in means) or not all(0 < std < math.inf for std in stds):
                raise ValueError(
                    f"the normalization must have finite means and positive standard deviations, got {means} and {stds}"
                )
            return tuple(Normalize(mean, std) for mean, std in zip(means, stds, strict=True))
    return ()


def _labels(content: bytes, name: str) -> tuple[str, ...]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(name) as file:
        text = file.read(MAX_LABEL_BYTES + 1)
    if len(text) > MAX_LABEL_BYTES:
        raise ValueError(f"the label file {name} exceeds the limit of {MAX_LABEL_BYTES:,} bytes")
    return tuple(line.strip() for line in text.decode("utf-8-sig").split("\n") if line.strip())
