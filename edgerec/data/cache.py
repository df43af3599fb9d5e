"""Cache preprocessed images on disk, so that later commands do not preprocess them again."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.image_decoding import decode, memory_for, read_image_file
from edgerec.contract.preprocess import Image, PreprocessSpec, apply
from edgerec.data import cache_limit
from edgerec.data.raw_dataset import Arrays, Files
from edgerec.errors import DataError
from edgerec.utils.atomic import cache_folder, real_path, replacing, write_file
from edgerec.utils.bounded_parsing import read_json
from edgerec.utils.lock import Lock
from edgerec.utils.parallel import map_in_threads
from edgerec.utils.progress import Listener, track

# Version of the cache, which must be increased when preprocess.apply or the file format changes.
FORMAT = 3
# A second attempt is necessary if another process clears the cache before a new entry is opened.
ATTEMPTS = 2
# Number of hexadecimal digits in a content digest, which is a truncated SHA-256 digest of one image.
DIGEST_CHARS = 32

Digests = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class Pixels:
    """Preprocessed pixels of all images in a data set.

    Attributes:
        images: uint8 ``(V, height, width, channels)`` for the V valid images, memory-mapped.
        valid: ``(N,)``, whether the file is a readable image.
        digest: SHA-256 over the names and contents of all images.
        contents: ``(V,)``, digest of each valid image's content, :data:`DIGEST_CHARS` hexadecimal digits.
    """

    images: Any
    valid: npt.NDArray[np.bool_]
    digest: str
    contents: Digests


def pixels(source: Arrays | Files, spec: PreprocessSpec, listener: Listener) -> Pixels:
    """Return preprocessed pixels from the cache, or preprocess the images and store the result."""
    digest = arrays_digest(source) if isinstance(source, Arrays) else ""
    if isinstance(source, Arrays) and source.shape == spec.shape:
        valid = np.ones(len(source.images), bool)
        return Pixels(source.images.reshape(-1, *spec.shape), valid, digest, content_digests(source.images))
    store = cache_folder() / f"{_key(source, digest, spec)}.raw"
    stored = _open_entry(store, spec)
    for _ in range(ATTEMPTS):
        if stored is None:
            with Lock(store, wait=True):
                stored = _open_entry(store, spec)  # Another process may have written the cache entry.
                if stored is None:
                    expected_bytes = len(source.classes) * (math.prod(spec.shape) + DIGEST_CHARS)
                    cache_limit.make_room(expected_bytes, keep=store)
                    _fill(store, source, digest, spec, listener)
                    stored = _open_entry(store, spec)
    if stored is None:
        raise DataError(
            f"the new cache entry {store} cannot be read: check the disk, or set EDGEREC_CACHE to another folder"
        )
    return stored


def content_digests(images: npt.NDArray[np.uint8]) -> Digests:
    """Return the content digest of each image in an array."""
    digests = [hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:DIGEST_CHARS] for image in images]
    return np.array(digests, f"S{DIGEST_CHARS}")


def _open_entry(store: Path, spec: PreprocessSpec) -> Pixels | None:
    description = store.with_suffix(".json")
    lock = cache_limit.lock_shared(store)
    if lock is None:
        return None
    try:
        values = read_json(description)
        valid = np.ones(values["count"], bool)
        valid[values["skipped"]] = False
        shape = (int(valid.sum()), *spec.shape)
        if store.stat().st_size != math.prod(shape) + shape[0] * DIGEST_CHARS:
            raise ValueError("incomplete")
        if not shape[0]:
            os.close(lock)
            return Pixels(np.empty(shape, np.uint8), valid, str(values["digest"]), np.empty(0, f"S{DIGEST_CHARS}"))
        images = np.memmap(store, np.uint8, "r", shape=shape)
        contents = np.fromfile(store, f"S{DIGEST_CHARS}", offset=math.prod(shape))
        cache_limit.mark_used(description)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        os.close(lock)
        return None
    cache_limit.unlock_with(images, lock)
    return Pixels(images, valid, str(values["digest"]), contents)


def arrays_digest(source: Arrays) -> str:
    """Return a digest of the images, classes, splits and labels of a data set in memory."""
    digest = hashlib.sha256(repr((source.images.shape, source.labels)).encode())
    for array in (source.images, source.classes, source.splits):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _key(source: Arrays | Files, digest: str, spec: PreprocessSpec) -> str:
    key = hashlib.sha256(f"{FORMAT} {spec} {digest}".encode())
    if isinstance(source, Files):
        # Files are identified by size and modification time, because hashing their content would be slow.
        for path in source.paths:
            status = path.stat()
            key.update(os.fsencode(real_path(path)) + b"\0" + os.fsencode(path.relative_to(source.root)))
            key.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return key.hexdigest()[:32]


def _fill(store: Path, source: Arrays | Files, digest: str, spec: PreprocessSpec, listener: Listener) -> None:
    count = len(source.classes)
    skipped: list[int] = []
    contents: list[str] = []
    total_digest = hashlib.sha256()
    with replacing(store) as partial, partial.open("wb") as file:
        results = track(_preprocess_all(source, spec), "reading images", count, listener)
        for position, (name, content_digest, image) in enumerate(results):
            total_digest.update(name + b"\0" + content_digest)
            if image is None:
                skipped.append(position)
            else:
                file.write(image.tobytes())
                contents.append(content_digest.hex()[:DIGEST_CHARS])
        file.write("".join(contents).encode())
    values = {
        "count": count,
        "skipped": skipped,
        "digest": digest or total_digest.hexdigest(),
        "source": str(source.root) if isinstance(source, Files) else "arrays",
        "input": list(spec.shape),
        "created": time.time(),
    }
    write_file(store.with_suffix(".json"), json.dumps(values))


def _preprocess_all(source: Arrays | Files, spec: PreprocessSpec) -> Iterator[tuple[bytes, bytes, Image | None]]:
    def fit(position: int) -> tuple[bytes, bytes, Image | None]:
        if isinstance(source, Arrays):
            image = source.images[position]
            return b"", hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest(), apply(image, spec)
        path = source.paths[position]
        content = read_image_file(path)
        name = os.fsencode(path.relative_to(source.root).as_posix())
        with memory_for(content):
            decoded = decode(content, spec.levels)
            fitted = None if decoded is None else apply(decoded, spec)
        return name, hashlib.sha256(content).digest(), fitted

    return map_in_threads(fit, range(len(source.classes)))
