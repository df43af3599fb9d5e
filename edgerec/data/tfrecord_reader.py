"""Read packs of TFRecord shards that ``edgerec data pack`` wrote.

Training streams the shards. Other steps, such as calibration and evaluation, read single images at the offsets that
the index contains. Both hold at most the images of a few shards in memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tokenize
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, overload

import numpy as np
import numpy.typing as npt

from edgerec.contract.preprocess import PreprocessSpec
from edgerec.data.remote_files import file_size, is_remote, join_path, open_file, read_file
from edgerec.errors import DataError, unknown
from edgerec.utils.bounded_parsing import MAX_TEXT_BYTES, parse_json
from edgerec.utils.json_types import MinItems, check_type
from edgerec.utils.progress import Listener, Progress, ignore
from edgerec.utils.text import is_printable

Indices = npt.NDArray[np.int64]

SPLITS = ("train", "val", "test")
SCHEMA = 1
MANIFEST, INDEX = "pack.json", "index.npy"
# The file of content digests is missing from packs that older versions of edgerec wrote.
CONTENTS = "contents.npy"
MAX_NPY_HEADER_BYTES = 1 << 16
# The index contains the byte offset, the class and the CRC-32 checksum of the pixels of each image.
ENTRY = np.dtype([("pixels", "<u8"), ("class", "<i4"), ("crc", "<u4")])


@dataclass(frozen=True)
class Shard:
    """A TFRecord file that contains some of the images of a pack.

    Attributes:
        file: name of the file in the pack's folder.
        split: ``train``, ``val`` or ``test``.
        images: number of images.
        size_bytes: size of the file.
        sha256: SHA-256 of the file.
    """

    file: str
    split: str
    images: int
    size_bytes: int
    sha256: str


class _ShardRecord(TypedDict):
    file: str
    split: str
    images: int
    size_bytes: int
    sha256: str


class _PackManifest(TypedDict):
    labels: Annotated[list[str], MinItems(1)]
    preprocess: dict[str, Any]
    shards: Annotated[list[_ShardRecord], MinItems(1)]
    skipped: list[str]
    group_by: str
    digest: str
    contents_of: NotRequired[str]


class _Version(TypedDict):
    schema: int


@dataclass(frozen=True)
class Packed:
    """A pack of TFRecord shards, whose index and images are loaded lazily.

    Attributes:
        location: folder of the pack, or its URL in an object store.
        labels: name of each class.
        preprocess: preprocessing that was applied to the images.
        shards: shards of the training set, followed by those of the validation and the test set.
        skipped: names of the files that were not readable images.
        group_by: regular expression that kept images of one group in the same split.
        digest: SHA-256 over the whole pack.
        contents_of: value of :attr:`Dataset.contents_of`, or empty if the pack has no content digests.
    """

    location: str
    labels: tuple[str, ...]
    preprocess: PreprocessSpec
    shards: tuple[Shard, ...]
    skipped: tuple[str, ...]
    group_by: str
    digest: str
    contents_of: str = ""

    @classmethod
    def open(cls, location: str) -> Packed:
        """Open a pack and validate its manifest.

        Raises:
            DataError: the manifest is invalid, or a shard is missing or truncated.
        """
        try:
            about = parse_json(read_file(location, MANIFEST, MAX_TEXT_BYTES))
            check_type(about, _Version)
            if about["schema"] != SCHEMA:
                raise DataError(
                    f"{location} has format version {about['schema']}, but this edgerec version reads version {SCHEMA}"
                    ": pack the data again with edgerec data pack"
                )
            check_type(about, _PackManifest)
            pack = cls(
                location,
                tuple(about["labels"]),
                PreprocessSpec.from_dict(about["preprocess"]),
                tuple(Shard(**shard) for shard in about["shards"]),
                tuple(about["skipped"]),
                about["group_by"],
                about["digest"],
                str(about.get("contents_of", "")),
            )
            pack._check_manifest()
            if pack.digest != manifest_digest(about):
                raise ValueError("the pack's digest does not match its contents")
        except DataError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{location}: {MANIFEST} is damaged ({error}). Pack the data again with edgerec data pack"
            ) from None
        for shard in pack.shards:
            size = file_size(location, shard.file)
            if size != shard.size_bytes:
                fault = "is missing" if size is None else f"has {size:,} bytes, expected {shard.size_bytes:,}"
                raise DataError(f"{location}: {shard.file} {fault}. Copy this file again, or pack the data again")
        return pack

    @property
    def data_settings(self) -> dict[str, Any]:
        """Recipe settings that were fixed when the pack was written."""
        spec = self.preprocess
        return {
            "input_size": spec.width,
            "channels": spec.channels,
            "fit": spec.fit,
            "interpolation": spec.interpolation,
            "preprocess_version": spec.version,
            "black_level": spec.black_level,
            "white_level": spec.white_level,
            "group_by": self.group_by,
        }

    def _check_manifest(self) -> None:
        if len(set(self.labels)) < len(self.labels) or not all(map(is_printable, self.labels)):
            raise ValueError("the labels contain a duplicate or a control character")
        if self.preprocess.height != self.preprocess.width:
            raise ValueError("the images are not square")
        if len({shard.file for shard in self.shards}) < len(self.shards):
            raise ValueError("a shard is listed twice")
        for shard in self.shards:
            if not shard.file or "\0" in shard.file or Path(shard.file).name != shard.file:
                raise ValueError(f"the shard {shard.file!r} is not a file name in the pack's folder")
            if shard.split not in SPLITS:
                raise ValueError(f"{shard.file} belongs to {unknown('split', shard.split, SPLITS)}")
            if not 0 <= shard.images * self._image_bytes <= shard.size_bytes:
                raise ValueError(
                    f"{shard.images:,} images do not fit into the {shard.size_bytes:,} bytes of {shard.file}"
                )

    @property
    def _image_bytes(self) -> int:
        return math.prod(self.preprocess.shape)

    def path(self, shard: Shard) -> str:
        """Return the path or URL of a shard."""
        return join_path(self.location, shard.file)

    def of(self, split: str) -> tuple[Shard, ...]:
        """Return the shards of one split (``train``, ``val`` or ``test``)."""
        return tuple(shard for shard in self.shards if shard.split == split)

    @cached_property
    def index(self) -> npt.NDArray[Any]:
        """Index of the images, with one :data:`ENTRY` per image in the order of the shards."""
        index = self._array(INDEX, ENTRY)
        ends = np.repeat([shard.size_bytes for shard in self.shards], [shard.images for shard in self.shards])
        classes = (index["class"] >= 0) & (index["class"] < len(self.labels))
        if not np.all(classes & (index["pixels"] <= (ends - self._image_bytes).astype(np.uint64))):
            raise DataError(
                f"{self.location}: {INDEX} is damaged (an entry has an invalid offset or class). "
                "Pack the data again with edgerec data pack"
            )
        return index

    @cached_property
    def contents(self) -> npt.NDArray[np.bytes_] | None:
        """Content digests of the original images, or None for packs written by older versions."""
        return self._array(CONTENTS, np.dtype("S32")) if self.contents_of else None

    def _array(self, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        count = sum(shard.images for shard in self.shards)
        content = read_file(self.location, name, count * dtype.itemsize + MAX_NPY_HEADER_BYTES)
        try:
            return parse_npy(content, dtype, count)
        except ValueError as error:
            raise DataError(
                f"{self.location}: {name} does not match the pack's shards ({error}). Copy this file again, or "
                "pack the data again"
            ) from None

    @property
    def splits(self) -> npt.NDArray[np.str_]:
        """Split of each image, as an array of shape ``(N,)``."""
        return np.repeat([shard.split for shard in self.shards], [shard.images for shard in self.shards])

    @property
    def images(self) -> PackedImages:
        """Images of the pack, which are loaded lazily."""
        return PackedImages(self)

    @property
    def names(self) -> PackedNames:
        """Names of the images."""
        return PackedNames(self)

    @cached_property
    def ends(self) -> Indices:
        """Cumulative number of images in the shards, as an array of shape ``(shards,)``."""
        return np.cumsum([shard.images for shard in self.shards])

    @property
    def counts(self) -> dict[str, int]:
        """Number of images in each split."""
        return {split: sum(shard.images for shard in self.of(split)) for split in SPLITS}

    @property
    def size_bytes(self) -> int:
        """Total size of all shards, in bytes."""
        return sum(shard.size_bytes for shard in self.shards)

    def to_dict(self) -> dict[str, Any]:
        """Return a summary of the pack as a JSON-serializable dictionary."""
        return {
            "pack": self.location,
            "images": self.counts,
            "labels": list(self.labels),
            "preprocess": asdict(self.preprocess),
            "shards": len(self.shards),
            "size_bytes": self.size_bytes,
            "skipped": list(self.skipped),
            "digest": self.digest,
        }

    def verify(self, listener: Listener = ignore) -> None:
        """Verify the checksum of every image.

        Raises:
            DataError: a record is damaged. The message contains the position of the first damaged record.
        """
        for start in range(0, len(self.index), 1024):
            self.images[np.arange(start, min(start + 1024, len(self.index)))]
            listener(Progress("reading shards", min(start + 1024, len(self.index)), len(self.index)))


class PackedImages:
    """Array-like view of the images in a pack.

    The images are uint8 and have the shape ``(N, height, width, channels)``.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, pack: Packed) -> None:
        self._pack = pack
        self.shape = (len(pack.index), *pack.preprocess.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, selection: Any) -> npt.NDArray[np.uint8]:
        """Return the image at an integer index, or the images selected by a slice or an index array."""
        if isinstance(selection, slice):
            selection = np.arange(*selection.indices(len(self)))
        positions = np.asarray(selection, np.int64)
        positions = np.where(positions < 0, positions + len(self), positions)
        images = np.empty((positions.size, *self.shape[1:]), np.uint8)
        shards = np.searchsorted(self._pack.ends, positions.reshape(-1), side="right")
        for number in np.unique(shards):
            rows = np.flatnonzero(shards == number)
            self._read_from_shard(self._pack.shards[number], positions.reshape(-1)[rows], images, rows)
        return images.reshape(*positions.shape, *self.shape[1:])

    def _read_from_shard(self, shard: Shard, positions: Indices, images: npt.NDArray[np.uint8], rows: Indices) -> None:
        size = images[0].size
        with open_file(self._pack.location, shard.file) as file:
            for position, row in zip(positions, rows, strict=True):
                entry = self._pack.index[position]
                file.seek(int(entry["pixels"]))
                content = file.read(size)
                if len(content) != size or zlib.crc32(content) != entry["crc"]:
                    first = self._pack.ends[self._pack.shards.index(shard)] - shard.images
                    raise DataError(
                        f"{self._pack.path(shard)}: record {position - first} of {shard.images} is damaged, because "
                        "its checksum does not match: copy the shard again, or pack the data again"
                    )
                images[row] = np.frombuffer(content, np.uint8).reshape(images.shape[1:])


