"""Load calibration images from a calibration set, an image folder, or an .npz or .npy file."""

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
from edgerec.data.array_files import read_arrays
from edgerec.data.dataset import read_fitted
from edgerec.data.readers import folder
from edgerec.errors import DataError

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class CalibrationFinding:
    """An error, warning or note about a calibration set.

    Attributes:
        severity: ``error`` if the set cannot be used, ``warning`` if the set may reduce accuracy, otherwise ``note``.
        kind: identifier for scripts, such as ``range`` or ``test-overlap``.
        where: the affected images, array or file.
        what: the problem, and the expected value.
        advice: the recommended action.
    """

    severity: Severity
    kind: str
    where: str
    what: str
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as a JSON-serializable dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.advice}"


@dataclass(frozen=True)
class CandidateSet:
    """Preprocessed candidate images for calibration.

    Attributes:
        where: the path, for messages.
        images: uint8 ``(N, H, W, C)``, or an empty array if the values cannot be interpreted as pixels.
        names: name of each image, for messages.
        labels: label of each image, or None if the labels are unknown.
        preprocess: preprocessing of the images, or None if it is unknown.
        digest: SHA-256 of the pixels.
        findings: problems found while reading the images.
    """

    where: str
    images: npt.NDArray[np.uint8]
    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    preprocess: PreprocessSpec | None
    digest: str
    findings: tuple[CalibrationFinding, ...] = ()


def candidate_from_set(stored: CalibrationSet, where: str) -> CandidateSet:
    """Create a :class:`CandidateSet` from a calibration set."""
    return CandidateSet(where, stored.images, stored.names, stored.labels, stored.preprocess, stored.digest)


def open_candidate(path: Path, spec: PreprocessSpec, labels: Sequence[str]) -> CandidateSet:
    """Load candidate images for calibration.

    Args:
        path: a calibration set, an image folder, or a file with an array of images and optionally an array of classes.
        spec: preprocessing of the images in an image folder.
        labels: labels of the model. Integer classes in a file index these labels, unless the file has its own.

    Raises:
        DataError: ``path`` does not exist, has another format, or is damaged.
    """
    if is_set(path):
        return _set(path)
    if path.is_dir():
        return _folder(path, spec)
    if path.suffix in (".npz", ".npy") and path.is_file():
        return _arrays(path, labels)
    if path.exists():
        raise DataError(f"cannot read {path}: expected a calibration set, an image folder, or an .npz or .npy file")
    raise DataError(f"{path} does not exist: create a calibration set with edgerec calibration make")


def _set(path: Path) -> CandidateSet:
    stored = calibration_set.read(path, verify=False)
    actual = digest_of(stored.images)
    findings: tuple[CalibrationFinding, ...] = ()
    if actual != stored.digest:
        findings = (
            CalibrationFinding(
                "error",
                "digest",
                f"{path}/{calibration_set.ABOUT}",
                f"images were changed: their SHA-256 is {actual[:12]}…, but the recorded one is {stored.digest[:12]}…",
                calibration_set.COPY_AGAIN,
            ),
        )
    return CandidateSet(str(path), stored.images, stored.names, stored.labels, stored.preprocess, actual, findings)


def _folder(path: Path, spec: PreprocessSpec) -> CandidateSet:
    files = folder(path)
    fitted = [read_fitted(files, i, spec) for i in range(len(files.paths))]
    valid = [(i, image) for i, image in enumerate(fitted) if image is not None]
    names = [file.relative_to(path).as_posix() for file in files.paths]
    skipped = [names[i] for i, image in enumerate(fitted) if image is None]
    if not valid:
        raise DataError(
            f"{path} contains no images, only other files such as {skipped[0]}: choose a folder with images"
        )
    images = np.stack([image for _, image in valid])
    findings = (
        [CalibrationFinding("warning", "not-an-image", listed(skipped), "not an image", "remove it")] if skipped else []
    )
    return CandidateSet(
        str(path),
        images,
        tuple(names[i] for i, _ in valid),
        tuple(files.labels[files.classes[i]] for i, _ in valid),
        spec,
        digest_of(images),
        tuple(findings),
    )


