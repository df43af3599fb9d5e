"""What is wrong with a data set: broken files, copies, balance, sizes, likely wrong labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgerec.contract.image_files import Levels
from edgerec.data import readers as sources
from edgerec.data.bit_depth import determine_levels
from edgerec.data.cache import DIGEST_CHARS
from edgerec.data.dataset import AUTO_SIZE_PX, Dataset
from edgerec.data.label_errors import judge
from edgerec.data.near_duplicates import confirmed, near_pairs, thumbnails
from edgerec.data.scan import Scan, scan
from edgerec.data.split import split_dataset
from edgerec.data.tfrecord_reader import SPLITS
from edgerec.errors import DataError
from edgerec.recipe import Recipe
from edgerec.utils.progress import Listener, ignore

Severity = Literal["error", "warning", "note"]
Indices = npt.NDArray[np.int64]

# What spoils a result most stands first.
KINDS = (
    "broken",
    "cut-off",
    "layout",
    "split",
    "copy-across-splits",
    "copy-across-classes",
    "near-across-splits",
    "near-across-classes",
    "label",
    "few",
    "balance",
    "blank",
    "small",
    "shape",
    "copy",
    "near",
)
# A class with fewer pictures teaches little, and one with so many times another's drowns it.
FEW, UNBALANCED = 20, 5
# Deviation of pixel values, grey levels, of a picture on which nothing is to be seen.
BLANK_LEVELS = 2.0
# A picture that must be enlarged so many times, or whose sides differ so many times as much as is usual, is named.
ENLARGED, ELONGATED = 2.0, 2.0
# A quick classifier needs this many pictures of two classes to say anything.
FEWEST_JUDGED = 100


@dataclass(frozen=True)
class Finding:
    """Something about a data set that a person should know.

    Attributes:
        severity: an ``error`` spoils a result, a ``warning`` can cost accuracy, a ``note`` is to be known.
        kind: one of :data:`KINDS`.
        names: the pictures, the suspect first; none for a class as a whole.
        what: what is the case.
        advice: what to do.
        weight: findings of a kind are sorted by it, the heaviest first.
        like: the label that it should perhaps have.
        positions: of the pictures in the source.
    """

    severity: Severity
    kind: str
    names: tuple[str, ...]
    what: str
    advice: str
    weight: float = 0.0
    like: str = ""
    positions: tuple[int, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {key: value for key, value in vars(self).items() if key != "positions"}

    def __str__(self) -> str:
        return f"{self.names[0] if self.names else 'the data'}: {self.what}: {self.advice}"


@dataclass(frozen=True)
class DataReport:
    """What was found.

    Attributes:
        source: the data.
        pictures: how many there are, broken ones aside.
        counts: pictures of each class in each split, by label and split; the split is that which training would make
            where the data has none.
        findings: sorted, the heaviest first.
        label_accuracy: of the quick classifier that judged the labels, 0 to 1; None where it could not.
    """

    source: str
    pictures: int
    counts: dict[str, dict[str, int]]
    findings: tuple[Finding, ...]
    label_accuracy: float | None

    @property
    def ok(self) -> bool:
        """Whether nothing was found that spoils a result."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        findings = [finding.to_dict() for finding in self.findings]
        return {"ok": self.ok} | vars(self) | {"findings": findings}


@dataclass(frozen=True)
class Looked:
    """The pictures of a data set that can be decoded, and where each stands in the source."""

    source: sources.Source
    dataset: Dataset
    splits: npt.NDArray[np.str_]
    positions: Indices
    scan: Scan

    @property
    def thumbnails(self) -> npt.NDArray[np.uint8]:
        """uint8 ``(N, 32, 32, C)``."""
        return np.asarray(self.dataset.images)

    def index(self, position: int) -> int:
        """Where the source's picture stands among those that can be decoded."""
        return int(np.searchsorted(self.positions, position))

    def finding(
        self,
        severity: Severity,
        kind: str,
        which: tuple[int, ...],
        what: str,
        advice: str,
        weight: float,
        like: str = "",
    ) -> Finding:
        """A finding about these pictures."""
        names = tuple(self.dataset.names[i] for i in which)
        positions = tuple(int(self.positions[i]) for i in which)
        return Finding(severity, kind, names, what, advice, weight, like, positions)


