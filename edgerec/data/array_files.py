"""Read images from .npz files or from arrays in memory."""

from __future__ import annotations

import sys
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.format_detection import reason
from edgerec.contract.image_decoding import Levels, SampleRange
from edgerec.data.raw_dataset import Arrays
from edgerec.data.tfrecord_reader import SPLITS
from edgerec.errors import DataError
from edgerec.utils.bounded_parsing import UnpackedSizeError, check_zip_file
from edgerec.utils.text import is_printable

# Maximum compression ratio of an .npz file, slightly above the maximum of Deflate (1032).
MAX_NPZ_RATIO = 1100


def npz(path: Path, levels: Levels | None = None) -> Arrays:
    """Read the images and labels of a data set from an .npz file.

    The file must contain the arrays ``x_train`` and ``y_train``. The arrays ``x_val``, ``y_val``, ``x_test``,
    ``y_test`` and ``labels`` are optional. Pickled objects are refused.

    Args:
        path: the file.
        levels: values that are mapped to black (0) and white (255) if the arrays have more than 8 bits per sample. None
            to determine them from all images in the file.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is not an .npz file: {reason(path, 'it has another format')}: create the file with numpy.savez"
        )
    values = read_arrays(path)
    for name in ("x_train", "y_train"):
        if name not in values:
            present = ", ".join(sorted(values)) or "no arrays"
            raise DataError(f"{path} contains {present} but no {name}: add the arrays x_train and y_train")
    return replace(from_arrays(values, str(path), levels), name=path.name)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays in an .npz file as a dictionary, keyed by name.

    The array of an .npy file gets the name ``array``.

    Raises:
        DataError: the file is damaged, does not fit into memory, or contains pickled objects.
    """
    try:
        values = _load(path)
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, tokenize.TokenError, RuntimeError, OSError, EOFError) as error:
        raise DataError(f"{path} is not an {path.suffix} file: {reason(path, error)}") from None
    except MemoryError:
        raise DataError(f"{path} does not fit into memory: use a smaller file") from None
    except ValueError as error:
        if "pickle" in str(error):
            raise DataError(
                f"{path} cannot be used, because it contains pickled objects, which can execute code when loaded: "
                "save plain uint8 and integer arrays with numpy.savez"
            ) from None
        raise DataError(f"{path} cannot be read: {reason(path, error)}") from None
    if invalid := [name for name, value in values.items() if not isinstance(value, np.ndarray)]:
        raise DataError(f"{path}: {invalid[0]} is not a NumPy array: save only arrays with numpy.savez")
    return values


def _load(path: Path) -> dict[str, Any]:
    if zipfile.is_zipfile(path):
        try:
            check_zip_file(path, sys.maxsize, MAX_NPZ_RATIO)
        except UnpackedSizeError as error:
            raise DataError(f"{path} cannot be read as images: {error}") from None
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    with path.open("rb") as npy_file:
        return {"array": np.lib.format.read_array(npy_file, allow_pickle=False)}


