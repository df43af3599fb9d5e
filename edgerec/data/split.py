"""The split of a data set into training, validation and test images.

Each image is assigned to the training, validation or test set by a hash of the seed and the image's content. With
``data.group_by``, the hash is computed from the seed and the image's group instead. Adding, removing or renaming other
images therefore does not change the assignment, and exact copies of an image are always in the same set. As a
consequence, the fractions are met only on average.
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

from edgerec.data.dataset import Dataset
from edgerec.errors import DataError, RecipeError
from edgerec.recipe import DataSection

log = logging.getLogger(__name__)

Indices = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.float64]

TEST, VAL, TRAIN = range(3)
SUBSET_NAMES = ("test", "validation", "training")
# Largest accepted difference between a realized and the requested fraction: TOLERANCE, or in a small data set
# DEVIATIONS standard deviations of the binomial distribution.
TOLERANCE, DEVIATIONS = 0.05, 4.0
# Number of alternative seeds that are tried so that an error message can recommend one.
OTHER_SEEDS = 200
# Maximum number of rounds that move groups. If a group contains several classes, moving the group for the sake of one
# class can leave another class without an image, so that one round is not always enough.
MAX_ROUNDS = 10


@dataclass(frozen=True)
class Split:
    """Training, validation and test set, as sorted positions in a :class:`Dataset`.

    Attributes:
        train: training images.
        val: validation images.
        test: test images.
        held_out: whether edgerec chose the test images, because the data has no test split of its own.
        moved: images that were moved out of the set that their hash selects, because a class would otherwise have
            had no image in another set.
        excluded: images that are not used, because the data's own test or validation split has an exact copy.
        notes: messages for the user, such as the realized fractions. :meth:`report` logs them.
    """

    train: Indices
    val: Indices
    test: Indices
    held_out: bool
    moved: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    excluded: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    notes: tuple[str, ...] = ()

    def report(self) -> None:
        """Log the notes. Call this method after all checks have passed, so that an error is not preceded by notes."""
        for note in self.notes:
            log.info(note)

    def part(self, name: str) -> Indices:
        """Return the positions of the images in ``train``, ``val`` or ``test``, or in ``all`` three sets."""
        return np.sort(np.concatenate([self.train, self.val, self.test])) if name == "all" else getattr(self, name)


def split_dataset(dataset: Dataset, section: DataSection, seed: int) -> Split:
    """Split a data set by its own split folders if it has them, otherwise by the hash of each image or group.

    If the data has a test split but no validation split, the validation images are chosen from the training images.
    Every class gets at least one image (or group) in the training, validation and test set. If the hashes assign no
    image of a class to one of these sets, the image whose hash is nearest to the set's range is moved into the set.
    The move is undone as soon as the hash of another image of the class selects this set.

    Args:
        dataset: the images.
        section: the requested fractions, and the regular expression that groups images.
        seed: part of every hash, so that another seed gives another split.

    Raises:
        DataError: a class has too few images or groups, a group is in two of the data's own splits, or the requested
            fractions cannot be met with this seed.
        RecipeError: the fractions leave nothing to train on, or ``group_by`` is not a regular expression.
    """
    everything = np.arange(len(dataset.classes))
    tagged = {name: everything[dataset.splits == name] for name in ("train", "val", "test")}
    # If a data set without splits is merged with one that has a test split, the former is used for training only.
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
        subsets, was_moved, fractions = _assign(members, dataset.classes[train], dataset.labels, request, seed)
        test = train[subsets == TEST] if held_out else test
        val = train[subsets == VAL] if choose_val else val
        train, moved = train[subsets == TRAIN], train[was_moved]
        notes += fractions
    counts = np.bincount(dataset.classes[train], minlength=len(dataset.labels))
    if missing := [label for label, count in zip(dataset.labels, counts, strict=False) if not count]:
        raise DataError(
            f"class {missing[0]!r} has test images, but no training images: check the spelling of its folder, and "
            "whether its training images are copies of test images"
        )
    return Split(train, val, test, held_out, moved, excluded, notes)


def recorded_split(dataset: Dataset, record: Mapping[str, Any]) -> Split:
    """Reconstruct the split that a run recorded in ``split.json``, independently of the current splitting rule.

    Args:
        dataset: the images that the run was trained on.
        record: the content of ``split.json``.

    Raises:
        DataError: the record names images that are not in the data.
    """
    if dataset.packed is not None:  # each shard of a pack belongs to one split
        train, val, test = (np.flatnonzero(dataset.splits == name) for name in ("train", "val", "test"))
        return Split(train, val, test, bool(record.get("held_out_here", False)))
    position = {name: i for i, name in enumerate(dataset.names)}
    try:
        val, test, excluded, moved = (
            np.sort(np.array([position[name] for name in record.get(key, [])], np.int64))
            for key in ("val", "test", "excluded", "moved")
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"split.json names the image {error}, which is not in the data: restore the image, or train again"
        ) from None
    used = np.concatenate([val, test, excluded])
    train = np.setdiff1d(np.arange(len(dataset.classes)), used)
    return Split(train, val, test, bool(record.get("held_out_here", False)), moved, excluded)


def expected_subsets(dataset: Dataset, section: DataSection, seed: int) -> npt.NDArray[np.str_] | None:
    """Return ``test``, ``val`` or ``train`` for each image, as selected by the hash alone, ``(N,)``.

    The result is also defined for images that were not part of a run's data: it is the set to which the run would
    have assigned the image. Return None if the images have no content digests, or if a path does not match
    ``data.group_by``.
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
    """Hash keys of the images: group names or content digests.

    Attributes:
        keys: the distinct keys.
        of_image: ``(N,)``, index of each image's key.
        copies: ``(N,)``, the same number for all exact copies of an image; None if the keys are content digests.
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
        """Return the hash keys of the images at ``positions``."""
        used, of_image = np.unique(self.of_image[positions], return_inverse=True)
        copies = None if self.copies is None else np.unique(self.copies[positions], return_inverse=True)[1]
        return _Members(tuple(self.keys[i] for i in used), of_image, copies)

    def hashes(self, seed: int) -> Hashes:
        """Return the hash of each image's key, uniform in [0, 1), ``(N,)``.

        Groups that share an exact copy of an image get the hash of the group that comes first in alphabetical order.
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
    """Requested fractions of test and validation images; 0 for a split that the data already has."""

    test: float
    val: float
    grouped: bool

    @property
    def fractions(self) -> tuple[float, float]:
        return self.test, self.val

    @property
    def needed(self) -> tuple[int, ...]:
        """Return the sets (``TEST``, ``VAL``, ``TRAIN``) in which each class needs at least one image."""
        return tuple(subset for subset, fraction in ((TEST, self.test), (VAL, self.val), (TRAIN, 1.0)) if fraction)


