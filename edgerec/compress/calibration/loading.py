"""Pictures that somebody offers for calibration, whatever they are: a set, an image folder, an .npz or .npy file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgerec.compress.calibration import calibration_set
from edgerec.compress.calibration.calibration_set import CalibrationSet, digest_of, is_set
from edgerec.contract.preprocess import PreprocessSpec
from edgerec.data import readers as sources
from edgerec.data.dataset import read_fitted
from edgerec.errors import DataError

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """Something about a calibration set that a person should know.

    Attributes:
        severity: an ``error`` makes the set unfit, a ``warning`` can cost accuracy, a ``note`` is to be known.
        kind: one word for scripts, as ``range`` or ``test-overlap``.
        where: the pictures, the array or the file.
        what: what is the case, and what was expected.
        advice: what to do.
    """

    severity: Severity
    kind: str
    where: str
    what: str
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.advice}"


@dataclass(frozen=True)
class Offered:
    """What was offered, as pixels.

    Attributes:
        where: the path, as it was given.
        images: uint8 ``(N, H, W, C)``; none where the numbers cannot be read as pixels.
        names: of each picture, for people.
        labels: of each picture: its label, its index as text, or None where the labels are not known.
        preprocess: how they were made, where that is known.
        digest: SHA-256 over the pixels.
        findings: what was found by opening.
    """

    where: str
    images: npt.NDArray[np.uint8]
    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    preprocess: PreprocessSpec | None
    digest: str
    findings: tuple[Finding, ...] = ()


def of_set(found: CalibrationSet, where: str) -> Offered:
    """A calibration set."""
    return Offered(where, found.images, found.names, found.labels, found.preprocess, found.digest)


def open_offered(path: Path, spec: PreprocessSpec, labels: Sequence[str]) -> Offered:
    """Open whatever ``path`` is.

    Args:
        path: a calibration set, an image folder, or a file with an array of pictures and perhaps one of labels.
        spec: what the pictures of an image folder become.
        labels: the model's, which integer classes in a file mean where it names none itself.

    Raises:
        DataError: nothing of the kind, or damaged.
    """
    if is_set(path):
        return _set(path)
    if path.is_dir():
        return _folder(path, spec)
    if path.suffix in (".npz", ".npy") and path.is_file():
        return _arrays(path, labels)
    if path.exists():
        raise DataError(f"{path} is neither a calibration set, an image folder, an .npz nor an .npy file")
    raise DataError(f"{path} does not exist; edgerec calibration make writes a calibration set")


def _set(path: Path) -> Offered:
    found = calibration_set.read(path, verify=False)
    actual = digest_of(found.images)
    findings: tuple[Finding, ...] = ()
    if actual != found.digest:
        findings = (
            Finding(
                "error",
                "digest",
                f"{path}/{calibration_set.ABOUT}",
                f"the pictures' SHA-256 is {actual[:12]}…, recorded is {found.digest[:12]}…: pictures were changed",
                "copy the set again, or make it again",
            ),
        )
    return Offered(str(path), found.images, found.names, found.labels, found.preprocess, actual, findings)


def _folder(path: Path, spec: PreprocessSpec) -> Offered:
    files = sources.folder(path)
    fitted = [read_fitted(files, i, spec) for i in range(len(files.paths))]
    valid = [(i, image) for i, image in enumerate(fitted) if image is not None]
    names = [file.relative_to(path).as_posix() for file in files.paths]
    skipped = [names[i] for i, image in enumerate(fitted) if image is None]
    if not valid:
        raise DataError(f"{path} has no pictures, only other files ({skipped[0]} …)")
    images = np.stack([image for _, image in valid])
    findings = [Finding("warning", "no-picture", listed(skipped), "no picture", "remove it")] if skipped else []
    return Offered(
        str(path),
        images,
        tuple(names[i] for i, _ in valid),
        tuple(files.labels[files.classes[i]] for i, _ in valid),
        spec,
        digest_of(images),
        tuple(findings),
    )


def _arrays(path: Path, labels: Sequence[str]) -> Offered:
    """The one array of pictures, by its dimensions; the one of classes, by its length."""
    arrays = sources.read_arrays(path)
    pictures = [name for name, array in arrays.items() if array.ndim in (3, 4) and array.dtype.kind in "buif"]
    if len(pictures) != 1 or not arrays[pictures[0]].size:
        have = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise DataError(f"{path} has {have}; expected one array of pictures, uint8 (N, H, W, C)")
    name = pictures[0]
    where = f"{path}: {name}"
    array, findings = _channels_last(arrays[name], where)
    pixels, more = _pixels(array, where)
    names = tuple(f"{name}[{i}]" for i in range(len(pixels)))
    named = [
        tuple(map(str, a)) for a in arrays.values() if a.dtype.kind == "U" and a.ndim == 1 and len(a) != len(array)
    ]
    known = [_texts(a, named[0] if named else labels) for a in arrays.values() if a.shape == (len(array),)]
    texts = next((found for found in known if found is not None), None)
    return Offered(str(path), pixels, names, texts, None, digest_of(pixels), (*findings, *more))


def _texts(array: npt.NDArray[Any], labels: Sequence[str]) -> tuple[str, ...] | None:
    if array.dtype.kind == "U":
        return tuple(map(str, array))
    if array.dtype.kind not in "iu":
        return None
    return tuple(labels[i] if 0 <= i < len(labels) else f"index {i}" for i in array.tolist())


def _channels_last(array: npt.NDArray[Any], where: str) -> tuple[npt.NDArray[Any], list[Finding]]:
    if array.ndim == 3:
        return array[..., np.newaxis], []
    if array.shape[3] in (1, 3) or array.shape[1] not in (1, 3):
        return array, []
    what = f"the shape is {array.shape}, channels first; expected (N, H, W, C)"
    return array.transpose(0, 2, 3, 1), [Finding("error", "layout", where, what, "transpose it: (0, 2, 3, 1)")]


def _pixels(array: npt.NDArray[Any], where: str) -> tuple[npt.NDArray[np.uint8], list[Finding]]:
    """The pixels that the numbers mean, uint8 ``(N, H, W, C)``, and what is wrong with their range or type."""
    low, high = float(array.min()), float(array.max())
    span = f"{array.dtype} from {low:g} to {high:g}"
    expected = "expected uint8 from 0 to 255"

    def wrong(what: str, advice: str, severity: Severity = "error") -> list[Finding]:
        return [Finding(severity, "range", where, f"{span}: {what}, {expected}", advice)]

    if not np.isfinite(array).all():
        found = wrong("not all are numbers", "look where the NaN or infinity comes from")
        return np.empty((0, *array.shape[1:]), np.uint8), found
    if array.dtype.kind != "f":
        if low >= 0 and high <= 1:
            return array.astype(np.uint8), wrong("pixels divided by 255 and cut off", "cast to uint8 before dividing")
        if array.dtype == np.uint8:
            return array, []
        if array.dtype == np.int8:
            return (array.astype(int) + 128).astype(np.uint8), wrong("pixels minus 128", "add 128, as uint8")
    elif low >= 0 and high <= 1:
        return _rounded(array * 255.0), wrong("pixels already normalised to [0, 1]", "multiply by 255, as uint8")
    elif low >= -1 and high <= 1:
        return _rounded((array + 1.0) * 127.5), wrong("pixels already normalised to [-1, 1]", "keep them as uint8")
    if low >= 0 and high <= 255:
        return _rounded(array), wrong("the range of pixels but not their type", "save it as uint8", "warning")
    found = wrong("neither pixels nor [0, 1] nor [-1, 1]; mean and deviation taken off?", "keep the pixels as uint8")
    return np.empty((0, *array.shape[1:]), np.uint8), found


def _rounded(real: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.rint(real).clip(0, 255).astype(np.uint8)


def listed(names: Sequence[str], most: int = 3) -> str:
    """A few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
