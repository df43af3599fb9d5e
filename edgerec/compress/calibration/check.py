"""Check a calibration set's size, range, channel order, classes, variety, and overlap with test images."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.calibration.channel_order import estimate_channel_order
from edgerec.compress.calibration.loading import CalibrationFinding, CandidateSet, listed, open_candidate
from edgerec.compress.calibration.sampling import stratified
from edgerec.contract.preprocess import PreprocessSpec
from edgerec.data import Dataset, Split
from edgerec.data.near_duplicates import NEAR_LEVELS, distances, nearest_neighbor_distances, thumbnails
from edgerec.recipe import DataSource
from edgerec.train.run import Run
from edgerec.utils.progress import Listener, ignore

# Minimum number of images for reliable activation ranges.
FEW = 10
# Slow checks use at most this number of training images and calibration images.
SAMPLE = 2000
# Slow checks use training images with at most this total size, in bytes.
SAMPLE_BYTES = 1 << 28
CHUNK = 256
MAKE = "create another set with edgerec calibration make"

Images = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CheckReport:
    """The problems found when checking whether a calibration set is suitable for a run's model."""

    set: str
    run: str
    images: int
    digest: str
    findings: tuple[CalibrationFinding, ...]

    @property
    def ok(self) -> bool:
        """True if the calibration set can be used, i.e. has no findings with the severity ``error``."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        return {"ok": self.ok} | vars(self) | {"findings": [finding.to_dict() for finding in self.findings]}


def check(
    path: str | Path, run: Run | str | Path, *, data: DataSource | None = None, listener: Listener = ignore
) -> CheckReport:
    """Check whether a calibration set is suitable for a run's model.

    Args:
        path: a calibration set, an image folder, or an .npz or .npy file with images.
        run: a finished run, or its path.
        data: current location of the run's images, if they were moved.
        listener: receives the progress.

    Raises:
        EdgerecError: ``path`` cannot be read, there is no such run, or its data cannot be found.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    candidate = open_candidate(Path(path), run.recipe.preprocess, run.labels)
    dataset, split = run.data(data, listener)
    findings = [*candidate.findings, *examine(candidate, dataset, split, run.recipe.preprocess)]
    return CheckReport(str(path), str(run.path), len(candidate.images), candidate.digest, tuple(findings))


def examine(
    candidate: CandidateSet, dataset: Dataset, split: Split, spec: PreprocessSpec | None = None
) -> Iterator[CalibrationFinding]:
    """Check calibration images, and yield all findings.

    Sets sampled from the same data's training images have no findings.

    Args:
        candidate: the images to check.
        dataset: the data set the model was trained on.
        split: the data set's training, validation and test images.
        spec: the model's preprocessing, to compare with that of the images.
    """
    images = candidate.images
    if not len(images):
        return
    if images.shape[1:] != dataset.images.shape[1:]:
        yield _other_shape(candidate, dataset)
        return
    if spec and candidate.preprocess and candidate.preprocess != spec:
        what = f"images were preprocessed with {candidate.preprocess}, but the model uses {spec}"
        yield CalibrationFinding("warning", "preprocess", candidate.where, what, MAKE)
    if len(images) < FEW:
        what = f"{len(images)} images are too few for reliable activation ranges, expected at least {FEW}"
        yield CalibrationFinding("warning", "few", candidate.where, what, "add images, 100 to 200 are enough")
    yield from _classes(candidate, dataset, split)
    trained = _is_in(images, dataset, split.train)
    yield from _held_out(candidate, dataset, split, trained)
    brightness_findings = list(_brightness(candidate, dataset, split))
    yield from brightness_findings
    if not first_error(brightness_findings):  # images without contrast are always similar to each other
        yield from _variety(candidate, dataset, split)
    if images.shape[3] == 3:
        yield from _channel_order(candidate, dataset, split, trained)


def _other_shape(candidate: CandidateSet, dataset: Dataset) -> CalibrationFinding:
    (height, width, channels), expected = candidate.images.shape[1:], dataset.images.shape[1:]
    kind = "size" if (height, width) != expected[:2] else "channels"
    sizes = [f"{h}×{w}×{c}" for h, w, c in ((height, width, channels), expected)]
    what = f"images have the size {sizes[0]} (height, width, channels), but the model requires {sizes[1]}"
    return CalibrationFinding("error", kind, candidate.where, what, MAKE)


