"""Check a data set for damaged files, duplicates, class imbalance, unusual sizes and likely label errors."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerec.contract.image_decoding import Levels
from edgerec.data import readers
from edgerec.data.bit_depth import determine_levels
from edgerec.data.cache import DIGEST_CHARS
from edgerec.data.check_results import KINDS, CheckedImages, DataFinding, DataReport, Severity
from edgerec.data.dataset import AUTO_SIZE_PX, Dataset
from edgerec.data.findings_report import refuse_output, write_findings
from edgerec.data.label_errors import cross_validate
from edgerec.data.near_duplicates import confirmed, near_pairs, thumbnails
from edgerec.data.raw_dataset import Arrays, RawDataset
from edgerec.data.scan import Scan, scan
from edgerec.data.split import split_dataset
from edgerec.data.tfrecord_reader import SPLITS
from edgerec.errors import DataError
from edgerec.recipe import Recipe
from edgerec.utils.atomic import checked_output
from edgerec.utils.optional import require
from edgerec.utils.progress import Listener, ignore

# A class is reported if it has fewer than FEW images, or if another class has over UNBALANCED times as many.
FEW, UNBALANCED = 20, 5
# An image is reported as blank if the standard deviation of its pixel values is below this number of gray levels.
BLANK_LEVELS = 2.0
# Images are reported as small if preprocessing enlarges them by more than this factor.
ENLARGED = 2.0
# Images are reported as elongated if their aspect ratio exceeds the median by more than this factor.
ELONGATED = 2.0
# The label check needs at least this many images, because its classifier is unreliable with fewer.
MIN_IMAGES_FOR_LABELS = 100


def check_data(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    labels: bool = True,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> DataReport:
    """Check a recipe's data for damaged files, duplicates, class imbalance, unusual sizes and likely label errors.

    Args:
        recipe: names the data, and how it is split. ``data.group_by`` keeps related images in the same set.
        out: a .png file for a plot of the affected images, or a folder for this plot and all findings.
        labels: also look for label errors. This check takes the most time.
        overwrite: replace an existing ``out``.
        listener: called with the progress.

    Raises:
        EdgerecError: the data does not exist, no file is a readable image, or ``out`` exists.
    """
    if out is not None:
        out = checked_output(out, data=recipe.data.source, suffixes=(".png",), folder=True)
        refuse_output(out, overwrite)
        require("matplotlib")
    report, images = _run_checks(recipe, labels, listener)
    if out is not None:
        write_findings(report, images, Path(out), overwrite=overwrite)
    return report


def _run_checks(recipe: Recipe, labels: bool, listener: Listener) -> tuple[DataReport, CheckedImages]:
    source = readers.find(recipe.data.source, flat=True, levels=recipe.data.levels)
    levels = recipe.data.levels or determine_levels(source, recipe.data.title, listener)
    scanned = scan(source, levels, listener)
    if not scanned.valid.any():
        first = f" ({source.names[0]} {scanned.faults[0]})" if scanned.faults else ""
        raise DataError(
            f"{recipe.data.title}: none of the {len(scanned.faults)} files is an image{first}: choose another folder"
        )
    images, findings = _split_readable_images(source, scanned, recipe, levels)
    findings += _layout_findings(source)
    findings += _file_findings(source, scanned)
    findings += _copy_findings(images)
    findings += _near_duplicate_findings(images)
    findings += _size_findings(images, recipe)
    findings += _blank_findings(images)
    accuracy = None
    if images.dataset.labels:
        findings += _balance_findings(images)
        if labels:
            accuracy = _find_label_errors(images, findings, listener)
    rank = {kind: index for index, kind in enumerate(KINDS)}
    findings.sort(key=lambda finding: (rank[finding.kind], -finding.weight, finding.names))
    report = DataReport(recipe.data.title, len(images.positions), _counts(images), tuple(findings), accuracy)
    return report, images


def _split_readable_images(
    source: RawDataset, scanned: Scan, recipe: Recipe, levels: Levels
) -> tuple[CheckedImages, list[DataFinding]]:
    positions = np.flatnonzero(scanned.valid)
    names = source.names
    all_valid = len(positions) == len(scanned.thumbnails)
    dataset = Dataset(
        scanned.thumbnails if all_valid else scanned.thumbnails[positions],
        source.classes[positions],
        source.splits[positions],
        source.labels,
        tuple(names[i] for i in positions),
        "",
        (),
        source,
        positions,
        _levels=levels,
        contents=np.array([scanned.digests[i][:DIGEST_CHARS] for i in positions], f"S{DIGEST_CHARS}"),
    )
    splits, findings = source.splits[positions].astype("<U5"), []
    try:
        parts = split_dataset(dataset, recipe.data, recipe.seed)
        for name in SPLITS:
            splits[parts.part(name)] = name
    except DataError as error:
        findings.append(DataFinding("error", "split", (), str(error), "training stops with this error"))
    return CheckedImages(dataset, splits, positions, scanned), findings


def _layout_findings(source: RawDataset) -> Iterator[DataFinding]:
    if not isinstance(source, Arrays):
        for text in source.warnings:
            yield DataFinding("warning", "layout", (), text, "training uses the folders as they are")


def _file_findings(source: RawDataset, scanned: Scan) -> Iterator[DataFinding]:
    names = source.names
    for position, fault in enumerate(scanned.faults):
        if fault:
            kind = "cut-off" if scanned.valid[position] else "broken"
            severity: Severity = "warning" if scanned.valid[position] else "error"
            advice = "remove the file, or copy it again"
            yield DataFinding(severity, kind, (names[position],), fault, advice, positions=(position,))


def _copy_findings(images: CheckedImages) -> Iterator[DataFinding]:
    by_digest: dict[str, list[int]] = defaultdict(list)
    for i, position in enumerate(images.positions):
        by_digest[images.scan.digests[position]].append(i)
    for group in by_digest.values():
        for i in group[1:]:
            yield _pair_finding(images, i, _most_harmful_copy(images, i, group), 0.0)


def _most_harmful_copy(images: CheckedImages, i: int, group: list[int]) -> int:
    classes, splits = images.dataset.classes, images.splits
    return max(
        (j for j in group if j != i), key=lambda j: (splits[j] != splits[i], classes[j] != classes[i], j == group[0])
    )


def _near_duplicate_findings(images: CheckedImages) -> Iterator[DataFinding]:
    if len(images.positions) < 2:
        return
    digests = [images.scan.digests[position] for position in images.positions]
    candidates = near_pairs(thumbnails(images.thumbnails), [images.splits, images.dataset.classes])
    pairs = confirmed(candidates, images.thumbnails)
    for first, second, distance in zip(pairs.first, pairs.second, pairs.distance_levels, strict=True):
        if digests[first] != digests[second]:
            yield _pair_finding(images, int(second), int(first), float(distance))


def _pair_finding(images: CheckedImages, i: int, j: int, distance_levels: float) -> DataFinding:
    dataset, splits = images.dataset, images.splits
    exact = images.scan.digests[images.positions[i]] == images.scan.digests[images.positions[j]]
    kind = "copy" if exact else "near"
    relation = "is a copy of" if exact else "is a near-duplicate of"
    what, weight = f"{relation} {dataset.names[j]}", -distance_levels
    if not exact:
        what += f" (distance {distance_levels:.1f} gray levels)"
    if splits[i] != splits[j]:
        what += f", and the two images are in different splits ({splits[i] or 'none'}, {splits[j] or 'none'})"
        has_splits = bool(np.any(dataset.splits != ""))
        advice = "remove one of them" if has_splits else "remove one of them, or keep them together with --group-by"
        return images.finding("error" if exact else "warning", f"{kind}-across-splits", (i, j), what, advice, weight)
    if dataset.classes[i] != dataset.classes[j]:
        label, other_label = (dataset.labels[dataset.classes[k]] for k in (i, j))
        what += f", but the labels differ ({label!r}, {other_label!r})"
        advice = "remove the image with the wrong label" if exact else "check both labels"
        return images.finding("error" if exact else "warning", f"{kind}-across-classes", (i, j), what, advice, weight)
    return images.finding("note", kind, (i, j), what, "remove one of them, because it adds no information", weight)


def _size_findings(images: CheckedImages, recipe: Recipe) -> Iterator[DataFinding]:
    sizes = images.scan.sizes_px[images.positions]
    shorter, ratios = sizes.min(axis=1), sizes.max(axis=1) / sizes.min(axis=1)
    input_px = recipe.data.input_size or min(int(np.median(shorter)), AUTO_SIZE_PX[1])
    small = np.flatnonzero(shorter * ENLARGED < input_px)
    if len(small) > len(sizes) / 2:
        what = (
            f"{len(small):,} of {len(sizes):,} images are enlarged by more than a factor of {ENLARGED:g} for the input "
            f"size {input_px}×{input_px}"
        )
        yield DataFinding("warning", "small", (), what, "set a smaller data.input_size, or use larger images")
        small = small[:0]
    median_ratio = float(np.median(ratios))
    for i in small:
        factor = input_px / shorter[i]
        what = f"has {_size(sizes[i])}, and is enlarged by a factor of {factor:.1f} for {input_px}×{input_px}"
        advice = "replace it with a larger image, or remove it"
        yield images.finding("warning", "small", (int(i),), what, advice, float(factor))
    for i in np.flatnonzero(ratios > ELONGATED * median_ratio):
        what = f"has {_size(sizes[i])}, an aspect ratio of {ratios[i]:.1f} (median of all images: {median_ratio:.1f})"
        advice = "its ends are cropped: crop the image yourself, or set data.fit=pad"
        yield images.finding("note", "shape", (int(i),), what, advice, float(ratios[i]))


def _size(size: npt.NDArray[np.int64]) -> str:
    return f"{size[1]}×{size[0]} pixels"


def _blank_findings(images: CheckedImages) -> Iterator[DataFinding]:
    for i, image in enumerate(images.thumbnails):
        levels = float(image.std())
        if levels < BLANK_LEVELS:
            what = f"is blank: the standard deviation of its pixel values is {levels:.1f} gray levels"
            yield images.finding("warning", "blank", (i,), what, "remove it", -levels)


def _balance_findings(images: CheckedImages) -> Iterator[DataFinding]:
    labels = images.dataset.labels
    counts = np.bincount(images.dataset.classes, minlength=len(labels))
    largest = int(counts.max())
    for label, count in zip(labels, counts, strict=True):
        if count < FEW:
            severity: Severity = "warning" if count else "error"
            what = f"class {label!r} has {count} image{'' if count == 1 else 's'}, expected at least {FEW}"
            yield DataFinding(severity, "few", (), what, "add images to this class", float(-count))
        elif count * UNBALANCED < largest:
            what = f"class {label!r} has {count:,} images, but the largest class has {largest:,}"
            advice = "add images to this class, or set train.class_weights=balanced"
            yield DataFinding("warning", "balance", (), what, advice, largest / count)


def _find_label_errors(images: CheckedImages, findings: list[DataFinding], listener: Listener) -> float | None:
    """Append likely label errors to ``findings``, and return the cross-validated accuracy of the classifier.

    Return None if there are too few images, or if the accuracy is too low for reliable findings.
    """
    classes, labels = images.dataset.classes, images.dataset.labels
    if len(classes) < MIN_IMAGES_FOR_LABELS or np.count_nonzero(np.bincount(classes)) < 2:
        return None
    predictions = cross_validate(images.thumbnails, classes, listener)
    if not predictions.are_reliable(classes):
        return None
    for i in predictions.label_errors(classes):
        best = int(predictions.scores[i].argmax())
        own, other = predictions.scores[i, classes[i]], predictions.scores[i, best]
        what = (
            f"is labeled {labels[classes[i]]!r} (score {own:.1%}), but a quick classifier predicts {labels[best]!r} "
            f"(score {other:.0%})"
        )
        weight = float(other / max(own, 1e-9))
        findings.append(images.finding("warning", "label", (int(i),), what, "check the label", weight, labels[best]))
    return predictions.accuracy


def _counts(images: CheckedImages) -> dict[str, dict[str, int]]:
    labels = images.dataset.labels or ("",)
    counted = Counter(zip(images.dataset.classes.tolist(), images.splits.tolist(), strict=True))
    names = [name for name in (*SPLITS, "") if name in images.splits]
    return {label: {name: counted[index, name] for name in names} for index, label in enumerate(labels)}
