"""Concatenate the preprocessed images of several data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.preprocess import PreprocessSpec
from edgerec.data.cache import Pixels, pixels
from edgerec.data.raw_dataset import Merged
from edgerec.utils.progress import Listener


class MergedImages:
    """Lazily concatenated image arrays that support NumPy indexing.

    The arrays are uint8 and have the shape ``(N, height, width, channels)``.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, parts: Sequence[npt.NDArray[np.uint8]]) -> None:
        self._parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, selection: Any) -> npt.NDArray[np.uint8]:
        """Return the image at an integer index, or the images selected by a slice, an index array or a Boolean mask."""
        if isinstance(selection, tuple):
            raise IndexError(f"expected one index, got {len(selection)}: use images[position][row]")
        if isinstance(selection, slice):
            selection = np.arange(*selection.indices(len(self)))
        positions = np.asarray(selection)
        if positions.dtype == bool:
            positions = np.flatnonzero(positions)
        positions = np.where(positions < 0, positions + len(self), positions).astype(np.int64)
        if np.any((positions < 0) | (positions >= len(self))):
            raise IndexError(f"position {selection} is out of range for {len(self)} images")
        flat = positions.reshape(-1)
        images = np.empty((len(flat), *self.shape[1:]), np.uint8)
        for number, part in enumerate(self._parts):
            inside = np.flatnonzero(np.searchsorted(self._ends, flat, side="right") == number)
            images[inside] = part[flat[inside] - (self._ends[number] - len(part))]
        return images.reshape(*positions.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return all images as one array in memory."""
        return np.concatenate(self._parts).astype(dtype or np.uint8, copy=False)


def merged_pixels(source: Merged, spec: PreprocessSpec, listener: Listener) -> Pixels:
    """Return the preprocessed pixels of several merged data sets.

    The digest of the pixels does not depend on the order of the data sets.
    """
    parts = [pixels(part, spec, listener) for part in source.parts]
    digest = hashlib.sha256()
    for name, part in zip(source.part_names, parts, strict=True):
        digest.update(f"{name}\0{part.digest}\n".encode(errors="surrogateescape"))
    digest.update("\0".join(source.labels).encode(errors="surrogateescape"))
    images = MergedImages([part.images for part in parts])
    valid, contents = (np.concatenate([getattr(part, key) for part in parts]) for key in ("valid", "contents"))
    return Pixels(images, valid, digest.hexdigest(), contents)
