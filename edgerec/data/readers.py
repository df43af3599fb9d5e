"""Sources of images and labels: a built-in data set, an .npz file, an image folder, or several of these."""

from __future__ import annotations

import hashlib
import os
import sys
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.content import describe_file, reason
from edgerec.contract.image_files import Levels, SampleRange
from edgerec.data.directory_layout import find_layout
from edgerec.data.tfrecord_reader import SPLITS, is_pack, is_remote
from edgerec.errors import DataError, unknown
from edgerec.utils.atomic import real_path, user_path
from edgerec.utils.bounded import UnpackedSizeError, check_zip_file
from edgerec.utils.folders import visible_files
from edgerec.utils.optional import require
from edgerec.utils.text import is_printable


@dataclass(frozen=True)
class Arrays:
    """Images in memory.

    Attributes:
        images: uint8 ``(N, H, W)`` gray, ``(N, H, W, 1)`` or ``(N, H, W, 3)`` RGB.
        classes: ``(N,)`` indices into ``labels``.
        splits: ``(N,)``, the data's own split of each image (``train``, ``val`` or ``test``); empty strings if it has
            none.
        labels: name of each class.
        name: name of the data set, used in error messages and in the names of the images.
        levels: the values that were converted to black (0) and white (255) if the arrays had more than 8 bits.
    """

    images: npt.NDArray[np.uint8]
    classes: npt.NDArray[np.int64]
    splits: npt.NDArray[np.str_]
    labels: tuple[str, ...]
    name: str = "array"
    levels: Levels | None = None

    @property
    def names(self) -> list[str]:
        """Name of each image, such as ``digits[7]``."""
        return [f"{self.name}[{i}]" for i in range(len(self.classes))]

    def locate(self, position: int) -> tuple[Arrays | Files, int]:
        """Return the data set that has the image at a position, and its position there."""
        return self, position


@dataclass(frozen=True)
class Files:
    """Files of an image folder. Some of them may not be images, because they have not been opened yet.

    The attributes that are not listed here are as in :class:`Arrays`.

    Attributes:
        root: the image folder.
        paths: path of each file.
        warnings: sentences for the user about an unusual folder structure.
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
        """Path of each file relative to the image folder."""
        return [path.relative_to(self.root).as_posix() for path in self.paths]

    def below_class_folder(self, position: int) -> str:
        """Return a file's path below its class folder, such as ``anna/monday/1.jpg``."""
        folder = self.class_folders[position] if self.class_folders else self.paths[position].parent
        return self.paths[position].relative_to(folder).as_posix()

    def locate(self, position: int) -> tuple[Arrays | Files, int]:
        """Return the data set that has the image at a position, and its position there."""
        return self, position


@dataclass(frozen=True)
class Merged:
    """Several data sets that are used as one, sorted by name.

    The attributes that are not listed here are as in :class:`Arrays`.

    Attributes:
        parts: the data sets. Their ``classes`` are indices into the merged labels.
        part_names: unique name of each data set, used as the prefix of its image names.
    """

    parts: tuple[Arrays | Files, ...]
    part_names: tuple[str, ...]

    @classmethod
    def of(cls, parts: Sequence[Arrays | Files]) -> Merged:
        """Merge data sets: the classes are the union of their labels, and each part keeps its own splits.

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
        """Names of all data sets, joined by ``+``."""
        return " + ".join(self.part_names)

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.parts[0].labels

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """``(N,)`` indices into ``labels``."""
        return np.concatenate([part.classes for part in self.parts])

    @property
    def splits(self) -> npt.NDArray[np.str_]:
        """``(N,)``, ``train``, ``val`` or ``test`` for each image; empty strings for data sets without splits."""
        return np.concatenate([part.splits for part in self.parts])

    @property
    def names(self) -> list[str]:
        """Name of each image: the data set's name, followed by the path relative to the data set's folder."""
        return [
            name if isinstance(part, Arrays) else f"{own}/{name}"
            for part, own in zip(self.parts, self.part_names, strict=True)
            for name in part.names
        ]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of all data sets, as sentences for the user."""
        return tuple(text for part in self.parts if isinstance(part, Files) for text in part.warnings)

    def locate(self, position: int) -> tuple[Arrays | Files, int]:
        """Return the data set that has the image at a position, and its position there."""
        for part in self.parts:
            if position < len(part.classes):
                return part, position
            position -= len(part.classes)
        raise IndexError(position)