def run_checks(recipe: Recipe, *, labels: bool = True, listener: Listener = ignore) -> tuple[DataReport, Looked]:
    """Look through the data of a recipe.

    Args:
        recipe: which data, and how it is split: ``data.group_by`` keeps together what belongs together.
        labels: also look for wrong labels, which takes longest.
        listener: told of the progress.

    Returns:
        The report, and the pictures that it is about.

    Raises:
        DataError: nothing there, or nothing that is a picture.
    """
    source = sources.find(recipe.data.source, flat=True, levels=recipe.data.levels)
    levels = recipe.data.levels or determine_levels(source, recipe.data.title, listener)
    seen = scan(source, levels, listener)
    if not seen.valid.any():
        first = f"; {seen.faults[0]}" if seen.faults else ""
        raise DataError(f"{recipe.data.title}: none of its {len(seen.faults)} files is an image{first}")
    looked, findings = _look(source, seen, recipe, levels)
    findings += _layout(source)
    findings += _faults(source, seen)
    findings += _copies(looked)
    findings += _near(looked)
    findings += _sizes(looked, recipe)
    findings += _blank(looked)
    accuracy = None
    if looked.dataset.labels:
        findings += _balance(looked)
        if labels:
            accuracy = _labels(looked, findings, listener)
    rank = {kind: place for place, kind in enumerate(KINDS)}
    findings.sort(key=lambda one: (rank[one.kind], -one.weight, one.names))
    report = DataReport(recipe.data.title, len(looked.positions), _counts(looked), tuple(findings), accuracy)
    return report, looked


def _look(source: sources.Source, seen: Scan, recipe: Recipe, levels: Levels) -> tuple[Looked, list[Finding]]:
    positions = np.flatnonzero(seen.valid)
    names = source.names
    small = seen.thumbnails if len(positions) == len(seen.thumbnails) else seen.thumbnails[positions]
    dataset = Dataset(
        small,
        source.classes[positions],
        source.splits[positions],
        source.labels,
        tuple(names[i] for i in positions),
        "",
        (),
        source,
        positions,
        _levels=levels,
        contents=np.array([seen.digests[i][:DIGEST_CHARS] for i in positions], f"S{DIGEST_CHARS}"),
    )
    splits, findings = source.splits[positions].astype("<U5"), []
    try:
        parts = split_dataset(dataset, recipe.data, recipe.seed)
        for name in SPLITS:
            splits[parts.part(name)] = name
    except DataError as error:
        findings.append(Finding("error", "split", (), str(error), "training would stop with this"))
    return Looked(source, dataset, splits, positions, seen), findings


def _layout(source: sources.Source) -> Iterator[Finding]:
    if not isinstance(source, sources.Arrays):
        for text in source.warnings:
            yield Finding("warning", "layout", (), text, "training uses the folders as they are")


def _faults(source: sources.Source, seen: Scan) -> Iterator[Finding]:
    names = source.names
    for position, fault in enumerate(seen.faults):
        if fault:
            kind = "cut-off" if seen.valid[position] else "broken"
            severity: Severity = "warning" if seen.valid[position] else "error"
            yield Finding(
                severity, kind, (names[position],), fault, "remove it, or bring it again", positions=(position,)
            )


def _copies(looked: Looked) -> Iterator[Finding]:
    """The same bytes again: each copy is named with one that it spoils, or else with the first."""
    same: dict[str, list[int]] = defaultdict(list)
    for i, position in enumerate(looked.positions):
        same[looked.scan.digests[position]].append(i)
    for group in same.values():
        for i in group[1:]:
            yield _pair(looked, i, _worst_partner(looked, i, group), 0.0)


def _worst_partner(looked: Looked, i: int, group: list[int]) -> int:
    classes, splits = looked.dataset.classes, looked.splits
    return max(
        (j for j in group if j != i), key=lambda j: (splits[j] != splits[i], classes[j] != classes[i], j == group[0])
    )


def _near(looked: Looked) -> Iterator[Finding]:
    if len(looked.positions) < 2:
        return
    digests = [looked.scan.digests[position] for position in looked.positions]
    near = near_pairs(thumbnails(looked.thumbnails), [looked.splits, looked.dataset.classes])
    pairs = confirmed(near, looked.thumbnails)
    for one, other, apart in zip(pairs.one, pairs.other, pairs.apart, strict=True):
        if digests[one] != digests[other]:
            yield _pair(looked, int(other), int(one), float(apart))