@dataclass(frozen=True)
class _Units:
    """Units that are never divided between sets: all copies of one image, or all images of one group.

    Attributes:
        hashes: ``(units,)``, hashes in ascending order.
        of_image: ``(images,)``, index of each image's unit.
        pairs: ``(2, M)``, all distinct pairs of a class and a unit that contains images of this class.
        sizes: ``(units,)``, number of images in each unit.
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


def _assign(
    members: _Members, classes: Indices, labels: tuple[str, ...], request: _Request, seed: int
) -> tuple[Indices, npt.NDArray[np.bool_], tuple[str, ...]]:
    """Return each image's set, whether the image was moved for the sake of its class, and notes for the user."""
    if request.test + request.val > 1 - 1e-9:
        raise RecipeError(
            f"data.test_fraction {request.test:g} and data.val_fraction {request.val:g} leave no images for training: "
            "reduce them so that their sum is below 1"
        )
    if request.grouped and len(members.keys) < len(request.needed):
        raise DataError(
            f"data.group_by gives {len(members.keys)} group{'s' * (len(members.keys) > 1)}, expected at least "
            f"{len(request.needed)}: use an expression that gives more groups"
        )

    def attempt(seed: int) -> tuple[Indices, npt.NDArray[np.bool_], str, tuple[float, float]]:
        units = _Units.of(members.hashes(seed), classes)
        by_hash = np.searchsorted(np.cumsum(request.fractions), units.hashes, side="right").astype(np.int64)
        subsets = _with_every_class(units, by_hash, request, labels)
        realized = _realized(units, subsets)
        problem = _deviation(units, by_hash, subsets, request)
        return subsets[units.of_image], (subsets != by_hash)[units.of_image], problem, realized

    subsets, moved, problem, realized = attempt(seed)
    if problem:
        others = range(seed + 1, seed + 1 + OTHER_SEEDS) if len(members.keys) <= 5000 else ()
        attempts = ((other, attempt(other)) for other in others)
        better = next(((other, fractions) for other, (_, _, failure, fractions) in attempts if not failure), None)
        advice = "change data.test_fraction or data.val_fraction"
        if better is not None:
            test, val = better[1]
            advice = f"set seed to {better[0]} (test {test:.1%}, validation {val:.1%}), or {advice}"
        raise DataError(f"with seed {seed}, {problem}: {advice}")
    parts = ", ".join(
        f"{fraction:.1%} {SUBSET_NAMES[subset]} (requested {requested:.1%})"
        for subset, (fraction, requested) in enumerate(zip(realized, request.fractions, strict=True))
        if requested
    )
    deviation = max(abs(fraction - requested) for fraction, requested in zip(realized, request.fractions, strict=True))
    why = "; with so few images, the fractions depend on the seed" if deviation > TOLERANCE else ""
    notes = [f"split by {'group' if request.grouped else 'image content'}: {parts}{why}"]
    if moved.any():
        notes.append(f"{moved.sum()} images were moved so that each class is in the training, validation and test set")
    return subsets, moved, tuple(notes)