def _identity(part: Arrays | Files) -> bytes:
    """Return a digest that distinguishes data sets of the same name, independently of their location."""
    if isinstance(part, Arrays):
        return hashlib.sha256(np.ascontiguousarray(part.images).tobytes()).digest()
    return hashlib.sha256(b"\0".join(map(os.fsencode, part.names))).digest()


Source = Arrays | Files | Merged


def find(source: str | Sequence[str], *, flat: bool = False, levels: Levels | None = None) -> Source:
    """Read the arrays, or list the files, of the data set ``source``.

    Args:
        source: a data set's name, an .npz file or an image folder, or several of them to merge.
        flat: accept images without class folders; they have no labels.
        levels: the values that become black (0) and white (255) in arrays with more than 8 bits. None determines the
            values from the data.

    Raises:
        DataError: the data set does not exist or cannot be used.
    """
    names = [source] if isinstance(source, str) else list(source)
    refuse_missing(names)
    if len(names) == 1:
        return _find_one(names[0], flat=flat, levels=levels)
    distinct = {name if name in NAMED else str(real_path(user_path(name))) for name in names}
    if len(distinct) < len(names):
        raise DataError(f"The same data set is given twice ({', '.join(names)}): name each data set once")
    return Merged.of([_find_one(name, flat=flat, levels=levels) for name in names])


def _find_one(source: str, *, flat: bool, levels: Levels | None) -> Arrays | Files:
    if source in NAMED:
        return NAMED[source]()
    path = user_path(source)
    if is_pack(source):
        raise DataError(
            f"{source} is packed data, but this command needs the original images: give the folder that was packed"
        )
    if path.is_dir():
        return folder(path, flat=flat)
    if path.suffix == ".npz" and path.is_file():
        return npz(path, levels)
    kind = describe_file(path)
    raise DataError(
        f"{path} is neither an image folder nor an .npz file{f' (it {kind})' if kind else ''}: give one of these"
    )


def refuse_missing(source: str | Sequence[str]) -> None:
    """Raise :class:`DataError` if no data set of this name or path exists, without reading any images."""
    for name in [source] if isinstance(source, str) else source:
        if name in NAMED or is_remote(name):
            continue
        path = user_path(name)
        if path.exists():
            continue
        if path.name == name:
            raise DataError(f"{unknown('data set', name, NAMED)}; there is no file or folder of this name either")
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        missing = path.absolute().relative_to(parent).parts[0]
        raise DataError(
            f"There are no images at {name}, because {parent} has no {missing!r}. "
            "If the images were moved, set --data to their new location"
        )


def folder(root: Path, *, flat: bool = False) -> Files:
    """List the files of an image folder in one of the layouts of :func:`edgerec.data.directory_layout.find_layout`.

    Raises:
        DataError: there are no class folders, the layout is ambiguous, or the class folders contain no files.
    """
    layout = find_layout(root, flat=flat)
    labels = tuple(sorted({folder.label for folder in layout.folders if folder.label}))
    for label in labels:
        if not is_printable(label):
            reason = (
                "is not valid UTF-8" if any("\udc80" <= c <= "\udcff" for c in label) else "has a control character"
            )
            raise DataError(f"{root} has a class folder {label!r}, whose name {reason}: rename it")
    order = {split: number for number, split in enumerate(("", *SPLITS))}
    paths: list[Path] = []
    classes: list[int] = []
    splits: list[str] = []
    class_folders: list[Path] = []
    for class_folder in sorted(layout.folders, key=lambda folder: (order[folder.split], folder.label)):
        files = visible_files(class_folder.path, below=bool(class_folder.label))
        paths += files
        classes += [labels.index(class_folder.label) if class_folder.label else 0] * len(files)
        splits += [class_folder.split] * len(files)
        class_folders += [class_folder.path] * len(files)
    if not paths and labels:
        raise DataError(
            f"{root} has no images in its {len(labels)} class folders ({', '.join(labels[:5])} …): add images"
        )
    return Files(
        root,
        tuple(paths),
        np.array(classes, np.int64),
        np.array(splits, str),
        labels,
        layout.warnings,
        tuple(class_folders),
    )


