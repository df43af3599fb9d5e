"""Pixels are read, resized and stored once; epochs, calibration and evaluation read the store."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerec.contract.files import cache_folder, replacing, write_file
from edgerec.contract.preprocess import Image, PreprocessSpec, apply, decode
from edgerec.contract.progress import Listener, Progress
from edgerec.data.sources import Arrays, Files
from edgerec.errors import DataError

# Part of every key: a change of preprocess.apply, or of what is stored, makes old stores useless.
FORMAT = 1
CHUNK = 256


@dataclass(frozen=True)
class Pixels:
    """What the model sees of a source.

    Attributes:
        images: uint8 ``(valid, height, width, channels)``, mapped from disk.
        valid: ``(N,)``, which of the source's entries are pictures.
        digest: SHA-256 over all names and contents.
    """

    images: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.bool_]
    digest: str


def pixels(source: Arrays | Files, spec: PreprocessSpec, listener: Listener) -> Pixels:
    """The source's pictures as the model sees them, from the store, which is filled on first use."""
    digest = _arrays_digest(source) if isinstance(source, Arrays) else ""
    if isinstance(source, Arrays) and _shape(source.images) == spec.shape:
        return Pixels(source.images.reshape(-1, *spec.shape), np.ones(len(source.images), bool), digest)
    store = cache_folder() / f"{_key(source, digest, spec)}.raw"
    about = store.with_suffix(".json")
    found = _stored(store, about, spec)
    if found is None:
        _fill(store, about, source, digest, spec, listener)
        found = _stored(store, about, spec)
    if found is None:
        raise DataError(f"{store} is damaged as soon as it is written: look at the disk, or set EDGEREC_CACHE")
    return found


def _stored(store: Path, about: Path, spec: PreprocessSpec) -> Pixels | None:
    """What is stored there, or None when that is nothing, or not whole."""
    try:
        values = json.loads(about.read_text(encoding="utf-8"))
        valid = np.ones(values["count"], bool)
        valid[values["skipped"]] = False
        shape = (int(valid.sum()), *spec.shape)
        if store.stat().st_size != math.prod(shape):
            return None
        images = np.memmap(store, np.uint8, "r", shape=shape) if shape[0] else np.empty(shape, np.uint8)
        return Pixels(images, valid, str(values["digest"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _shape(images: npt.NDArray[np.uint8]) -> tuple[int, ...]:
    return (*images.shape[1:3], images.shape[3] if images.ndim == 4 else 1)


def _arrays_digest(source: Arrays) -> str:
    digest = hashlib.sha256(repr((source.images.shape, source.labels)).encode())
    for array in (source.images, source.classes, source.splits):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _key(source: Arrays | Files, digest: str, spec: PreprocessSpec) -> str:
    key = hashlib.sha256(f"{FORMAT} {spec} {digest}".encode())
    if isinstance(source, Files):
        # Reading every byte to find out whether one changed would be the work that the store saves.
        for path in source.paths:
            status = path.stat()
            key.update(os.fsencode(path.resolve()) + b"\0" + os.fsencode(path.relative_to(source.root)))
            key.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return key.hexdigest()[:32]


def _fill(
    store: Path, about: Path, source: Arrays | Files, digest: str, spec: PreprocessSpec, listener: Listener
) -> None:
    count = len(source.classes)
    skipped: list[int] = []
    content = hashlib.sha256()
    with replacing(store) as partial, partial.open("wb") as file:
        for position, (name, image) in enumerate(_fitted(source, spec)):
            content.update(name)
            if image is None:
                skipped.append(position)
            else:
                file.write(image.tobytes())
            if position % CHUNK == CHUNK - 1 or position == count - 1:
                listener(Progress("reading pictures", position + 1, count))
    values = {"count": count, "skipped": skipped, "digest": digest or content.hexdigest()}
    write_file(about, json.dumps(values))


def _fitted(source: Arrays | Files, spec: PreprocessSpec) -> Iterator[tuple[bytes, Image | None]]:
    """Every entry's name with its content's digest, and its pixels, or None where it is no picture."""

    def fit(position: int) -> tuple[bytes, Image | None]:
        if isinstance(source, Arrays):
            return b"", apply(source.images[position], spec)
        path = source.paths[position]
        content = path.read_bytes()
        image = decode(content)
        name = os.fsencode(path.relative_to(source.root).as_posix()) + b"\0" + hashlib.sha256(content).digest()
        return name, None if image is None else apply(image, spec)

    count = len(source.classes)
    with ThreadPoolExecutor() as pool:  # OpenCV lets go of the interpreter while it decodes
        for start in range(0, count, CHUNK):
            yield from pool.map(fit, range(start, min(start + CHUNK, count)))
