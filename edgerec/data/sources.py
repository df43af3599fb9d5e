"""Where pictures and labels come from: a name, an .npz file, or a folder."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.content import describe_file, reason
from edgerec.data.packed import SPLITS, is_pack, is_remote
from edgerec.errors import DataError, unknown
from edgerec.optional import require


@dataclass(frozen=True)
class Arrays:
    """Pictures already in memory.

    Attributes:
        images: uint8 ``(N, H, W)`` grey, ``(N, H, W, 1)`` or ``(N, H, W, 3)`` RGB.
        classes: ``(N,)`` indices into ``labels``.
        splits: ``(N,)`` of ``train``, ``val``, ``test``, as the data came.
    """

    images: npt.NDArray[np.uint8]
    classes: npt.NDArray[np.int64]
    splits: npt.NDArray[np.str_]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Files:
    """Files that should be pictures; the attributes are those of :class:`Arrays`."""

    root: Path
    paths: tuple[Path, ...]
    classes: npt.NDArray[np.int64]
    splits: npt.NDArray[np.str_]
    labels: tuple[str, ...]


def find(source: str, *, flat: bool = False) -> Arrays | Files:
    """Read or list ``source``; raises :class:`DataError` with what it could have been.

    With ``flat`` a folder of pictures without class folders will do, which has no labels then.
    """
    refuse_missing(source)
    if source in NAMED:
        return NAMED[source]()
    path = user_path(source)
    if is_pack(source):
        raise DataError(f"{source} is packed: this needs the pictures that it was packed from")
    if path.is_dir():
        return unlabelled(path) if flat and not _folders(path) else folder(path)
    if path.suffix == ".npz" and path.is_file():
        return npz(path)
    kind = describe_file(path)
    raise DataError(f"{path} is neither an image folder nor an .npz file{f': it {kind}' if kind else ''}")


def refuse_missing(source: str) -> None:
    """Raise :class:`DataError` where there is no data of that name or path; nothing is read."""
    if source not in NAMED and not is_remote(source) and not user_path(source).exists():
        raise DataError(f"{unknown('data set', source, NAMED)}; as a path it does not exist either")


def user_path(text: str) -> Path:
    """The path that a person wrote, with ``~`` for the home folder where there is one."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def folder(root: Path) -> Files:
    """``<class>/…`` or ``train|val|test/<class>/…``; a class is a folder's name, classes are sorted."""
    split_folders = [root / split for split in SPLITS if (root / split).is_dir()]
    if root / "train" in split_folders:
        strays = [p.name for p in _folders(root) if p.name not in SPLITS]
        if strays:
            raise DataError(f"{root} has train/ and also {strays[0]}/: expected only train/, val/ and test/")
        parts = [(path, path.name) for path in split_folders]
    else:
        parts = [(root, "train")]
    labels = sorted({path.name for part, _ in parts for path in _folders(part)})
    if odd := [label for label in labels if not label.isprintable()]:
        raise DataError(f"{root} has a class folder {odd[0]!r} with a control character in its name: rename it")
    if not labels:
        raise DataError(f"{root} has no class folders: expected {root}/<class>/*.jpg")
    paths, classes, splits = [], [], []
    for part, split in parts:
        for index, label in enumerate(labels):
            found = sorted(p for p in (part / label).rglob("*") if p.is_file() and p.name[0] != ".")
            paths += found
            classes += [index] * len(found)
            splits += [split] * len(found)
    if not paths:
        raise DataError(f"{root} has no pictures in its {len(labels)} class folders ({', '.join(labels[:5])} …)")
    own_splits = len(parts) > 1 or parts[0][0] != root
    tags = np.array(splits if own_splits else [""] * len(paths))
    return Files(root, tuple(paths), np.array(classes, np.int64), tags, tuple(labels))


def unlabelled(root: Path) -> Files:
    """Pictures that lie in a folder without class folders: no labels, and all of class 0."""
    paths = tuple(sorted(p for p in root.iterdir() if p.is_file() and p.name[0] != "."))
    return Files(root, paths, np.zeros(len(paths), np.int64), np.array([""] * len(paths)), ())


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != ".")