def _realized(units: _Units, subsets: Indices) -> tuple[float, float]:
    """Return the realized fractions of test and validation images."""
    counts = np.bincount(subsets, units.sizes, minlength=3) / units.sizes.sum()
    return float(counts[TEST]), float(counts[VAL])


def _deviation(units: _Units, by_hash: Indices, subsets: Indices, request: _Request) -> str:
    """Describe a fraction that differs too much from the requested one; return an empty string if there is none.

    A deviation that is caused only by images that were moved for the sake of a class is accepted.
    """
    count = len(units.hashes)
    for subset, requested in enumerate(request.fractions):
        if not requested:
            continue
        chance = 1 / count if request.grouped else DEVIATIONS * math.sqrt(requested * (1 - requested) / count)
        realized = [_realized(units, assignment)[subset] for assignment in (subsets, by_hash)]
        if min(abs(fraction - requested) for fraction in realized) > max(TOLERANCE, chance) + 1e-9:
            what = "groups" if request.grouped else "distinct images"
            return (
                f"{realized[0]:.1%} of the images ({count:,} {what}) are {SUBSET_NAMES[subset]} images, "
                f"requested {requested:.1%}"
            )
    return ""


def _with_every_class(units: _Units, by_hash: Indices, request: _Request, labels: tuple[str, ...]) -> Indices:
    """Move units so that each class has a unit in every needed set, and return the set of each unit."""
    classes, of_pair = units.pairs
    number = np.bincount(classes)
    for few in np.flatnonzero((number > 0) & (number < len(request.needed))):
        raise _too_few(int(few), int(number[few]), request, labels)
    limits = np.cumsum([0.0, *request.fractions])
    limits = np.append(limits, 1.0)
    subsets, fixed = by_hash.copy(), np.zeros(len(by_hash), bool)
    missing = _missing(units, subsets, request)
    for _ in range(MAX_ROUNDS):
        for index, subset in missing:
            of_class = of_pair[classes == index]
            if (subsets[of_class] == subset).any():
                continue
            hashes = units.hashes[of_class]
            distance = np.maximum(limits[subset] - hashes, hashes - limits[subset + 1])
            free = [unit for unit in of_class[np.argsort(distance, kind="stable")] if not fixed[unit]]
            # Prefer the nearest unit whose move leaves every class represented in the unit's old set. If there is none,
            # it is enough that this class remains represented there.
            spare = [unit for unit in free if _is_spare(unit, units, subsets)]
            spare = spare or [unit for unit in free if np.count_nonzero(subsets[of_class] == subsets[unit]) > 1]
            if not spare:
                raise _too_few(index, int(number[index]), request, labels)
            subsets[spare[0]], fixed[spare[0]] = subset, True
        missing = _missing(units, subsets, request)
        if not missing:
            return subsets
    raise _too_few(missing[0][0], int(number[missing[0][0]]), request, labels)