def npz(path: Path, levels: Levels | None = None) -> Arrays:
    """Read ``x_train, y_train[, x_val, y_val][, x_test, y_test][, labels]`` from an .npz file, without unpickling.

    Args:
        path: the file.
        levels: the values that become black (0) and white (255) if the arrays have more than 8 bits. None determines
            the values from all images in the file.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is not an .npz file: {reason(path, 'it has another format')}. Write the file with numpy.savez"
        )
    values = read_arrays(path)
    for name in ("x_train", "y_train"):
        if name not in values:
            present = ", ".join(sorted(values)) or "no arrays"
            raise DataError(f"{path} has {present}, but {name} is missing: add the arrays x_train and y_train")
    return replace(_from_arrays(values, str(path), levels), name=path.name)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an .npz file by name, or the array of an .npy file under the name ``array``.

    Raises:
        DataError: the file is damaged, is too large for the memory, or contains pickled objects, which are never
            unpickled.
    """
    try:
        values = _load(path)
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, tokenize.TokenError, RuntimeError, OSError, EOFError) as error:
        raise DataError(f"{path} is not an {path.suffix} file: {reason(path, error)}") from None
    except MemoryError:
        raise DataError(f"{path} cannot be read: its arrays do not fit into memory. Store fewer images in it") from None
    except ValueError as error:
        if "pickle" in str(error):
            raise DataError(
                f"{path} is refused, because it contains pickled objects, which can execute code when they are read: "
                "save plain uint8 and integer arrays with numpy.savez"
            ) from None
        raise DataError(f"{path} cannot be read: {reason(path, error)}") from None
    if invalid := [name for name, value in values.items() if not isinstance(value, np.ndarray)]:
        raise DataError(f"{path}: {invalid[0]} is not a NumPy array: save only arrays, with numpy.savez")
    return values


def _load(path: Path) -> dict[str, Any]:
    if zipfile.is_zipfile(path):
        try:
            check_zip_file(path, sys.maxsize, MAX_NPZ_RATIO)
        except UnpackedSizeError as error:
            raise DataError(f"{path} cannot be read: {error}, which is not plausible for images") from None
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    with path.open("rb") as npy_file:
        return {"array": np.lib.format.read_array(npy_file, allow_pickle=False)}


def _from_arrays(values: dict[str, Any], where: str, levels: Levels | None = None) -> Arrays:
    above_8_bits = [values[key] for name in SPLITS if is_above_8_bits(values.get(key := f"x_{name}"))]
    levels = (levels or levels_of(above_8_bits)) if above_8_bits else None
    images: list[npt.NDArray[np.uint8]] = []
    targets: list[npt.NDArray[Any]] = []
    splits: list[str] = []
    for split in SPLITS:
        if f"x_{split}" not in values:
            continue
        if f"y_{split}" not in values:
            raise DataError(f"{where} has x_{split} but no y_{split}: add the classes of these images as y_{split}")
        x, y = _pixels(values[f"x_{split}"], f"{where}: x_{split}", levels), values[f"y_{split}"]
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or len(y) != len(x):
            raise DataError(
                f"{where}: y_{split} is {y.dtype} {y.shape}, expected integers of shape ({len(x)},), one per image"
            )
        if images and x.shape[1:] != images[0].shape[1:]:
            raise DataError(
                f"{where}: x_{split} has shape {x.shape}, but x_train has shape {images[0].shape}: expected images of "
                "the same size"
            )
        images.append(x)
        targets.append(y)
        splits += [split] * len(x)
    known, classes = np.unique(np.concatenate(targets), return_inverse=True)
    labels = tuple(str(value) for value in known)
    if "labels" in values:
        names = values["labels"]
        if names.dtype.kind != "U" or names.ndim != 1 or known.min() < 0 or known.max() >= len(names):
            raise DataError(f"{where}: labels is {names.dtype} {names.shape}, expected one string per class")
        labels = tuple(str(names[value]) for value in known)
        if len(set(labels)) != len(labels) or not all(map(is_printable, labels)):
            raise DataError(
                f"{where}: labels contains a string twice, or a string with a control character: use unique, printable "
                "strings"
            )
    own_splits = len(images) > 1
    tags = np.array(splits if own_splits else [""] * len(splits))
    return Arrays(np.concatenate(images), classes.astype(np.int64), tags, labels, where, levels)


