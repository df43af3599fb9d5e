"""Split a data set into training, validation and test images.

Each image is assigned to the training, validation or test set by a hash of the seed and the image's content. With
``data.group_by``, the hash is computed from the seed and the image's group instead. Adding, removing or renaming other
images therefore does not change the assignment, and exact copies of an image are always in the same set. As a
consequence, the fractions are met only on average.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.data.dataset import Dataset
from edgerec.data.hash_split import TEST, TRAIN, VAL, HashKeys, Indices, SplitRequest, assign, group_names
from edgerec.errors import DataError
from edgerec.recipe import DataSection

__all__ = ["Indices", "Split", "expected_subsets", "recorded_split", "split_dataset"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Training, validation and test set, as sorted indices into a :class:`Dataset`.

    Attributes:
        train: training images.
        val: validation images.
        test: test images.
        held_out: whether edgerec chose the test images, because the data has no test split of its own.
        moved: images that were moved out of the set that their hash selects, because otherwise a class would have no
            image in another set.
        excluded: images that are not used, because the data's own test or validation split has an exact copy.
        notes: messages for the user, such as the actual fractions. :meth:`report` logs them.
    """

    train: Indices
    val: Indices
    test: Indices
    held_out: bool
    moved: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    excluded: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    notes: tuple[str, ...] = ()

    def report(self) -> None:
        """Log the messages about the split.

        Call this method after all checks of the data have passed, so that no error follows the messages.
        """
        for note in self.notes:
            log.info(note)

    def part(self, name: str) -> Indices:
        """Return the indices of the images in the set ``train``, ``val`` or ``test``, or in ``all`` sets."""
        return np.sort(np.concatenate([self.train, self.val, self.test])) if name == "all" else getattr(self, name)


def split_dataset(dataset: Dataset, section: DataSection, seed: int) -> Split:
    """Split a data set by its split folders if it has any, otherwise by hashing each image or group.

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
            fractions cannot be met with this seed, or a pack has no images in one of the sets.
        RecipeError: the fractions leave no images for training, or ``group_by`` is not a regular expression.
    """
    everything = np.arange(len(dataset.classes))
    tagged = {name: everything[dataset.splits == name] for name in ("train", "val", "test")}
    if dataset.packed is not None:
        _refuse_empty_sets(tagged, dataset.packed.location, "pack the data again")
    # Images without a split are used for training if other images of a merged data set have a split.
    own, unassigned = bool(np.any(dataset.splits != "")), dataset.splits == ""
    train, val, test = everything[(dataset.splits == "train") | unassigned], tagged["val"], tagged["test"]
    if section.group_by and own and dataset.packed is None:
        groups = group_names(dataset, section.group_by)
        _refuse_shared_groups(dataset, groups, {"train": train, "validation": val, "test": test})
    val, train, excluded = _without_copies(dataset, test, val, train)
    held_out, choose_val = not len(test), not len(val)
    moved: Indices = np.empty(0, np.int64)
    notes = _note_excluded(dataset, excluded)
    if len(train) and (held_out or choose_val):
        group_by = section.group_by if dataset.packed is None else ""
        request = SplitRequest(section.test_fraction * held_out, section.val_fraction * choose_val, bool(group_by))
        keys = HashKeys.of(dataset, group_by).at(train)
        assignment = assign(keys, dataset.classes[train], dataset.labels, request, seed)
        test = train[assignment.sets == TEST] if held_out else test
        val = train[assignment.sets == VAL] if choose_val else val
        train, moved = train[assignment.sets == TRAIN], train[assignment.moved]
        notes += assignment.notes(request)
    counts = np.bincount(dataset.classes[train], minlength=len(dataset.labels))
    if missing := [label for label, count in zip(dataset.labels, counts, strict=False) if not count]:
        raise DataError(
            f"class {missing[0]!r} has test images, but no training images: check the spelling of its folder, and "
            "whether its training images are copies of test images"
        )
    return Split(train, val, test, held_out, moved, excluded, notes)


def recorded_split(dataset: Dataset, record: Mapping[str, Any]) -> Split:
    """Restore the split that is recorded in the ``split.json`` file of a run.

    The restored split is the same even if the splitting rule has changed since the run.

    Args:
        dataset: the images that the run was trained on.
        record: the content of ``split.json``.

    Raises:
        DataError: the record names images that are not in the data, or a set has no images.
    """
    if dataset.packed is not None:
        train, val, test = (np.flatnonzero(dataset.splits == name) for name in ("train", "val", "test"))
        _refuse_empty_sets({"train": train, "val": val, "test": test}, dataset.packed.location, "pack the data again")
        return Split(train, val, test, bool(record.get("held_out_here", False)))
    position = {name: i for i, name in enumerate(dataset.names)}
    try:
        val, test, excluded, moved = (
            np.sort(np.array([position[name] for name in record.get(key, [])], np.int64))
            for key in ("val", "test", "excluded", "moved")
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"split.json lists the image {error}, which is not in the data: restore the image, or train again"
        ) from None
    used = np.concatenate([val, test, excluded])
    train = np.setdiff1d(np.arange(len(dataset.classes)), used)
    _refuse_empty_sets({"train": train, "val": val, "test": test}, "split.json", "restore this file, or train again")
    return Split(train, val, test, bool(record.get("held_out_here", False)), moved, excluded)


def expected_subsets(dataset: Dataset, section: DataSection, seed: int) -> npt.NDArray[np.str_] | None:
    """Return the set (``train``, ``val`` or ``test``) that the hash of each image selects.

    The array has the shape ``(N,)``. For an image that was not in the data of a run, the result is the set to which the
    run would have assigned the image. Return None if the images have no content digests, or if a path does not match
    ``data.group_by``.
    """
    if dataset.contents is None:
        return None
    try:
        hashes = HashKeys.of(dataset, section.group_by).hashes(seed)
    except DataError:
        return None
    limits = (section.test_fraction, section.test_fraction + section.val_fraction)
    return np.array(["test", "val", "train"])[np.searchsorted(limits, hashes, side="right")]


def _refuse_empty_sets(subsets: Mapping[str, Indices], where: str, fix: str) -> None:
    titles = {"train": "training", "val": "validation", "test": "test"}
    for name, positions in subsets.items():
        if not len(positions):
            raise DataError(f"{where} has no {titles[name]} images: {fix}")


def _refuse_shared_groups(dataset: Dataset, groups: npt.NDArray[np.str_], subsets: Mapping[str, Indices]) -> None:
    for (one, first), (two, second) in itertools.combinations(subsets.items(), 2):
        if shared := set(groups[first]) & set(groups[second]):
            name = next(dataset.names[i] for i in first if groups[i] in shared)
            raise DataError(
                f"the data's own split is invalid: images of the same group as {name} are in both the {one} and "
                f"the {two} set ({len(shared)} such groups in total). Correct the split, or omit data.group_by"
            )


def _without_copies(dataset: Dataset, test: Indices, val: Indices, train: Indices) -> tuple[Indices, Indices, Indices]:
    """Remove copies of test images from the other sets, and copies of validation images from the training set.

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
