"""What is wrong with a calibration set: size, range, channel order, classes, variety, and pictures held out."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.calibration.channel_order import judge_order
from edgerec.compress.calibration.loading import Finding, Offered, listed, open_offered
from edgerec.compress.calibration.sampling import stratified
from edgerec.contract.preprocess import PreprocessSpec
from edgerec.data import Dataset, Split
from edgerec.data.near_duplicates import NEAR_LEVELS, distances, nearest_neighbor_distances, thumbnails
from edgerec.recipe import DataSource
from edgerec.train.run import Run
from edgerec.utils.progress import Listener, ignore

# Fewer pictures than this leave the ranges to chance; ten did as well as five hundred on two networks.
FEW = 10
# Pictures that are compared in their colours or each with each, at most, and the bytes that they may take.
SAMPLE, SAMPLE_BYTES = 2000, 1 << 28
CHUNK = 256
MAKE = "draw another with edgerec calibration make"

Images = npt.NDArray[np.uint8]
Which = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check` found; ``ok`` says that nothing of it is an error."""

    set: str
    run: str
    images: int
    digest: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether the set may be used."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"ok": self.ok} | vars(self) | {"findings": [finding.to_dict() for finding in self.findings]}


def check(
    path: str | Path, run: Run | str | Path, *, data: DataSource | None = None, listener: Listener = ignore
) -> CheckReport:
    """Compare a calibration set with the run that it is for.

    Args:
        path: a set, an image folder, or an .npz or .npy file with pictures.
        run: a finished run, or its path.
        data: where the run's pictures are now, if they were moved.
        listener: told of the reading.

    Raises:
        EdgerecError: nothing that can be opened at ``path``, no such run, or its data is not there.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    offered = open_offered(Path(path), run.recipe.preprocess, run.labels)
    dataset, split = run.data(data, listener)
    findings = [*offered.findings, *examine(offered, dataset, split, run.recipe.preprocess)]
    return CheckReport(str(path), str(run.path), len(offered.images), offered.digest, tuple(findings))


def examine(offered: Offered, dataset: Dataset, split: Split, spec: PreprocessSpec | None = None) -> Iterator[Finding]:
    """All that is wrong with pictures for a model of this data, or worth knowing; nothing for a set drawn from it.

    ``spec`` is the model's preprocessing, to compare with what the set says of itself.
    """
    images = offered.images
    if not len(images):
        return
    if images.shape[1:] != dataset.images.shape[1:]:
        yield _other_shape(offered, dataset)
        return
    if spec and offered.preprocess and offered.preprocess != spec:
        what = f"pictures were fitted with {offered.preprocess}, the model's are with {spec}"
        yield Finding("warning", "preprocess", offered.where, what, MAKE)
    if len(images) < FEW:
        what = f"{len(images)} pictures leave the ranges to chance, expected at least {FEW}"
        yield Finding("warning", "few", offered.where, what, "add pictures, 100 to 200 are plenty")
    yield from _classes(offered, dataset, split)
    trained = _found(images, dataset, split.train)
    yield from _held_out(offered, dataset, split, trained)
    light = list(_light(offered, dataset, split))
    yield from light
    if not first_error(light):  # pictures without contrast do not differ much
        yield from _variety(offered, dataset, split)
    if images.shape[3] == 3:
        yield from _channel_order(offered, dataset, split, trained)


def _other_shape(offered: Offered, dataset: Dataset) -> Finding:
    (height, width, channels), expected = offered.images.shape[1:], dataset.images.shape[1:]
    kind = "size" if (height, width) != expected[:2] else "channels"
    sizes = [f"{h}×{w}×{c}" for h, w, c in ((height, width, channels), expected)]
    what = f"pictures are {sizes[0]} (height, width, channels), the model takes {sizes[1]}"
    return Finding("error", kind, offered.where, what, MAKE)


def _classes(offered: Offered, dataset: Dataset, split: Split) -> Iterator[Finding]:
    if offered.labels is None:
        advice = "give an array of classes beside the pictures to have them checked"
        yield Finding("note", "no-labels", offered.where, "it does not say what the pictures show", advice)
        return
    counts = Counter(offered.labels)
    if strange := [label for label in counts if label not in dataset.labels]:
        what = f"{sum(counts[label] for label in strange)} pictures are of classes that the model does not know"
        yield Finding("error", "unknown-class", listed(strange), what, "remove them, or give them the model's labels")
    if missing := [label for label in dataset.labels if not counts[label]]:
        could = len(offered.images) >= len(dataset.labels)
        what = f"{len(missing)} of {len(dataset.labels)} classes have no picture"
        advice = "add pictures of each" if could else f"take {len(dataset.labels)} pictures or more"
        yield Finding("error" if could else "warning", "missing-class", listed(missing), what, advice)
    trained = np.bincount(dataset.classes[split.train], minlength=len(dataset.labels))
    share = np.minimum(len(offered.images) / len(dataset.labels), trained)
    fewer = [
        label for label, fair in zip(dataset.labels, share, strict=True) if fair >= 3 and 0 < counts[label] < fair / 3
    ]
    if fewer:
        what = "these classes have less than a third of their even share of the pictures"
        yield Finding("warning", "unbalanced", listed(fewer), what, "take the recipe stratified")


def _held_out(offered: Offered, dataset: Dataset, split: Split, trained: Which) -> Iterator[Finding]:
    tested = _found(offered.images, dataset, split.test)
    validated = _found(offered.images, dataset, split.val)

    def finding(severity: Any, kind: str, which: Which, what: str, advice: str) -> Iterator[Finding]:
        if which.any():
            names = [name for name, one in zip(offered.names, which, strict=True) if one]
            yield Finding(severity, kind, listed(names), f"{len(names)} pictures {what}", advice)

    flatters = "are held-out test pictures: figures measured on those would flatter"
    yield from finding("error", "test-overlap", tested & ~trained, flatters, MAKE)
    leaks = "are in the training part and in the test part: the data has them twice"
    yield from finding("note", "leak", tested & trained, leaks, "remove the copies and train again")
    chosen = "are validation pictures, by which variants are chosen"
    yield from finding("note", "val-overlap", validated & ~trained & ~tested, chosen, MAKE)
    foreign = ~(trained | tested | validated)
    if not foreign.any():
        return
    unseen = "are none that the model was trained on, pixel for pixel"
    yield from finding("warning", "foreign", foreign, unseen, "see that they were taken and prepared as those were")
    near = np.zeros(len(foreign), bool)
    near[foreign] = _nearest(offered.images[foreign], dataset, split.test) <= NEAR_LEVELS
    twins = "are nearly the same as a held-out test picture"
    yield from finding("warning", "near-test", near, twins, "remove them, or measure on other pictures")


def _variety(offered: Offered, dataset: Dataset, split: Split) -> Iterator[Finding]:
    """Nearest neighbours in the set, against those in a stratified draw of as many: a burst of frames is known by
    it whether it shows one class or ten. Data that is all bursts itself is taken as it is."""
    given = offered.images[:SAMPLE]
    count = len(given)
    if count < 2:
        return
    drawn = stratified(dataset, split.train, count, np.random.default_rng(0))
    usual = nearest_neighbor_distances(thumbnails(dataset.images[drawn])) if len(drawn) > 1 else np.zeros(1)
    apart = nearest_neighbor_distances(thumbnails(given))
    what = f"the pictures differ from their nearest by {np.median(apart):.1f} grey levels, training pictures by "
    if np.median(apart) < np.median(usual) / 2:
        advice = "take pictures of other moments and places, or the recipe diverse"
        yield Finding("error", "alike", offered.where, f"{what}{np.median(usual):.1f}", advice)
    elif np.mean(apart <= NEAR_LEVELS) > np.mean(usual <= NEAR_LEVELS) + 0.1:
        names = [offered.names[i] for i in np.flatnonzero(apart <= NEAR_LEVELS)]
        what = f"{len(names)} pictures are nearly the same as another one here"
        yield Finding("warning", "duplicates", listed(names), what, "keep one of each")


def _light(offered: Offered, dataset: Dataset, split: Split) -> Iterator[Finding]:
    usual, given = dataset.images[sample_of(dataset, split)], offered.images
    (low, high), (usual_low, usual_high) = _ends(given), _ends(usual)
    ends = f"98 % of the values are {low} to {high}, in training pictures {usual_low} to {usual_high}"
    if high - low < 0.6 * (usual_high - usual_low):
        advice = "look whether pixels were scaled on the way"
        yield Finding("error", "contrast", offered.where, f"low contrast: {ends}", advice)
        return
    means, usual_means = given.mean(axis=(1, 2, 3)), usual.mean(axis=(1, 2, 3))
    shift = means.mean() - usual_means.mean()
    if abs(shift) > max(25.0, 4 * usual_means.std() / np.sqrt(len(means))):
        kind = "brighter" if shift > 0 else "darker"
        what = f"pictures are {abs(shift):.0f} grey levels {kind} than training pictures"
        yield Finding("warning", "brightness", offered.where, what, "take pictures in the light of the others")


def _channel_order(offered: Offered, dataset: Dataset, split: Split, trained: Which) -> Iterator[Finding]:
    images = offered.images
    exchange = "read and write pictures as RGB; OpenCV's imread gives BGR"
    swapped = _found(images[..., ::-1], dataset, split.train) & ~trained
    if swapped.any():
        names = [offered.names[i] for i in np.flatnonzero(swapped)]
        what = f"{len(names)} pictures are training pictures with red and blue exchanged"
        yield Finding("error", "channel-order", listed(names), what, exchange)
    if trained.any() or swapped.any():
        return
    part = sample_of(dataset, split)
    known = offered.labels is not None and set(offered.labels) <= set(dataset.labels)
    classes = np.array([dataset.labels.index(label) for label in offered.labels or ()]) if known else None
    judged = judge_order(images, classes, dataset.images[part], dataset.classes[part])
    if judged.swapped:
        what = f"red and blue seem exchanged: {judged.reason}"
        # Without labels, one class alone may have the colours of the others exchanged.
        yield Finding("error" if known else "warning", "channel-order", offered.where, what, exchange)
    elif not judged.certain:
        what = f"colours do not tell whether red and blue are exchanged: {judged.reason}"
        yield Finding("note", "channel-order", offered.where, what, "look at them: edgerec calibration show")


def _found(images: Images, dataset: Dataset, part: npt.NDArray[np.int64]) -> Which:
    """Return, for each image, whether an identical image is among the positions ``part`` of the data set.

    Candidates are found by the checksums in the index of packed data, otherwise by the middle row of the image. Only
    candidates are read and compared pixel by pixel.
    """
    if dataset.packed is not None:
        return _found_packed(images, dataset, part)
    row = images.shape[1] // 2
    by_row: dict[bytes, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        by_row[image[row].tobytes()].append(i)
    found, stored = np.zeros(len(images), bool), dataset.images
    for position in part:
        for i in by_row.get(stored[position][row].tobytes(), ()):
            found[i] = found[i] or np.array_equal(images[i], stored[position])
    return found


def _found_packed(images: Images, dataset: Dataset, part: npt.NDArray[np.int64]) -> Which:
    assert dataset.packed is not None
    stored_crc = dataset.packed.index["crc"][part]
    crc = np.array([zlib.crc32(np.ascontiguousarray(image).tobytes()) for image in images], stored_crc.dtype)
    found = np.zeros(len(images), bool)
    for position in part[np.isin(stored_crc, crc)]:
        stored = dataset.images[int(position)]
        candidates = np.flatnonzero(crc == dataset.packed.index["crc"][position])
        found[candidates] |= [np.array_equal(images[i], stored) for i in candidates]
    return found


def _nearest(images: Images, dataset: Dataset, part: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """How far each picture's nearest in that part is, in grey levels."""
    given, nearest = thumbnails(images), np.full(len(images), np.inf, np.float32)
    for start in range(0, len(part), CHUNK):
        others = thumbnails(dataset.images[part[start : start + CHUNK]])
        nearest = np.minimum(nearest, distances(given, others).min(axis=1))
    return nearest


def _ends(images: Images) -> tuple[int, int]:
    """The first and the last percentile of the pixel values."""
    parts = np.cumsum(np.bincount(images.reshape(-1), minlength=256)) / images.size
    return int(np.searchsorted(parts, 0.01)), int(np.searchsorted(parts, 0.99))


def sample_of(dataset: Dataset, split: Split) -> npt.NDArray[np.int64]:
    """Some training pictures, drawn by chance, that stand for all."""
    most = max(100, min(SAMPLE, SAMPLE_BYTES // dataset.images[0].size))
    return np.sort(np.random.default_rng(0).permutation(split.train)[:most])


def first_error(findings: Sequence[Finding]) -> Finding | None:
    """The first finding that makes a set unfit."""
    return next((finding for finding in findings if finding.severity == "error"), None)