def is_above_8_bits(x: Any) -> bool:
    """Return whether an array has integers of more than 8 bits, such as images of X-ray and thermal cameras."""
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "iu" or x.dtype.itemsize < 2 or not x.size:
        return False
    low, high = int(x.min()), int(x.max())
    return low >= -32768 and 255 < high <= 65535


def levels_of(arrays: Sequence[npt.NDArray[Any]]) -> Levels:
    """Return the values that become black (0) and white (255) in arrays with more than 8 bits per sample."""
    total = SampleRange.of_samples(arrays[0])
    for array in arrays[1:]:
        total += SampleRange.of_samples(array)
    return total.levels


def _pixels(x: npt.NDArray[Any], where: str, levels: Levels | None) -> npt.NDArray[np.uint8]:
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)) or 0 in x.shape:
        raise DataError(f"{where} is {x.shape}, expected (N, H, W), (N, H, W, 1) or (N, H, W, 3)")
    if x.dtype == np.uint8:
        return x
    if levels is not None and x.dtype.kind in "iu":
        return levels.apply(x)
    if x.dtype.kind not in "iuf":
        raise DataError(f"{where} is {x.dtype}, expected uint8 pixels")
    low, high = float(x.min()), float(x.max())
    factor = 255 if x.dtype.kind == "f" and high <= 1 else 1
    if not 0 <= low <= high <= 255:  # comparisons with NaN are false, so that NaN is rejected as well
        raise DataError(
            f"{where} is {x.dtype} with values from {low:g} to {high:g}, expected pixel values in 0…255 or 0…1"
        )
    return np.rint(x * factor).astype(np.uint8)


def _digits() -> Arrays:
    bunch = require("sklearn.datasets").load_digits()
    values = {"x_train": np.rint(bunch.images * (255 / 16)).astype(np.uint8), "y_train": bunch.target}
    return _from_arrays(values, "digits")


def _keras(name: str, labels: str = "") -> Callable[[], Arrays]:
    def download() -> Arrays:
        module = getattr(require("tf_keras").datasets, name)
        try:
            (x_train, y_train), (x_test, y_test) = module.load_data()
        except Exception as error:  # Keras wraps every download error in a bare Exception
            reason = str(error).rpartition("-- ")[2] or type(error).__name__
            raise DataError(
                f"The data set {name} could not be downloaded ({reason}): connect this machine to the Internet once, "
                f"or pass the data as a file with --data {name}.npz"
            ) from None
        values = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
        if labels:
            values["labels"] = np.array(labels.split())
        return _from_arrays(values, name)

    return download


# Maximum compression ratio of an .npz file. It is high because images can be almost uniform. Deflate cannot exceed this
# ratio, but bzip2 and LZMA can.
MAX_NPZ_RATIO = 1100
NAMED: dict[str, Callable[[], Arrays]] = {
    "digits": _digits,
    "mnist": _keras("mnist"),
    "fashion_mnist": _keras("fashion_mnist", "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot"),
    "cifar10": _keras("cifar10", "airplane automobile bird cat deer dog frog horse ship truck"),
    "cifar100": _keras("cifar100"),
}
