"""Assign images to the test, validation and training sets by a hash of their content or group name.

Images with equal hashes form an image group, which is never divided between sets: all copies of one image, or all
images with the same group name. scikit-learn's ``GroupShuffleSplit`` is not used, because it shuffles the groups, so
that adding or removing one image would move many other images to another set.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerec.data.dataset import Dataset
from edgerec.errors import DataError, RecipeError
from edgerec.utils.optional import require

Indices = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.float64]

TEST, VAL, TRAIN = range(3)
SET_NAMES = ("test", "validation", "training")
# Maximum difference between the requested and the actual fraction of images in a set.
TOLERANCE = 0.05
# Maximum deviation from the requested fractions in small data sets, in binomial standard deviations.
DEVIATIONS = 4.0
# Number of other seeds to try in order to recommend a working seed in the error message.
OTHER_SEEDS = 200
# Moving a group of images can remove another class from a set, so several passes can be necessary.
MAX_PASSES = 10


@dataclass(frozen=True)
class SplitRequest:
    """Requested fractions of test and validation images.

    A fraction is 0 if the data already has the set.

    Attributes:
        test: fraction of test images.
        val: fraction of validation images.
        grouped: whether ``data.group_by`` is set.
    """

    test: float
    val: float
    grouped: bool

    @property
    def fractions(self) -> tuple[float, float]:
        """Requested fractions of test and validation images."""
        return self.test, self.val

    @property
    def required_sets(self) -> tuple[int, ...]:
        """Sets that must contain at least one image of every class."""
        return tuple(number for number, fraction in ((TEST, self.test), (VAL, self.val), (TRAIN, 1.0)) if fraction)


@dataclass(frozen=True)
class HashKeys:
    """Hash keys of the images: their group names or their content digests.

    Attributes:
        keys: the distinct keys.
        of_image: ``(N,)``, index of each image's key.
        copies: ``(N,)``, an integer that is the same for all exact copies of an image. None if the keys are content
            digests, because copies then have the same key.
    """

    keys: tuple[bytes, ...]
    of_image: Indices
    copies: Indices | None = None

    @classmethod
    def of(cls, dataset: Dataset, group_by: str) -> HashKeys:
        """Return the hash keys of a data set's images.

        If the regular expression ``group_by`` is not empty, the keys are the group names that it extracts.
        """
        contents = None if dataset.contents is None else np.unique(dataset.contents, return_inverse=True)
        if group_by:
            names, of_image = np.unique(group_names(dataset, group_by), return_inverse=True)
            return cls(tuple(map(os.fsencode, names)), of_image, None if contents is None else contents[1])
        if contents is not None:
            return cls(tuple(contents[0].tolist()), contents[1])
        return cls(tuple(map(os.fsencode, dataset.names)), np.arange(len(dataset.names)))

    def at(self, positions: Indices) -> HashKeys:
        """Return the hash keys for the images at these indices."""
        used, of_image = np.unique(self.of_image[positions], return_inverse=True)
        copies = None if self.copies is None else np.unique(self.copies[positions], return_inverse=True)[1]
        return HashKeys(tuple(self.keys[i] for i in used), of_image, copies)

    def hashes(self, seed: int) -> Hashes:
        """Return a hash of each image's key, uniformly distributed in [0, 1).

        Groups that contain copies of the same image all get the hash of the group whose name is first in alphabetical
        order.
        """
        hashes = np.array([_uniform(seed, key) for key in self.keys])
        return hashes[self.of_image if self.copies is None else self._first_linked_keys(self.copies)[self.of_image]]

    def _first_linked_keys(self, copies: Indices) -> Indices:
        """Two keys are linked if an image with one key is an exact copy of an image with the other key."""
        count = len(self.keys)
        # Build a bipartite graph with one node per key and one node per distinct image.
        nodes = count + int(copies.max()) + 1
        edges = (np.ones(len(self.of_image), bool), (self.of_image, count + copies))
        graph = require("scipy.sparse").coo_array(edges, shape=(nodes, nodes))
        component = require("scipy.sparse.csgraph").connected_components(graph, directed=False)[1][:count]
        _, first, of_key = np.unique(component, return_index=True, return_inverse=True)
        return first[of_key]


def _uniform(seed: int, key: bytes) -> float:
    digest = hashlib.sha256(b"%d\0%b" % (seed, key)).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * (1 - 2**-53)


def group_names(dataset: Dataset, expression: str) -> npt.NDArray[np.str_]:
    """Return the group name of each image.

    The name is the part of the image's path inside its class folder that matches the regular expression
    ``expression``. If the expression contains a group, the name is the match of the first group.
    """
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise RecipeError(f"data.group_by {expression!r} is not a regular expression: {error}") from None
    names = []
    for index in range(len(dataset.names)):
        match = pattern.search(dataset.below_class_folder(index))
        if match is None:
            raise DataError(
                f"data.group_by {expression!r} does not match the path of {dataset.names[index]!r} inside its class "
                "folder: use an expression that matches the path of every image"
            )
        names.append((match.group(1) if pattern.groups else match.group()) or "")
    return np.array(names)


@dataclass(frozen=True)
class Assignment:
    """Assignment of each image to the test, validation or training set.

    Attributes:
        sets: ``(N,)``, ``TEST``, ``VAL`` or ``TRAIN``.
        moved: ``(N,)``, whether the image was moved out of the set that its hash selects, because otherwise a class
            would have no image in another set.
        fractions: actual fractions of test and validation images.
        problem: description of a fraction that differs too much from the requested one, or an empty string.
    """

    sets: Indices
    moved: npt.NDArray[np.bool_]
    fractions: tuple[float, float]
    problem: str

    def notes(self, request: SplitRequest) -> tuple[str, ...]:
        """Return log messages about the split."""
        parts = ", ".join(
            f"{fraction:.1%} {SET_NAMES[number]} (requested {requested:.1%})"
            for number, (fraction, requested) in enumerate(zip(self.fractions, request.fractions, strict=True))
            if requested
        )
        differences = [abs(f - requested) for f, requested in zip(self.fractions, request.fractions, strict=True)]
        why = "; with so few images, the fractions depend on the seed" if max(differences) > TOLERANCE else ""
        notes = [f"split by {'group' if request.grouped else 'image content'}: {parts}{why}"]
        if self.moved.any():
            notes.append(
                f"{self.moved.sum()} images were moved so that each class is in the training, validation and test set"
            )
        return tuple(notes)


def assign(keys: HashKeys, classes: Indices, labels: tuple[str, ...], request: SplitRequest, seed: int) -> Assignment:
    """Assign each image to the test, validation or training set.

    Args:
        keys: hash keys of the images.
        classes: ``(N,)``, class of each image.
        labels: name of each class, or an empty tuple if the data has no labels.
        request: the requested fractions.
        seed: part of every hash.

    Raises:
        DataError: a class has too few images or groups, or the fractions differ too much from the requested ones.
        RecipeError: the requested fractions leave no images for training.
    """
    if request.test + request.val > 1 - 1e-9:
        raise RecipeError(
            f"data.test_fraction {request.test:g} and data.val_fraction {request.val:g} leave no images for training: "
            "reduce them so that their sum is below 1"
        )
    if request.grouped and len(keys.keys) < len(request.required_sets):
        raise DataError(
            f"data.group_by gives {len(keys.keys)} group{'s' * (len(keys.keys) > 1)}, expected at least "
            f"{len(request.required_sets)}: use an expression that gives more groups"
        )
    assignment = _assign_with_seed(keys, classes, labels, request, seed)
    if not assignment.problem:
        return assignment
    advice = "change data.test_fraction or data.val_fraction"
    for other_seed in range(seed + 1, seed + 1 + OTHER_SEEDS) if len(keys.keys) <= 5000 else ():
        other = _assign_with_seed(keys, classes, labels, request, other_seed)
        if not other.problem:
            test, val = other.fractions
            advice = f"set seed to {other_seed} (test {test:.1%}, validation {val:.1%}), or {advice}"
            break
    raise DataError(f"with seed {seed}, {assignment.problem}: {advice}")


def _assign_with_seed(
    keys: HashKeys, classes: Indices, labels: tuple[str, ...], request: SplitRequest, seed: int
) -> Assignment:
    groups = _ImageGroups.of(keys.hashes(seed), classes)
    by_hash = np.searchsorted(np.cumsum(request.fractions), groups.hashes, side="right").astype(np.int64)
    sets = _with_every_class(groups, by_hash, request, labels)
    of_image = groups.of_image
    problem = _describe_deviation(groups, by_hash, sets, request)
    return Assignment(sets[of_image], (sets != by_hash)[of_image], groups.fractions(sets), problem)


@dataclass(frozen=True)
class _ImageGroups:
    """Groups of images that must stay in the same set because their hashes are equal.

    Attributes:
        hashes: ``(groups,)``, hash of each group, ascending.
        of_image: ``(images,)``, index of each image's group.
        pairs: ``(2, M)``, all distinct pairs of a class and a group that contains images of this class.
        sizes: ``(groups,)``, number of images in each group.
    """

    hashes: Hashes
    of_image: Indices
    pairs: Indices
    sizes: Indices

    @classmethod
    def of(cls, hashes: Hashes, classes: Indices) -> _ImageGroups:
        values, of_image, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
        pairs = np.unique(np.stack([classes, of_image]), axis=1)
        return cls(values, of_image, pairs, sizes)

    def fractions(self, sets: Indices) -> tuple[float, float]:
        counts = np.bincount(sets, self.sizes, minlength=3) / self.sizes.sum()
        return float(counts[TEST]), float(counts[VAL])

    def count_per_class_and_set(self, sets: Indices) -> Indices:
        classes, of_pair = self.pairs
        counts = np.zeros((classes.max() + 1, 3), np.int64)
        np.add.at(counts, (classes, sets[of_pair]), 1)
        return counts

    def is_spare(self, group: int, sets: Indices) -> bool:
        """Return whether a group can leave its set without removing the last image of any class."""
        classes, of_pair = self.pairs
        return bool((self.count_per_class_and_set(sets)[classes[of_pair == group], sets[group]] > 1).all())


def _describe_deviation(groups: _ImageGroups, by_hash: Indices, sets: Indices, request: SplitRequest) -> str:
    """Return a message if the fraction of images in a set differs too much from the requested fraction.

    A difference is accepted if it is caused only by images that were moved so that each class is in each set.
    """
    count = len(groups.hashes)
    for number, requested in enumerate(request.fractions):
        if not requested:
            continue
        chance = 1 / count if request.grouped else DEVIATIONS * math.sqrt(requested * (1 - requested) / count)
        fractions = [groups.fractions(assigned)[number] for assigned in (sets, by_hash)]
        if min(abs(fraction - requested) for fraction in fractions) > max(TOLERANCE, chance) + 1e-9:
            what = "groups" if request.grouped else "distinct images"
            return (
                f"{fractions[0]:.1%} of the images ({count:,} {what}) are {SET_NAMES[number]} images, "
                f"requested {requested:.1%}"
            )
    return ""


def _with_every_class(
    groups: _ImageGroups, by_hash: Indices, request: SplitRequest, labels: tuple[str, ...]
) -> Indices:
    """Move groups of images between sets until each class is in each set."""
    classes, of_pair = groups.pairs
    counts = np.bincount(classes)
    for few in np.flatnonzero((counts > 0) & (counts < len(request.required_sets))):
        raise _too_few(int(few), int(counts[few]), request, labels)
    limits = np.cumsum([0.0, *request.fractions])
    limits = np.append(limits, 1.0)
    sets, was_moved = by_hash.copy(), np.zeros(len(by_hash), bool)
    missing = _missing_classes(groups, sets, request)
    for _ in range(MAX_PASSES):
        for index, number in missing:
            of_class = of_pair[classes == index]
            if (sets[of_class] == number).any():
                continue
            hashes = groups.hashes[of_class]
            distance = np.maximum(limits[number] - hashes, hashes - limits[number + 1])
            movable = [group for group in of_class[np.argsort(distance, kind="stable")] if not was_moved[group]]
            # Prefer a group that can be moved without removing the last image of any class from its set.
            spare = [group for group in movable if groups.is_spare(group, sets)]
            spare = spare or [group for group in movable if np.count_nonzero(sets[of_class] == sets[group]) > 1]
            if not spare:
                raise _too_few(index, int(counts[index]), request, labels)
            sets[spare[0]], was_moved[spare[0]] = number, True
        missing = _missing_classes(groups, sets, request)
        if not missing:
            return sets
    raise _too_few(missing[0][0], int(counts[missing[0][0]]), request, labels)


def _missing_classes(groups: _ImageGroups, sets: Indices, request: SplitRequest) -> list[tuple[int, int]]:
    counts = groups.count_per_class_and_set(sets)
    present = counts.any(axis=1)
    return [
        (int(index), number)
        for number in request.required_sets
        for index in np.flatnonzero(present & (counts[:, number] == 0))
    ]


def _too_few(index: int, count: int, request: SplitRequest, labels: tuple[str, ...]) -> DataError:
    where = f"class {labels[index]!r}" if labels else "the data"
    sets = ", ".join(SET_NAMES[number] for number in reversed(request.required_sets))
    if request.grouped:
        return DataError(
            f"{where} has images in too few groups for one group in each set ({sets}): the number of groups is "
            f"{count}. Add images, or set data.group_by to an expression that gives smaller groups"
        )
    return DataError(
        f"{where} has too few images: {count} distinct images, expected at least {len(request.required_sets)} "
        f"({sets}). Add images, or remove the class"
    )