def from_arrays(values: dict[str, Any], where: str, levels: Levels | None = None) -> Arrays:
    """Create a data set from named arrays, such as ``x_train`` and ``y_train``.

    Args:
        values: arrays with the names that :func:`npz` reads.
        where: name of the data set or file, for error messages.
        levels: as for :func:`npz`.
    """
    above_8_bits = [values[key] for name in SPLITS if is_above_8_bits(values.get(key := f"x_{name}"))]
    levels = (levels or levels_of(above_8_bits)) if above_8_bits else None
    images: list[npt.NDArray[np.uint8]] = []
    targets: list[npt.NDArray[Any]] = []
    splits: list[str] = []
    for split in SPLITS:
        if f"x_{split}" not in values:
            continue
        if f"y_{split}" not in values:
            raise DataError(f"{where} has x_{split} but no y_{split}: add the class of each image as y_{split}")
        x, y = _pixels(values[f"x_{split}"], f"{where}: x_{split}", levels), values[f"y_{split}"]
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or len(y) != len(x):
            raise DataError(
                f"{where}: y_{split} has dtype {y.dtype} and shape {y.shape}, expected integers of shape "
                f"({len(x)},), one per image"
            )
        if images and x.shape[1:] != images[0].shape[1:]:
            raise DataError(
                f"{where}: x_{split} has shape {x.shape}, but x_train has shape {images[0].shape}: all images must "
                "have the same size"
            )
        images.append(x)
        targets.append(y)
        splits += [split] * len(x)
    _refuse_different_ranges(values, where)
    known, classes = np.unique(np.concatenate(targets), return_inverse=True)
    labels = tuple(str(value) for value in known)
    if "labels" in values:
        names = values["labels"]
        if names.dtype.kind != "U" or names.ndim != 1 or known.min() < 0 or known.max() >= len(names):
            raise DataError(
                f"{where}: the array 'labels' has dtype {names.dtype} and shape {names.shape}, expected one "
                "string per class"
            )
        labels = tuple(str(names[value]) for value in known)
        if len(set(labels)) != len(labels) or not all(map(is_printable, labels)):
            raise DataError(
                f"{where}: the array 'labels' contains a duplicate or a control character: use unique, "
                "printable strings"
            )
    own_splits = len(images) > 1
    tags = np.array(splits if own_splits else [""] * len(splits))
    return Arrays(np.concatenate(images), classes.astype(np.int64), tags, labels, where, levels)


def is_above_8_bits(x: Any) -> bool:
    """Return whether an array contains integers of more than 8 bits, e.g. from a thermal camera."""
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "iu" or x.dtype.itemsize < 2 or not x.size:
        return False
    low, high = int(x.min()), int(x.max())
    return low >= -32768 and 255 < high <= 65535


def levels_of(arrays: Sequence[npt.NDArray[Any]]) -> Levels:
    """Return the sample values that are mapped to black and white in 16-bit arrays."""
    total = SampleRange.of_samples(arrays[0])
    for array in arrays[1:]:
        total += SampleRange.of_samples(array)
    return total.levels


def _pixels(x: npt.NDArray[Any], where: str, levels: Levels | None) -> npt.NDArray[np.uint8]:
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)) or 0 in x.shape:
        raise DataError(f"{where} has shape {x.shape}, expected (N, H, W), (N, H, W, 1) or (N, H, W, 3)")
    if x.dtype == np.uint8:
        return x
    if levels is not None and x.dtype.kind in "iu":
        return levels.apply(x)
    if x.dtype.kind not in "iuf":
        raise DataError(f"{where} has dtype {x.dtype}, expected uint8: convert the pixels to uint8")
    low, high = float(x.min()), float(x.max())
    factor = 255 if x.dtype.kind == "f" and high <= 1 else 1
    if not 0 <= low <= high <= 255:  # also rejects NaN
        raise DataError(f"{where} has {x.dtype} values from {low:g} to {high:g}, expected pixel values in 0…255 or 0…1")
    return np.rint(x * factor).astype(np.uint8)


def _refuse_different_ranges(values: dict[str, Any], where: str) -> None:
    """Raise :class:`DataError` if some floating-point images have values in 0…1 and others in 0…255.

    The range of an array is inferred from its values. Arrays with different ranges are probably a mistake, and an array
    of dark images in 0…255 must not be taken for images in 0…1. Black images are the same in both ranges.
    """
    images = {name: values[name] for name in (f"x_{split}" for split in SPLITS) if name in values}
    highest = {name: float(x.max()) for name, x in images.items() if x.dtype.kind == "f" and x.any()}
    if not highest:
        return
    low, high = min(highest, key=lambda name: highest[name]), max(highest, key=lambda name: highest[name])
    if highest[low] <= 1 < highest[high]:
        raise DataError(
            f"{where}: the values of {low} are at most {highest[low]:g}, but those of {high} are up to "
            f"{highest[high]:g}: use the same range in all arrays, 0…1 or 0…255, or convert them to uint8"
        )