def _arrays(path: Path, labels: Sequence[str]) -> CandidateSet:
    """Load the image array and the optional label array of an .npz or .npy file."""
    arrays = read_arrays(path)
    image_arrays = [name for name, array in arrays.items() if array.ndim in (3, 4) and array.dtype.kind in "buif"]
    if len(image_arrays) != 1 or not arrays[image_arrays[0]].size:
        have = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise DataError(f"{path} contains {have}: expected one array of images, uint8 (N, H, W, C)")
    name = image_arrays[0]
    where = f"{path}: {name}"
    array, findings = _channels_last(arrays[name], where)
    pixels, more = _pixels(array, where)
    names = tuple(f"{name}[{i}]" for i in range(len(pixels)))
    named = [
        tuple(map(str, a)) for a in arrays.values() if a.dtype.kind == "U" and a.ndim == 1 and len(a) != len(array)
    ]
    known = [_label_names(a, named[0] if named else labels) for a in arrays.values() if a.shape == (len(array),)]
    label_names = next((names for names in known if names is not None), None)
    return CandidateSet(str(path), pixels, names, label_names, None, digest_of(pixels), (*findings, *more))


def _label_names(array: npt.NDArray[Any], labels: Sequence[str]) -> tuple[str, ...] | None:
    if array.dtype.kind == "U":
        return tuple(map(str, array))
    if array.dtype.kind not in "iu":
        return None
    return tuple(labels[i] if 0 <= i < len(labels) else f"index {i}" for i in array.tolist())


def _channels_last(array: npt.NDArray[Any], where: str) -> tuple[npt.NDArray[Any], list[CalibrationFinding]]:
    if array.ndim == 3:
        return array[..., np.newaxis], []
    if array.shape[3] in (1, 3) or array.shape[1] not in (1, 3):
        return array, []
    what = f"the shape is {array.shape}, channels first; expected (N, H, W, C)"
    return array.transpose(0, 2, 3, 1), [
        CalibrationFinding("error", "layout", where, what, "transpose it: (0, 2, 3, 1)")
    ]


def _pixels(array: npt.NDArray[Any], where: str) -> tuple[npt.NDArray[np.uint8], list[CalibrationFinding]]:
    """Convert an array to uint8 pixels of shape ``(N, H, W, C)``, after checking the type and range of its values."""
    low, high = float(array.min()), float(array.max())
    span = f"{array.dtype} from {low:g} to {high:g}"
    expected = "expected uint8 from 0 to 255"

    def wrong(what: str, advice: str, severity: Severity = "error") -> list[CalibrationFinding]:
        return [CalibrationFinding(severity, "range", where, f"{span}: {what}, {expected}", advice)]

    before_normalization = "save the pixels before the normalization, as uint8"
    if not np.isfinite(array).all():
        findings = wrong("the array contains NaN or infinite values", "check how the file was written")
        return np.empty((0, *array.shape[1:]), np.uint8), findings
    if array.dtype.kind != "f":
        if low >= 0 and high <= 1:
            findings = wrong("pixels were divided by 255 and rounded down", "save the pixels before the division")
            return array.astype(np.uint8), findings
        if array.dtype == np.uint8:
            return array, []
        if array.dtype == np.int8:
            findings = wrong("128 was subtracted from the pixels", "add 128, and save as uint8")
            return (array.astype(int) + 128).astype(np.uint8), findings
    elif low >= 0 and high <= 1:
        return _rounded(array * 255.0), wrong("pixels are already normalized to [0, 1]", before_normalization)
    elif low >= -1 and high <= 1:
        return _rounded((array + 1.0) * 127.5), wrong("pixels are already normalized to [-1, 1]", before_normalization)
    if low >= 0 and high <= 255:
        return _rounded(array), wrong("pixels have another type", "save them as uint8", "warning")
    findings = wrong("the pixels may have been normalized to mean 0 and standard deviation 1", before_normalization)
    return np.empty((0, *array.shape[1:]), np.uint8), findings


def _rounded(real: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.rint(real).clip(0, 255).astype(np.uint8)


def listed(names: Sequence[str], most: int = 3) -> str:
    """Join the first few names, followed by the number of remaining names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