def _classes(candidate: CandidateSet, dataset: Dataset, split: Split) -> Iterator[CalibrationFinding]:
    if candidate.labels is None:
        advice = "add an array of classes to the file if the classes should be checked"
        yield CalibrationFinding("note", "no-labels", candidate.where, "the classes of the images are unknown", advice)
        return
    counts = Counter(candidate.labels)
    if unknown_labels := [label for label in counts if label not in dataset.labels]:
        what = f"{sum(counts[label] for label in unknown_labels)} images have classes that the model does not know"
        yield CalibrationFinding(
            "error", "unknown-class", listed(unknown_labels), what, "remove them, or use the model's labels"
        )
    if missing := [label for label in dataset.labels if not counts[label]]:
        could = len(candidate.images) >= len(dataset.labels)
        what = f"{len(missing)} of {len(dataset.labels)} classes have no image"
        advice = "add images of each" if could else f"use at least {len(dataset.labels)} images"
        yield CalibrationFinding("error" if could else "warning", "missing-class", listed(missing), what, advice)
    trained = np.bincount(dataset.classes[split.train], minlength=len(dataset.labels))
    share = np.minimum(len(candidate.images) / len(dataset.labels), trained)
    fewer = [
        label for label, fair in zip(dataset.labels, share, strict=True) if fair >= 3 and 0 < counts[label] < fair / 3
    ]
    if fewer:
        what = "these classes have less than a third of the images they would have in an even distribution"
        yield CalibrationFinding("warning", "unbalanced", listed(fewer), what, "use the recipe stratified")


def _held_out(candidate: CandidateSet, dataset: Dataset, split: Split, trained: Mask) -> Iterator[CalibrationFinding]:
    tested = _is_in(candidate.images, dataset, split.test)
    validated = _is_in(candidate.images, dataset, split.val)

    def finding(severity: Any, kind: str, which: Mask, what: str, advice: str) -> Iterator[CalibrationFinding]:
        if which.any():
            names = [name for name, one in zip(candidate.names, which, strict=True) if one]
            yield CalibrationFinding(severity, kind, listed(names), f"{len(names)} images {what}", advice)

    flatters = "are test images, which would make the measured accuracy too high"
    yield from finding("error", "test-overlap", tested & ~trained, flatters, MAKE)
    leaks = "are in the training set and in the test set, because the data contains them twice"
    yield from finding("note", "leak", tested & trained, leaks, "remove the copies and train again")
    chosen = "are validation images, which are used to choose variants"
    yield from finding("note", "val-overlap", validated & ~trained & ~tested, chosen, MAKE)
    foreign = ~(trained | tested | validated)
    if not foreign.any():
        return
    unseen = "are not identical to any image of the data"
    yield from finding(
        "warning", "foreign", foreign, unseen, "check that they were taken and preprocessed like the data"
    )
    near = np.zeros(len(foreign), bool)
    near[foreign] = _nearest(candidate.images[foreign], dataset, split.test) <= NEAR_LEVELS
    twins = "are near-duplicates of test images"
    yield from finding("warning", "near-test", near, twins, "remove them, or measure on other images")


def _variety(candidate: CandidateSet, dataset: Dataset, split: Split) -> Iterator[CalibrationFinding]:
    """Yield a finding if the images are more similar to each other than a stratified sample of training images.

    This detects a burst of video frames, regardless of the number of classes. There is no finding if the training
    images also consist of bursts.
    """
    images = candidate.images[:SAMPLE]
    count = len(images)
    if count < 2:
        return
    drawn = stratified(dataset, split.train, count, np.random.default_rng(0))
    usual = nearest_neighbor_distances(thumbnails(dataset.images[drawn])) if len(drawn) > 1 else np.zeros(1)
    apart = nearest_neighbor_distances(thumbnails(images))
    what = f"the median distance to the nearest other image is {np.median(apart):.1f} gray levels, for training images "
    if np.median(apart) < np.median(usual) / 2:
        advice = "use images from other times and places, or the recipe diverse"
        yield CalibrationFinding("error", "alike", candidate.where, f"{what}{np.median(usual):.1f}", advice)
    elif np.mean(apart <= NEAR_LEVELS) > np.mean(usual <= NEAR_LEVELS) + 0.1:
        names = [candidate.names[i] for i in np.flatnonzero(apart <= NEAR_LEVELS)]
        what = f"{len(names)} images are near-duplicates of other images in the set"
        yield CalibrationFinding("warning", "duplicates", listed(names), what, "keep one image of each group")