def _missing(units: _Units, subsets: Indices, request: _Request) -> list[tuple[int, int]]:
    """Return all pairs of a class and a set in which the class has no unit."""
    counts = _counts(units, subsets)
    present = counts.any(axis=1)
    return [
        (int(index), subset)
        for subset in request.needed
        for index in np.flatnonzero(present & (counts[:, subset] == 0))
    ]


def _counts(units: _Units, subsets: Indices) -> npt.NDArray[np.int64]:
    """Return the number of units of each class in the test, validation and training set, ``(classes, 3)``."""
    classes, of_pair = units.pairs
    counts = np.zeros((classes.max() + 1, 3), np.int64)
    np.add.at(counts, (classes, subsets[of_pair]), 1)
    return counts


def _is_spare(unit: int, units: _Units, subsets: Indices) -> bool:
    """Return whether every class of a unit has another unit in the same set, so that the unit can be moved away."""
    classes, of_pair = units.pairs
    return bool((_counts(units, subsets)[classes[of_pair == unit], subsets[unit]] > 1).all())


def _too_few(index: int, number: int, request: _Request, labels: tuple[str, ...]) -> DataError:
    where = f"class {labels[index]!r}" if labels else "the data"
    subsets = ", ".join(SUBSET_NAMES[subset] for subset in reversed(request.needed))
    if request.grouped:
        return DataError(
            f"{where} has images in too few groups for one group in each set ({subsets}): the number of groups is "
            f"{number}. Add images, or set data.group_by to an expression that gives smaller groups"
        )
    return DataError(
        f"{where} has too few images: {number} distinct images, expected at least {len(request.needed)} ({subsets}). "
        "Add images, or remove the class"
    )


def _refuse_shared(dataset: Dataset, groups: npt.NDArray[np.str_], subsets: Mapping[str, Indices]) -> None:
    """Raise :class:`DataError` if a group has images in two of the data's own splits."""
    for (one, first), (two, second) in itertools.combinations(subsets.items(), 2):
        if shared := set(groups[first]) & set(groups[second]):
            name = next(dataset.names[i] for i in first if groups[i] in shared)
            raise DataError(
                f"the data's own split leaks: the group of {name} is in both the {one} and the {two} set "
                f"({len(shared)} such groups in total). Repair the split, or train without --group-by"
            )


def _groups(dataset: Dataset, expression: str) -> npt.NDArray[np.str_]:
    """Return each image's group name: the part of its path below the class folder that the expression matches."""
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
                "use an expression that matches the path of every image"
            )
        groups.append((match.group(1) if pattern.groups else match.group()) or "")
    return np.array(groups)


def _without_copies(dataset: Dataset, test: Indices, val: Indices, train: Indices) -> tuple[Indices, Indices, Indices]:
    """Remove exact copies of test images from the validation set, and of test and validation images from training.

    Returns:
        The remaining validation images, the remaining training images, and the excluded copies.
    """
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