class PackedNames(Sequence[str]):
    """Lazy sequence of the image names in a pack, which have the form ``SHARD#RECORD``."""

    def __init__(self, pack: Packed) -> None:
        self._pack = pack

    def __len__(self) -> int:
        return len(self._pack.index)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """Return one image's name for an integer index, or a list of names for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        position = range(len(self))[index]
        number = int(np.searchsorted(self._pack.ends, position, side="right"))
        shard = self._pack.shards[number]
        return f"{shard.file}#{position - (int(self._pack.ends[number]) - shard.images)}"


def is_pack(location: str) -> bool:
    """Return whether a folder or URL is a pack.

    Every URL is assumed to be a pack.
    """
    return is_remote(location) or (Path(location) / MANIFEST).is_file()


def manifest_digest(about: Mapping[str, Any]) -> str:
    """Return the SHA-256 digest of a pack's manifest.

    The digest depends on all images, because the manifest contains the digest of each shard.
    """
    values = {key: value for key, value in about.items() if key != "digest"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode() + b"\0").hexdigest()


def parse_npy(content: bytes, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """Parse an .npy file that contains a one-dimensional array.

    Raises:
        ValueError: the file is damaged, or the array does not have the given dtype and length.
    """
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("the .npy format version must be 1.0")
        shape, _, stored_dtype = np.lib.format.read_array_header_1_0(file)
    except (tokenize.TokenError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if stored_dtype != dtype or shape != (count,) or len(content) != file.tell() + count * dtype.itemsize:
        raise ValueError(f"the array has dtype {stored_dtype} and shape {shape}, expected {dtype} and ({count},)")
    return np.frombuffer(content, dtype, offset=file.tell())
