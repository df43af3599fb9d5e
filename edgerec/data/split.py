"""Which pictures train, which validate, which are held out."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from edgerec.contract.recipe import DataSection
from edgerec.data.dataset import Dataset
from edgerec.errors import DataError, RecipeError
from edgerec.optional import require

log = logging.getLogger(__name__)

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Positions in a :class:`Dataset`, each sorted; ``held_out`` says that the test part was taken here."""

    train: Indices
    val: Indices
    test: Indices
    held_out: bool

    def part(self, name: str) -> Indices:
        """``train``, ``val``, ``test``, or ``all`` of them."""
        return np.sort(np.concatenate([self.train, self.val, self.test])) if name == "all" else getattr(self, name)


def split_dataset(dataset: Dataset, section: DataSection, seed: int) -> Split:
    """Split by the data's own tags where it has them, else stratified by class (and whole groups).

    Raises:
        DataError: a class too small to be on every side, or names that the group expression does not match.
    """
    everything = np.arange(len(dataset.classes))
    tagged = {name: everything[dataset.splits == name] for name in ("train", "val", "test")}
    own = dataset.splits[0] != ""
    train = tagged["train"] if own else everything
    groups = _groups(dataset.names, section.group_by) if section.group_by else None
    test, val = tagged["test"], tagged["val"]
    held_out = not len(test)
    if held_out:
        train, test = _take(dataset, train, section.test_fraction, seed, groups, "test")
    if not len(val):
        # Of the whole, so that both fractions mean the same.
        fraction = section.val_fraction / (1 - section.test_fraction) if held_out else section.val_fraction
        train, val = _take(dataset, train, min(fraction, 0.5), seed + 1, groups, "validation")
    counts = np.bincount(dataset.classes[train], minlength=len(dataset.labels))
    if missing := [label for label, count in zip(dataset.labels, counts, strict=False) if not count]:
        raise DataError(f"class {missing[0]!r} has no picture to train on, only to test: is its name right?")
    if groups is not None:
        _refuse_shared(dataset, groups, {"train": train, "validation": val, "test": test})
    return Split(train, val, test, held_out)


def _refuse_shared(dataset: Dataset, groups: Indices, sides: dict[str, Indices]) -> None:
    """Only data with its own splits can have a group on two sides."""
    for (one, first), (two, second) in itertools.combinations(sides.items(), 2):
        if shared := set(groups[first]) & set(groups[second]):
            name = next(dataset.names[i] for i in first if groups[i] in shared)
            raise DataError(
                f"the group of {name} is both in {one} and in {two}, {len(shared)} groups in all: "
                "the data's own split leaks; repair it, or drop --group-by"
            )


def _groups(names: Sequence[str], expression: str) -> npt.NDArray[np.int64]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise RecipeError(f"data.group_by {expression!r} is no regular expression: {error}") from None
    found = []
    for name in names:
        match = pattern.search(PurePosixPath(name).name)
        if match is None:
            raise DataError(f"data.group_by {expression!r} matches nothing in {name!r}; it must match every file name")
        found.append(match.group(1) if pattern.groups else match.group())
    return np.unique(np.array([group or "" for group in found]), return_inverse=True)[1]


def _take(
    dataset: Dataset, positions: Indices, fraction: float, seed: int, groups: Indices | None, part: str
) -> tuple[Indices, Indices]:
    """Split ``positions`` in what is kept and about ``fraction`` of each class that is taken."""
    classes = dataset.classes[positions]
    if groups is None:
        taken = _stratified(dataset, classes, fraction, seed, part)
    else:
        taken = _grouped(classes, groups[positions], fraction, seed, part)
    mask = np.zeros(len(positions), bool)
    mask[taken] = True
    kept_and_taken = positions[~mask], positions[mask]
    for side, name in zip(kept_and_taken, ("the rest", part), strict=True):
        missing = sorted(set(np.unique(classes)) - set(np.unique(dataset.classes[side])))
        if missing:
            raise DataError(
                f"class {dataset.labels[missing[0]]!r} has no picture left for {name}: "
                "add pictures of it, or let data.group_by make smaller groups"
            )
    return kept_and_taken


def _stratified(dataset: Dataset, classes: Indices, fraction: float, seed: int, part: str) -> Indices:
    rng = np.random.default_rng(seed)
    taken = []
    for index in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == index))
        if len(members) < 2:
            raise DataError(
                f"class {dataset.labels[index]!r} has too few pictures to split off {part}: "
                "it needs at least 3 (train, validation, test); add some or remove the class"
            )
        taken.append(members[: min(len(members) - 1, max(1, round(len(members) * fraction)))])
    return np.concatenate(taken)


def _grouped(classes: Indices, groups: Indices, fraction: float, seed: int, part: str) -> Indices:
    wanted, count = max(2, round(1 / fraction)), len(np.unique(groups))
    if count < 2:
        raise DataError(f"data.group_by gives 1 group, {part} needs a second: use an expression with more groups")
    folds = min(wanted, count)
    if folds < wanted:
        log.warning(
            "data.group_by gives %d groups: %s gets one of them, more than %.0f %%", count, part, 100 * fraction
        )
    splitter = require("sklearn.model_selection").StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    try:
        return next(splitter.split(classes, classes, groups))[1]
    except ValueError as error:
        raise DataError(f"data.group_by leaves too few pictures of a class to split off {part}: {error}") from None
