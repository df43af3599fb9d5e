"""The split of a data set into training, validation and test images.

The side of an image follows from the hash of the seed and its content (or of its group, with ``data.group_by``), and
from nothing else. Therefore an image stays where it is when others are added, removed, renamed or moved, and copies of
one image are always on the same side. The price is that the fractions are met on average only.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.recipe import DataSection
from edgerec.data.dataset import Dataset
from edgerec.errors import DataError, RecipeError

log = logging.getLogger(__name__)

Indices = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.float64]

TEST, VAL, TRAIN = range(3)
SIDES = ("test", "validation", "training")
# A realized fraction may differ from the requested one by this much, or by what chance explains in a small data set.
TOLERANCE, DEVIATIONS = 0.05, 4.0
# Number of other seeds that are tried for the advice in an error message.
OTHER_SEEDS = 200
# A move for one class can take an image from another class when groups span classes.
ROUNDS = 10


@dataclass(frozen=True)
class Split:
    """Positions in a :class:`Dataset`, each array sorted.

    Attributes:
        train: images to train on.
        val: images for validation.
        test: held-out images.
        held_out: whether the test images were chosen here, because the data has no test split of its own.
        moved: images whose side is not that of their hash, because a class had no other image for that side.
        excluded: images that are not used, because the data's own test or validation split has an exact copy.
        notes: the realized fractions, and what else the user should know; see :meth:`report`.
    """

    train: Indices
    val: Indices
    test: Indices
    held_out: bool
    moved: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    excluded: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    notes: tuple[str, ...] = ()

    def report(self) -> None:
        """Write the notes into the log, once the step that uses the split has no other errors."""
        for note in self.notes:
            log.info(note)

    def part(self, name: str) -> Indices:
        """Return the positions of ``train``, ``val``, ``test``, or ``all`` of them."""
        return np.sort(np.concatenate([self.train, self.val, self.test])) if name == "all" else getattr(self, name)


def split_dataset(dataset: Dataset, section: DataSection, seed: int) -> Split:
    """Split by the data's own split folders if it has them, otherwise by the hash of each image or group.

    If the data has a test split but no validation split, validation images are chosen among its training images.
    Each class gets at least one image (or group) on each side: if its hashes leave a side empty, the image that is
    nearest to that side is moved there. Such an image returns to its own side once the class has another image there.

    Args:
        dataset: the images.
        section: the requested fractions, and the expression that groups images.
        seed: part of every hash, so that another seed gives another split.

    Raises:
        DataError: a class has too few images or groups, a group is in two of the data's own splits, or the requested
            fractions cannot be met with this seed.
        RecipeError: the fractions leave nothing to train on, or ``group_by`` is not a regular expression.
    """
    everything = np.arange(len(dataset.classes))
    tagged = {name: everything[dataset.splits == name] for name in ("train", "val", "test")}
    # Data without splits that is merged with data that has a test split is used for training.
    own, unassigned = bool(np.any(dataset.splits != "")), dataset.splits == ""
    train, val, test = everything[(dataset.splits == "train") | unassigned], tagged["val"], tagged["test"]
    if section.group_by and own and dataset.packed is None:
        groups = _groups(dataset, section.group_by)
        _refuse_shared(dataset, groups, {"train": train, "validation": val, "test": test})
    val, train, excluded = _without_copies(dataset, test, val, train)
    held_out, choose_val = not len(test), not len(val)
    moved: Indices = np.empty(0, np.int64)
    notes = _note_excluded(dataset, excluded)
    if len(train) and (held_out or choose_val):
        group_by = section.group_by if dataset.packed is None else ""
        request = _Request(section.test_fraction * held_out, section.val_fraction * choose_val, bool(group_by))
        members = _Members.of(dataset, group_by).at(train)
        sides, was_moved, fractions = _chosen(members, dataset.classes[train], dataset.labels, request, seed)
        test = train[sides == TEST] if held_out else test
        val = train[sides == VAL] if choose_val else val
        train, moved = train[sides == TRAIN], train[was_moved]
        notes += fractions
    counts = np.bincount(dataset.classes[train], minlength=len(dataset.labels))
    if missing := [label for label, count in zip(dataset.labels, counts, strict=False) if not count]:
        raise DataError(
            f"class {missing[0]!r} has no image to train on, only to test: check the spelling of its folder, and "
            "whether its training images are copies of test images"
        )
    return Split(train, val, test, held_out, moved, excluded, notes)


def recorded_split(dataset: Dataset, record: Mapping[str, Any]) -> Split:
    """Return the split that ``split.json`` records, whatever rule chose it.

    Args:
        dataset: the images that the run was trained on.
        record: the content of ``split.json``.

    Raises:
        DataError: the record names images that are not in the data.
    """
    if dataset.packed is not None:  # the shards say it
        train, val, test = (np.flatnonzero(dataset.splits == name) for name in ("train", "val", "test"))
        return Split(train, val, test, bool(record.get("held_out_here", False)))
    position = {name: i for i, name in enumerate(dataset.names)}
    try:
        val, test, excluded, moved = (
            np.sort(np.array([position[name] for name in record.get(key, [])], np.int64))
            for key in ("val", "test", "excluded", "moved")
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"split.json names the image {error}, which the data does not have: train again") from None
    used = np.concatenate([val, test, excluded])
    train = np.setdiff1d(np.arange(len(dataset.classes)), used)
    return Split(train, val, test, bool(record.get("held_out_here", False)), moved, excluded)


def expected_sides(dataset: Dataset, section: DataSection, seed: int) -> npt.NDArray[np.str_] | None:
    """Return the side that each image has by its hash alone, ``test``, ``val`` or ``train``.

    An image that was not in the data of a training has a side too: the one that it would have had. None means that
    images cannot be identified, or that a path does not match ``data.group_by``.
    """
    if dataset.contents is None:
        return None
    try:
        hashes = _Members.of(dataset, section.group_by).hashes(seed)
    except DataError:
        return None
    limits = (section.test_fraction, section.test_fraction + section.val_fraction)
    return np.array(["test", "val", "train"])[np.searchsorted(limits, hashes, side="right")]


@dataclass(frozen=True)
class _Members:
    """What is hashed: a group's text or an image's content.

    Attributes:
        keys: the distinct texts or contents.
        of_image: ``(N,)``, the key of each image.
        copies: ``(N,)``, equal numbers for exact copies; None if keys are contents already.
    """

    keys: tuple[bytes, ...]
    of_image: Indices
    copies: Indices | None = None

    @classmethod
    def of(cls, dataset: Dataset, group_by: str) -> _Members:
        contents = None if dataset.contents is None else np.unique(dataset.contents, return_inverse=True)
        if group_by:
            texts, of_image = np.unique(_groups(dataset, group_by), return_inverse=True)
            return cls(tuple(map(os.fsencode, texts)), of_image, None if contents is None else contents[1])
        if contents is not None:
            return cls(tuple(contents[0].tolist()), contents[1])
        return cls(tuple(map(os.fsencode, dataset.names)), np.arange(len(dataset.names)))

    def at(self, positions: Indices) -> _Members:
        """Return the same for some of the images."""
        used, of_image = np.unique(self.of_image[positions], return_inverse=True)
        copies = None if self.copies is None else np.unique(self.copies[positions], return_inverse=True)[1]
        return _Members(tuple(self.keys[i] for i in used), of_image, copies)

    def hashes(self, seed: int) -> Hashes:
        """Return the hash of each image's key, uniform in [0, 1), ``(N,)``.

        Groups that share an exact copy of an image get the hash of the first of them in alphabetical order.
        """
        first = self.of_image
        while self.copies is not None:
            before = first
            for members in (self.copies, self.of_image):
                smallest = np.full(members.max() + 1, len(self.keys))
                np.minimum.at(smallest, members, first)
                first = smallest[members]
            if np.array_equal(before, first):
                break
        return np.array([_uniform(seed, key) for key in self.keys])[first]


def _uniform(seed: int, key: bytes) -> float:
    digest = hashlib.sha256(b"%d\0%b" % (seed, key)).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * (1 - 2**-53)


@dataclass(frozen=True)
class _Request:
    """Requested fractions; 0 if the data has that split already."""

    test: float
    val: float
    grouped: bool

    @property
    def fractions(self) -> tuple[float, float]:
        return self.test, self.val

    @property
    def needed(self) -> tuple[int, ...]:
        """The sides on which each class must be."""
        return tuple(side for side, fraction in ((TEST, self.test), (VAL, self.val), (TRAIN, 1.0)) if fraction)


@dataclass(frozen=True)
class _Units:
    """What moves as a whole: the copies of an image, or the images of a group.

    Attributes:
        hashes: ``(units,)``, ascending.
        of_image: ``(images,)``, the unit of each image.
        pairs: ``(2, M)``, every class and unit that have an image in common.
        sizes: ``(units,)``, number of images.
    """

    hashes: Hashes
    of_image: Indices
    pairs: Indices
    sizes: Indices

    @classmethod
    def of(cls, hashes: Hashes, classes: Indices) -> _Units:
        values, of_image, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
        pairs = np.unique(np.stack([classes, of_image]), axis=1)
        return cls(values, of_image, pairs, sizes)


def _chosen(
    members: _Members, classes: Indices, labels: tuple[str, ...], request: _Request, seed: int
) -> tuple[Indices, npt.NDArray[np.bool_], tuple[str, ...]]:
    """Return the side of each image, whether it was moved to a side that its class did not have, and notes."""
    if request.test + request.val > 1 - 1e-9:
        raise RecipeError(
            f"data.test_fraction {request.test:g} and data.val_fraction {request.val:g} leave no images for training: "
            "expected a sum below 1"
        )
    if request.grouped and len(members.keys) < len(request.needed):
        raise DataError(
            f"data.group_by gives {len(members.keys)} group{'s' * (len(members.keys) > 1)}, expected at least "
            f"{len(request.needed)}: use an expression that gives more"
        )

    def attempt(seed: int) -> tuple[Indices, npt.NDArray[np.bool_], str, tuple[float, float]]:
        units = _Units.of(members.hashes(seed), classes)
        by_hash = np.searchsorted(np.cumsum(request.fractions), units.hashes, side="right").astype(np.int64)
        sides = _with_every_class(units, by_hash, request, labels)
        realized = _realized(units, sides)
        problem = _deviation(units, by_hash, sides, request)
        return sides[units.of_image], (sides != by_hash)[units.of_image], problem, realized

    sides, moved, problem, realized = attempt(seed)
    if problem:
        others = range(seed + 1, seed + 1 + OTHER_SEEDS) if len(members.keys) <= 5000 else ()
        better = next(((other, now[3]) for other in others if not (now := attempt(other))[2]), None)
        advice = "change data.test_fraction or data.val_fraction"
        if better is not None:
            test, val = better[1]
            advice = f"set seed to {better[0]} (test {test:.1%}, validation {val:.1%}), or {advice}"
        raise DataError(f"with seed {seed}, {problem}: {advice}")
    parts = ", ".join(
        f"{fraction:.1%} {SIDES[side]} (requested {requested:.1%})"
        for side, (fraction, requested) in enumerate(zip(realized, request.fractions, strict=True))
        if requested
    )
    off = max(abs(fraction - requested) for fraction, requested in zip(realized, request.fractions, strict=True))
    why = "; so few images are split by chance, another seed gives other fractions" if off > TOLERANCE else ""
    notes = [f"split by {'group' if request.grouped else 'image content'}: {parts}{why}"]
    if moved.any():
        notes.append(f"{moved.sum()} images were moved to a side of the split that their class did not have otherwise")
    return sides, moved, tuple(notes)


def _realized(units: _Units, sides: Indices) -> tuple[float, float]:
    """Return the fraction of the images in the test and in the validation split."""
    counts = np.bincount(sides, units.sizes, minlength=3) / units.sizes.sum()
    return float(counts[TEST]), float(counts[VAL])


def _deviation(units: _Units, by_hash: Indices, sides: Indices, request: _Request) -> str:
    """Return which fraction is too far from the requested one, or an empty string.

    Images that were moved for the sake of a class do not count as a deviation.
    """
    count = len(units.hashes)
    for side, requested in enumerate(request.fractions):
        if not requested:
            continue
        chance = 1 / count if request.grouped else DEVIATIONS * math.sqrt(requested * (1 - requested) / count)
        realized = [_realized(units, some)[side] for some in (sides, by_hash)]
        if min(abs(fraction - requested) for fraction in realized) > max(TOLERANCE, chance) + 1e-9:
            what = "groups" if request.grouped else "distinct images"
            return (
                f"{realized[0]:.1%} of the images ({count:,} {what}) are {SIDES[side]} images, "
                f"requested {requested:.1%}"
            )
    return ""


def _with_every_class(units: _Units, by_hash: Indices, request: _Request, labels: tuple[str, ...]) -> Indices:
    """Return the side of each unit, changed where a class has no unit on a side that it needs."""
    classes, of_pair = units.pairs
    number = np.bincount(classes)
    for few in np.flatnonzero((number > 0) & (number < len(request.needed))):
        raise _too_few(int(few), int(number[few]), request, labels)
    limits = np.cumsum([0.0, *request.fractions])
    limits = np.append(limits, 1.0)
    sides, fixed = by_hash.copy(), np.zeros(len(by_hash), bool)
    missing = _missing(units, sides, request)
    for _ in range(ROUNDS):
        for index, side in missing:
            mine = of_pair[classes == index]
            if (sides[mine] == side).any():
                continue
            distance = np.maximum(limits[side] - units.hashes[mine], units.hashes[mine] - limits[side + 1])
            free = [unit for unit in mine[np.argsort(distance, kind="stable")] if not fixed[unit]]
            # The nearest unit that leaves no side of any class empty, or else of this class.
            spare = [unit for unit in free if _is_spare(unit, units, sides)]
            spare = spare or [unit for unit in free if np.count_nonzero(sides[mine] == sides[unit]) > 1]
            if not spare:
                raise _too_few(index, int(number[index]), request, labels)
            sides[spare[0]], fixed[spare[0]] = side, True
        missing = _missing(units, sides, request)
        if not missing:
            return sides
    raise _too_few(missing[0][0], int(number[missing[0][0]]), request, labels)


def _missing(units: _Units, sides: Indices, request: _Request) -> list[tuple[int, int]]:
    """Return every class and side that need a unit."""
    counts = _counts(units, sides)
    present = counts.any(axis=1)
    return [(int(index), side) for side in request.needed for index in np.flatnonzero(present & (counts[:, side] == 0))]


def _counts(units: _Units, sides: Indices) -> npt.NDArray[np.int64]:
    """Return the number of units of each class on each side, ``(classes, 3)``."""
    classes, of_pair = units.pairs
    counts = np.zeros((classes.max() + 1, 3), np.int64)
    np.add.at(counts, (classes, sides[of_pair]), 1)
    return counts


def _is_spare(unit: int, units: _Units, sides: Indices) -> bool:
    classes, of_pair = units.pairs
    return bool((_counts(units, sides)[classes[of_pair == unit], sides[unit]] > 1).all())


def _too_few(index: int, number: int, request: _Request, labels: tuple[str, ...]) -> DataError:
    where = f"class {labels[index]!r}" if labels else "the data"
    sides = ", ".join(SIDES[side] for side in reversed(request.needed))
    if request.grouped:
        return DataError(
            f"{where} has images in too few groups to be on each side of the split ({sides}): it has {number}; "
            "add images, or let data.group_by make smaller groups"
        )
    return DataError(
        f"{where} has too few images: {number} distinct ones, expected at least {len(request.needed)} ({sides}); "
        "add images, or remove the class"
    )


def _refuse_shared(dataset: Dataset, groups: npt.NDArray[np.str_], sides: Mapping[str, Indices]) -> None:
    """Raise :class:`DataError` if a group is on two sides of the data's own split."""
    for (one, first), (two, second) in itertools.combinations(sides.items(), 2):
        if shared := set(groups[first]) & set(groups[second]):
            name = next(dataset.names[i] for i in first if groups[i] in shared)
            raise DataError(
                f"the group of {name} is both in {one} and in {two}, {len(shared)} groups in all: "
                "the data's own split leaks; repair it, or train without --group-by"
            )