def _brightness(candidate: CandidateSet, dataset: Dataset, split: Split) -> Iterator[CalibrationFinding]:
    usual, images = dataset.images[sample_positions(dataset, split)], candidate.images
    (low, high), (usual_low, usual_high) = _ends(images), _ends(usual)
    ends = f"98 % of the pixel values are {low} to {high}, in training images {usual_low} to {usual_high}"
    if high - low < 0.6 * (usual_high - usual_low):
        advice = "check whether the pixels were rescaled"
        yield CalibrationFinding("error", "contrast", candidate.where, f"low contrast: {ends}", advice)
        return
    means, usual_means = images.mean(axis=(1, 2, 3)), usual.mean(axis=(1, 2, 3))
    shift = means.mean() - usual_means.mean()
    if abs(shift) > max(25.0, 4 * usual_means.std() / np.sqrt(len(means))):
        kind = "brighter" if shift > 0 else "darker"
        what = f"images are {abs(shift):.0f} gray levels {kind} than training images"
        yield CalibrationFinding(
            "warning", "brightness", candidate.where, what, "use images with the same light as the training images"
        )


def _channel_order(
    candidate: CandidateSet, dataset: Dataset, split: Split, trained: Mask
) -> Iterator[CalibrationFinding]:
    images = candidate.images
    advice = "read and write images as RGB; note that OpenCV's imread returns BGR"
    swapped = _is_in(images[..., ::-1], dataset, split.train) & ~trained
    if swapped.any():
        names = [candidate.names[i] for i in np.flatnonzero(swapped)]
        what = f"{len(names)} images are training images with swapped red and blue channels"
        yield CalibrationFinding("error", "channel-order", listed(names), what, advice)
    if trained.any() or swapped.any():
        return
    part = sample_positions(dataset, split)
    known = candidate.labels is not None and set(candidate.labels) <= set(dataset.labels)
    classes = np.array([dataset.labels.index(label) for label in candidate.labels or ()]) if known else None
    judged = estimate_channel_order(images, classes, dataset.images[part], dataset.classes[part])
    if judged.swapped:
        what = f"red and blue seem to be swapped: {judged.reason}"
        # Without labels, images of one class may resemble color-swapped images of other classes.
        yield CalibrationFinding("error" if known else "warning", "channel-order", candidate.where, what, advice)
    elif not judged.certain:
        what = f"colors do not show whether red and blue are swapped: {judged.reason}"
        yield CalibrationFinding("note", "channel-order", candidate.where, what, "check with edgerec calibration show")


def _is_in(images: Images, dataset: Dataset, part: npt.NDArray[np.int64]) -> Mask:
    """Return a mask of the images that are identical to an image in a part of the data set.

    Candidates are selected by the checksums in the index of packed data, or else by the middle row of the image. Only
    candidates are read and compared pixel by pixel.
    """
    if dataset.packed is not None:
        return _is_in_packed(images, dataset, part)
    row = images.shape[1] // 2
    by_row: dict[bytes, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        by_row[image[row].tobytes()].append(i)
    is_found, stored = np.zeros(len(images), bool), dataset.images
    for position in part:
        for i in by_row.get(stored[position][row].tobytes(), ()):
            is_found[i] = is_found[i] or np.array_equal(images[i], stored[position])
    return is_found


def _is_in_packed(images: Images, dataset: Dataset, part: npt.NDArray[np.int64]) -> Mask:
    assert dataset.packed is not None
    stored_crc = dataset.packed.index["crc"][part]
    crc = np.array([zlib.crc32(np.ascontiguousarray(image).tobytes()) for image in images], stored_crc.dtype)
    is_found = np.zeros(len(images), bool)
    for position in part[np.isin(stored_crc, crc)]:
        stored = dataset.images[int(position)]
        candidates = np.flatnonzero(crc == dataset.packed.index["crc"][position])
        is_found[candidates] |= [np.array_equal(images[i], stored) for i in candidates]
    return is_found


def _nearest(images: Images, dataset: Dataset, part: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return each image's distance to the nearest image in a part of the data set, in gray levels."""
    images_thumbnails, nearest = thumbnails(images), np.full(len(images), np.inf, np.float32)
    for start in range(0, len(part), CHUNK):
        others = thumbnails(dataset.images[part[start : start + CHUNK]])
        nearest = np.minimum(nearest, distances(images_thumbnails, others).min(axis=1))
    return nearest


def _ends(images: Images) -> tuple[int, int]:
    """Return the 1st and 99th percentiles of the pixel values."""
    parts = np.cumsum(np.bincount(images.reshape(-1), minlength=256)) / images.size
    return int(np.searchsorted(parts, 0.01)), int(np.searchsorted(parts, 0.99))


def sample_positions(dataset: Dataset, split: Split) -> npt.NDArray[np.int64]:
    """Return the positions of randomly sampled training images."""
    most = max(100, min(SAMPLE, SAMPLE_BYTES // dataset.images[0].size))
    return np.sort(np.random.default_rng(0).permutation(split.train)[:most])


def first_error(findings: Sequence[CalibrationFinding]) -> CalibrationFinding | None:
    """Return the first finding with the severity ``error``, or None if there is none."""
    return next((finding for finding in findings if finding.severity == "error"), None)
