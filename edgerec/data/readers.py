"""Find the images and labels of built-in data sets, .npz files and image folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgerec.contract.format_detection import describe_file
from edgerec.contract.image_decoding import Levels
from edgerec.data.array_files import from_arrays, npz
from edgerec.data.directory_layout import find_layout
from edgerec.data.raw_dataset import Arrays, Files, Merged, RawDataset
from edgerec.data.remote_files import is_remote
from edgerec.data.tfrecord_reader import SPLITS, is_pack
from edgerec.errors import DataError, unknown
from edgerec.utils.atomic import real_path, user_path
from edgerec.utils.folders import visible_files
from edgerec.utils.optional import require
from edgerec.utils.text import is_printable


def find(source: str | Sequence[str], *, flat: bool = False, levels: Levels | None = None) -> RawDataset:
    """Read the arrays of a data set, or list its image files.

    Args:
        source: a data set's name, an .npz file or an image folder, or several of them to merge.
        flat: accept images without class folders, which have no labels.
        levels: values that are mapped to black (0) and white (255) in arrays with more than 8 bits per sample. None
            to determine them from the data.

    Raises:
        DataError: the data set does not exist or cannot be used.
    """
    names = [source] if isinstance(source, str) else list(source)
    refuse_missing(names)
    if len(names) == 1:
        return _find_one(names[0], flat=flat, levels=levels)
    distinct = {name if name in NAMED else str(real_path(user_path(name))) for name in names}
    if len(distinct) < len(names):
        raise DataError(f"the same data set is listed twice ({', '.join(names)}): list each data set once")
    return Merged.of([_find_one(name, flat=flat, levels=levels) for name in names])


def _find_one(source: str, *, flat: bool, levels: Levels | None) -> Arrays | Files:
    if source in NAMED:
        return NAMED[source]()
    path = user_path(source)
    if is_pack(source):
        raise DataError(
            f"{source} is packed data, but this command needs the original images: use the folder that was packed"
        )
    if path.is_dir():
        return folder(path, flat=flat)
    if path.suffix == ".npz" and path.is_file():
        return npz(path, levels)
    kind = describe_file(path)
    raise DataError(
        f"{path} is neither an image folder nor an .npz file{f' (it {kind})' if kind else ''}: "
        "specify an image folder or an .npz file"
    )


def refuse_missing(source: str | Sequence[str]) -> None:
    """Raise :class:`DataError` if a data set does not exist."""
    for name in [source] if isinstance(source, str) else source:
        if name in NAMED or is_remote(name):
            continue
        path = user_path(name)
        if path.exists():
            continue
        if path.name == name:
            raise DataError(f"{unknown('data set', name, NAMED)}. No file or folder has this name either")
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        missing = path.absolute().relative_to(parent).parts[0]
        raise DataError(
            f"{name} does not exist: the folder {parent} has no {missing!r}. "
            "If the images were moved, set --data to their new location"
        )


def folder(root: Path, *, flat: bool = False) -> Files:
    """List the files of an image folder, with their classes and splits.

    :func:`edgerec.data.directory_layout.find_layout` describes the supported layouts.

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
            raise DataError(f"{root}: the name of the class folder {label!r} {reason}: rename the folder")
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


def _digits() -> Arrays:
    bunch = require("sklearn.datasets").load_digits()
    values = {"x_train": np.rint(bunch.images * (255 / 16)).astype(np.uint8), "y_train": bunch.target}
    return from_arrays(values, "digits")


def _keras(name: str, labels: str = "") -> Callable[[], Arrays]:
    def download() -> Arrays:
        module = getattr(require("tf_keras").datasets, name)
        try:
            (x_train, y_train), (x_test, y_test) = module.load_data()
        except Exception as error:  # Keras raises a bare Exception if a download fails.
            reason = str(error).rpartition("-- ")[2] or type(error).__name__
            raise DataError(
                f"The data set {name} could not be downloaded ({reason}): connect this machine to the Internet once, "
                f"or pass the data as a file with --data {name}.npz"
            ) from None
        values = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
        if labels:
            values["labels"] = np.array(labels.split())
        return from_arrays(values, name)

    return download


NAMED: dict[str, Callable[[], Arrays]] = {
    "digits": _digits,
    "mnist": _keras("mnist"),
    "fashion_mnist": _keras("fashion_mnist", "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot"),
    "cifar10": _keras("cifar10", "airplane automobile bird cat deer dog frog horse ship truck"),
    "cifar100": _keras("cifar100"),
}