def _groups(dataset: Dataset, expression: str) -> npt.NDArray[np.str_]:
    """Return the text of each image's group: what the expression matches in its path below the class folder."""
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise RecipeError(f"data.group_by {expression!r} is not a regular expression: {error}") from None
    groups = []
    for index in range(len(dataset.names)):
        path = dataset.below_class_folder(index)
        match = pattern.search(path)
        if match is None:
            raise DataError(
                f"data.group_by {expression!r} matches nothing in {dataset.names[index]!r} (below the class folder): "
                "expected a match for every image"
            )
        groups.append((match.group(1) if pattern.groups else match.group()) or "")
    return np.array(groups)


def _without_copies(dataset: Dataset, test: Indices, val: Indices, train: Indices) -> tuple[Indices, Indices, Indices]:
    """Return validation and training images without copies of held-out ones, and the images that were left out."""
    excluded: Indices = np.empty(0, np.int64)
    if dataset.contents is None or not len(test) + len(val):
        return val, train, excluded
    contents = dataset.contents
    kept_val = val[~np.isin(contents[val], contents[test])]
    kept_train = train[~np.isin(contents[train], contents[np.concatenate([test, val])])]
    excluded = np.setdiff1d(np.concatenate([val, train]), np.concatenate([kept_val, kept_train]))
    return kept_val, kept_train, excluded


def _note_excluded(dataset: Dataset, excluded: Indices) -> tuple[str, ...]:
    if not len(excluded):
        return ()
    note = (
        f"{len(excluded)} images are not used, because the data's own test or validation split has exact copies of "
        f"them, for example {dataset.names[excluded[0]]}"
    )
    return (note,)