def npz(path: Path) -> Arrays:
    """``x_train, y_train[, x_val, y_val][, x_test, y_test][, labels]``; never unpickles."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an .npz file: {reason(path, 'it has another format')}. numpy.savez writes them")
    values = read_arrays(path)
    for name in ("x_train", "y_train"):
        if name not in values:
            raise DataError(f"{path} has {', '.join(sorted(values)) or 'no arrays'}; {name} is missing")
    return _from_arrays(values, str(path))


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file, or the one of an .npy file by the name ``array``; never unpickles."""
    try:
        values = _load(path)
    except (zipfile.BadZipFile, zlib.error, tokenize.TokenError, RuntimeError, OSError, EOFError) as error:
        raise DataError(f"{path} is not an {path.suffix} file: {reason(path, error)}") from None
    except MemoryError:
        raise DataError(f"{path} says that it holds more than the memory does: give fewer pictures") from None
    except ValueError as error:
        if "pickle" in str(error):
            raise DataError(
                f"{path} holds pickled objects, which can run code when read, and is refused: "
                "save plain uint8 and integer arrays with numpy.savez"
            ) from None
        raise DataError(f"{path} cannot be read: {reason(path, error)}") from None
    if odd := [name for name, value in values.items() if not isinstance(value, np.ndarray)]:
        raise DataError(f"{path}: {odd[0]} is no NumPy array")
    return values


def _load(path: Path) -> dict[str, Any]:
    if zipfile.is_zipfile(path):
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    with path.open("rb") as lone:
        return {"array": np.lib.format.read_array(lone, allow_pickle=False)}


def _from_arrays(values: dict[str, Any], where: str) -> Arrays:
    images: list[npt.NDArray[np.uint8]] = []
    targets: list[npt.NDArray[Any]] = []
    splits: list[str] = []
    for split in SPLITS:
        if f"x_{split}" not in values:
            continue
        if f"y_{split}" not in values:
            raise DataError(f"{where} has x_{split} but no y_{split}")
        x, y = _pixels(values[f"x_{split}"], f"{where}: x_{split}"), values[f"y_{split}"]
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or len(y) != len(x):
            raise DataError(
                f"{where}: y_{split} is {y.dtype} {y.shape}, expected integers ({len(x)},), one per picture"
            )
        if images and x.shape[1:] != images[0].shape[1:]:
            raise DataError(f"{where}: x_{split} is {x.shape}, x_train {images[0].shape}: expected the same size")
        images.append(x)
        targets.append(y)
        splits += [split] * len(x)
    known, classes = np.unique(np.concatenate(targets), return_inverse=True)
    labels = tuple(str(value) for value in known)
    if "labels" in values:
        names = values["labels"]
        if names.dtype.kind != "U" or names.ndim != 1 or known.min() < 0 or known.max() >= len(names):
            raise DataError(f"{where}: labels is {names.dtype} {names.shape}, expected one text per class")
        labels = tuple(str(names[value]) for value in known)
        if len(set(labels)) != len(labels) or not all(map(str.isprintable, labels)):
            raise DataError(f"{where}: labels has a text twice, or one with a control character")
    own_splits = len(images) > 1
    tags = np.array(splits if own_splits else [""] * len(splits))
    return Arrays(np.concatenate(images), classes.astype(np.int64), tags, labels)


def _pixels(x: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint8]:
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)) or 0 in x.shape:
        raise DataError(f"{where} is {x.shape}, expected (N, H, W), (N, H, W, 1) or (N, H, W, 3)")
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind not in "iuf":
        raise DataError(f"{where} is {x.dtype}, expected uint8 pixels")
    low, high = float(x.min()), float(x.max())
    factor = 255 if x.dtype.kind == "f" and high <= 1 else 1
    if not 0 <= low <= high <= 255:  # also false for NaN
        raise DataError(f"{where} is {x.dtype} from {low:g} to {high:g}, expected pixels in 0…255 or 0…1")
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
        except Exception as error:  # urllib raises a bare Exception around every cause
            reason = str(error).rpartition("-- ")[2] or type(error).__name__
            raise DataError(
                f"{name} could not be downloaded ({reason}): connect once, "
                f"or give the data as a file: --data {name}.npz"
            ) from None
        values = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
        if labels:
            values["labels"] = np.array(labels.split())
        return _from_arrays(values, name)

    return download


NAMED: dict[str, Callable[[], Arrays]] = {
    "digits": _digits,
    "mnist": _keras("mnist"),
    "fashion_mnist": _keras("fashion_mnist", "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot"),
    "cifar10": _keras("cifar10", "airplane automobile bird cat deer dog frog horse ship truck"),
    "cifar100": _keras("cifar100"),
}