def _pair(looked: Looked, i: int, j: int, apart: float) -> Finding:
    """About two pictures that are the same, or nearly (``apart`` in grey levels)."""
    dataset, splits = looked.dataset, looked.splits
    exact = looked.scan.digests[looked.positions[i]] == looked.scan.digests[looked.positions[j]]
    kind, how = ("copy", "the same picture as") if exact else ("near", f"nearly the same ({apart:.1f} grey levels) as")
    what, weight = f"{how} {dataset.names[j]}", -apart
    if splits[i] != splits[j]:
        what += f", one in {splits[i] or 'no split'}, one in {splits[j] or 'no split'}"
        tagged = bool(np.any(dataset.splits != ""))
        advice = "keep one" if tagged else "keep one, or keep them together with --group-by"
        return looked.finding("error" if exact else "warning", f"{kind}-across-splits", (i, j), what, advice, weight)
    if dataset.classes[i] != dataset.classes[j]:
        one, other = (dataset.labels[dataset.classes[k]] for k in (i, j))
        what += f", one is {one!r}, one {other!r}"
        advice = "one label is wrong: keep the right one" if exact else "look which labels are right"
        return looked.finding("error" if exact else "warning", f"{kind}-across-classes", (i, j), what, advice, weight)
    return looked.finding("note", kind, (i, j), what, "one of them teaches nothing new", weight)


def _sizes(looked: Looked, recipe: Recipe) -> Iterator[Finding]:
    sizes = looked.scan.sizes_px[looked.positions]
    shorter, ratios = sizes.min(axis=1), sizes.max(axis=1) / sizes.min(axis=1)
    wanted = recipe.data.input_size or min(int(np.median(shorter)), AUTO_SIZE_PX[1])
    small = np.flatnonzero(shorter * ENLARGED < wanted)
    if len(small) > len(sizes) / 2:
        what = f"{len(small):,} of {len(sizes):,} pictures are enlarged more than twice for {wanted}×{wanted}"
        yield Finding("warning", "small", (), what, "take a smaller data.input_size, or bring larger pictures")
        small = small[:0]
    usual = float(np.median(ratios))
    for i in small:
        enlarged = wanted / shorter[i]
        what = f"is {_size(sizes[i])}, and is enlarged {enlarged:.1f} times for {wanted}×{wanted}"
        yield looked.finding("warning", "small", (int(i),), what, "bring it larger, or remove it", float(enlarged))
    for i in np.flatnonzero(ratios > ELONGATED * usual):
        what = f"is {_size(sizes[i])}, {ratios[i]:.1f} times as long as wide; usual here is {usual:.1f}"
        advice = "its ends are cut away: crop it yourself, or take data.fit=pad"
        yield looked.finding("note", "shape", (int(i),), what, advice, float(ratios[i]))


def _size(size: npt.NDArray[np.int64]) -> str:
    return f"{size[1]}×{size[0]} pixels"


def _blank(looked: Looked) -> Iterator[Finding]:
    for i, image in enumerate(looked.thumbnails):
        levels = float(image.std())
        if levels < BLANK_LEVELS:
            what = f"shows nothing: its values deviate by {levels:.1f} grey levels"
            yield looked.finding("warning", "blank", (i,), what, "remove it", -levels)


def _balance(looked: Looked) -> Iterator[Finding]:
    labels = looked.dataset.labels
    counts = np.bincount(looked.dataset.classes, minlength=len(labels))
    most = int(counts.max())
    for label, count in zip(labels, counts, strict=True):
        if count < FEW:
            severity: Severity = "warning" if count else "error"
            what = f"class {label!r} has {count} pictures; expected are {FEW} at the least"
            yield Finding(severity, "few", (), what, "add pictures of it", float(-count))
        elif count * UNBALANCED < most:
            what = f"class {label!r} has {count:,} pictures, another has {most:,}"
            advice = "add pictures of it, or take train.class_weights=balanced"
            yield Finding("warning", "balance", (), what, advice, most / count)


def _labels(looked: Looked, findings: list[Finding], listener: Listener) -> float | None:
    """Add what is likely labelled wrong; gives the quick classifier's accuracy, where it learnt anything."""
    classes, labels = looked.dataset.classes, looked.dataset.labels
    if len(classes) < FEWEST_JUDGED or np.count_nonzero(np.bincount(classes)) < 2:
        return None
    judged = judge(looked.thumbnails, classes, listener)
    if not judged.knows(classes):
        return None
    for i in judged.suspects(classes):
        best = int(judged.scores[i].argmax())
        own, other = judged.scores[i, classes[i]], judged.scores[i, best]
        what = f"is labelled {labels[classes[i]]!r} ({own:.1%}) and looks like {labels[best]!r} ({other:.0%})"
        weight = float(other / max(own, 1e-9))
        findings.append(looked.finding("warning", "label", (int(i),), what, "look at it", weight, labels[best]))
    return judged.accuracy


def _counts(looked: Looked) -> dict[str, dict[str, int]]:
    labels = looked.dataset.labels or ("",)
    counted = Counter(zip(looked.dataset.classes.tolist(), looked.splits.tolist(), strict=True))
    names = [name for name in (*SPLITS, "") if name in looked.splits]
    return {label: {name: counted[index, name] for name in names} for index, label in enumerate(labels)}
