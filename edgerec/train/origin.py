"""Find out which images of a data set a model was trained on: from its run, or from its bundle's provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.recipe import Recipe
from edgerec.data import Dataset, recorded_split, split_dataset
from edgerec.data.split import expected_sides
from edgerec.errors import DataError
from edgerec.train.leakage import shortened
from edgerec.train.run import Run, separated_digests

# ``(N,)``: ``train``, ``val``, ``test``, or an empty string for an image that the training did not have.
Sides = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Origin:
    """The data that a model was trained on.

    Attributes:
        digest: digest of that data; empty if it is not known.
        sides: returns the side of each image of a data set in the training; None if it cannot be known.
        adopted: whether the model was trained by another tool, so that its training images are not known.
    """

    digest: str
    sides: Callable[[Dataset], Sides | None]
    adopted: bool = False


def origin_of_run(run: Run) -> Origin:
    """Return the origin that a run records."""
    record = run.split_record

    def sides(dataset: Dataset) -> Sides | None:
        if dataset.digest == record["digest"]:
            return _of_split(dataset, recorded_split(dataset, record))
        contents = record.get("contents")
        if not contents or dataset.contents is None or not dataset.identifies(contents["of"]):
            return None
        known = shortened(dataset.contents)
        found = np.full(len(known), "", "<U5")
        for name in ("test", "val", "inherited", "train"):
            found[np.isin(known, separated_digests(contents[name]))] = "train" if name == "inherited" else name
        return found

    return Origin(record["digest"], sides, "adopted" in run.metrics)


def origin_of_bundle(provenance: Mapping[str, Any], recipe: Recipe) -> Origin:
    """Return the origin that a bundle's provenance tells; ``recipe`` is the one that it holds."""
    digest, summary = str(provenance.get("data_digest", "")), provenance.get("split")

    def sides(dataset: Dataset) -> Sides | None:
        same, tagged = bool(digest) and dataset.digest == digest, "test" in dataset.splits
        if not isinstance(summary, dict):
            # Older versions chose images by another rule, but never among the data's own test images.
            return np.where(dataset.splits == "test", "test", "train") if same and tagged else None
        if same:
            return _of_split(dataset, split_dataset(dataset, recipe.data, recipe.seed))
        if dataset.contents is None or not dataset.identifies(str(summary.get("of"))):
            return None
        try:
            sketch, moved = (separated_digests(summary[key]) for key in ("sketch", "moved"))
            complete, by_content = len(sketch) >= int(summary["trained"]), summary["by"] == "content"
        except (KeyError, TypeError, ValueError):
            return None
        known = shortened(dataset.contents)
        trained = np.isin(known, sketch)
        if complete or not trained.any():
            return np.where(trained, "train", "").astype("<U5")
        expected = expected_sides(dataset, recipe.data, recipe.seed) if by_content else None
        if expected is None:
            return None
        expected[np.isin(known, moved)] = "train"
        return expected

    return Origin(digest, sides, "adopted" in provenance)


def chosen_images(
    dataset: Dataset, source: str, split: str | None, sides: list[Sides] | None
) -> tuple[npt.NDArray[np.int64], str]:
    """Return the images to measure a model on, and the name of that part of the data.

    Args:
        dataset: the images.
        source: what the user calls the data, for messages.
        split: the part that the user asked for; None chooses images that the model was not trained on.
        sides: the side of each image in the training of each model of the ensemble; None if it is not known.

    Raises:
        DataError: there are no such images.
    """
    everything, tagged = np.arange(len(dataset.classes)), dataset.splits
    if split == "all":
        return everything, "all"
    overlap = sides is not None and any((some != "").any() for some in sides)
    if not overlap:
        if split is None and "test" not in tagged:
            return everything, "all"
        name = split or "test"
        if not len(part := everything[tagged == name]):
            raise DataError(
                f"{source} has no {name} split, and it is not known which of its images the model was trained on: "
                "use --split all"
            )
        return part, name
    assert sides is not None
    if split is not None:
        part, name = everything[np.all([some == split for some in sides], axis=0)], split
    else:
        unseen = np.all([(some == "test") | (some == "") for some in sides], axis=0)
        part = everything[unseen]
        new = np.any([some[part] == "" for some in sides], axis=0)
        name = "held-out" if new.any() else "test"
    if not len(part):
        raise DataError(
            f"{source}: no image is in the {split or 'test'} split of every one of the models: use other data, or "
            "--split all to measure images that they were trained on too"
        )
    return part, name


def _of_split(dataset: Dataset, split: Any) -> Sides:
    found = np.full(len(dataset.classes), "", "<U5")
    for name in ("train", "val", "test"):
        found[split.part(name)] = name
    found[split.excluded] = "test"  # copies of held-out images
    return found
