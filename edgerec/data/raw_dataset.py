"""Data sets whose images have not been preprocessed yet."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerec.contract.image_decoding import Levels
from edgerec.errors import DataError
from edgerec.utils.atomic import real_path


@dataclass(frozen=True)
class Arrays:
    """Images in memory.

    Attributes:
        images: uint8 ``(N, H, W)`` gray, ``(N, H, W, 1)`` or ``(N, H, W, 3)`` RGB.
        classes: ``(N,)`` indices into ``labels``.
        splits: ``(N,)``, the data's own split of each image (``train``, ``val`` or ``test``), or empty strings if the
            data has no splits.
        labels: name of each class.
        name: name of the data set, used in error messages and in the names of the images.
        levels: values that were mapped to black (0) and white (255) if the arrays had more than 8 bits per sample.
    """

    images: npt.NDArray[np.uint8]
    classes: npt.NDArray[np.int64]
    splits: npt.NDArray[np.str_]
    labels: tuple[str, ...]
    name: str = "array"
    levels: Levels | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and number of channels of each image."""
        height, width, *channels = self.images.shape[1:]
        return height, width, *(channels or [1])

    @property
    def names(self) -> list[str]:
        """Names of the images, such as ``digits[7]``."""
        return [f"{self.name}[{i}]" for i in range(len(self.classes))]

    def locate(self, position: int) -> tuple[Arrays | Files, int]:
        """Return the data set that contains an image, and the position of the image in this data set."""
        return self, position


@dataclass(frozen=True)
class Files:
    """The files in an image folder.

    The files have not been opened yet, so some of them may not be images. The attributes that are not
    listed here are as in :class:`Arrays`.

    Attributes:
        root: the image folder.
        paths: path of each file.
        warnings: warnings for the user about an unusual folder structure.
        class_folders: class folder of each file. If the data has splits, each class has one folder per split.
    """

    root: Path
    paths: tuple[Path, ...]
    classes: npt.NDArray[np.int64]
    splits: npt.NDArray[np.str_]
    labels: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    class_folders: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """Name of the image folder."""
        return real_path(self.root).name

    @property
    def names(self) -> list[str]:
        """Paths of the files relative to the image folder."""
        return [path.relative_to(self.root).as_posix() for path in self.paths]

    def below_class_folder(self, position: int) -> str:
        """Return the path of a file relative to its class folder, such as ``anna/monday/1.jpg``."""
        folder = self.class_folders[position] if self.class_folders else self.paths[position].parent
        return self.paths[position].relative_to(folder).as_posix()

    def locate(self, position: int) -> tuple[Arrays | Files, int]:
        """Return the data set that contains an image, and the position of the image in this data set."""
        return self, position


@dataclass(frozen=True)
class Merged:
    """Several data sets that are merged into one.

    The attributes that are not listed here are as in :class:`Arrays`.

    Attributes:
        parts: the data sets, sorted by name. Their ``classes`` are indices into the merged labels.
        part_names: unique name of each data set, used as the prefix of its image names.
    """

    parts: tuple[Arrays | Files, ...]
    part_names: tuple[str, ...]

    @classmethod
    def of(cls, parts: Sequence[Arrays | Files]) -> Merged:
        """Merge several data sets, including their labels and splits.

        Raises:
            DataError: one data set has labels and another one has none.
        """
        unlabeled = [part.name for part in parts if not part.labels]
        if unlabeled and len(unlabeled) < len(parts):
            raise DataError(
                f"{unlabeled[0]} has no class folders, but another data set has: move its images into class folders"
            )
        labels = tuple(sorted({label for part in parts for label in part.labels}))
        index_of = {label: index for index, label in enumerate(labels)}
        parts = sorted(parts, key=lambda part: (part.name, _identity(part)))
        counts = Counter(part.name for part in parts)
        merged: list[Arrays | Files] = []
        part_names: list[str] = []
        for part in parts:
            indices = np.array([index_of[label] for label in part.labels] or [0], np.int64)
            merged.append(replace(part, classes=indices[part.classes], labels=labels))
            number = sum(name.rpartition("#")[0] == part.name for name in part_names) + 1
            part_names.append(f"{part.name}#{number}" if counts[part.name] > 1 else part.name)
        return cls(tuple(merged), tuple(part_names))

    @property
    def name(self) -> str:
        """Names of the merged data sets, joined by ``+``."""
        return " + ".join(self.part_names)

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.parts[0].labels

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """Class of each image, as an index into ``labels``."""
        return np.concatenate([part.classes for part in self.parts])

    @property
    def splits(self) -> npt.NDArray[np.str_]:
        """Split of each image: ``train``, ``val``, ``test`` or an empty string."""
        return np.concatenate([part.splits for part in self.parts])

    @property
    def names(self) -> list[str]:
        """Names of the images, each of which starts with the name of its data set."""
        return [
            name if isinstance(part, Arrays) else f"{own}/{name}"
            for part, own in zip(self.parts, self.part_names, strict=True)
            for name in part.names
        ]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about unusual folder layouts."""
        return tuple(text for part in self.parts if isinstance(part, Files) for text in part.warnings)

    def locate(self, position: int) -> tuple[Arrays | Files, int]:
        """Return the data set that contains an image, and the position of the image in this data set."""
        for part in self.parts:
            if position < len(part.classes):
                return part, position
            position -= len(part.classes)
        raise IndexError(position)


def _identity(part: Arrays | Files) -> bytes:
    if isinstance(part, Arrays):
        return hashlib.sha256(np.ascontiguousarray(part.images).tobytes()).digest()
    return hashlib.sha256(b"\0".join(map(os.fsencode, part.names))).digest()


RawDataset = Arrays | Files | Merged
