"""Determine which images a model was trained on, from its run or bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.data import Dataset, recorded_split, split_dataset
from edgerec.data.split import expected_subsets
from edgerec.errors import DataError
from edgerec.recipe import Recipe
from edgerec.train.run import Run
from edgerec.train.split_record import separated_digests, shortened

# Array of split names: ``train``, ``val``, ``test``, or an empty string for images added after training.
ImageSplits = npt.NDArray[np.str_]


@dataclass(frozen=True)
class TrainingData:
    """The data set a model was trained on.

    Attributes:
        digest: digest of the data set, or an empty string if it is unknown.
        image_splits: function that takes a data set and returns the split of each image during training, or None if the
            splits cannot be determined.
        imported: whether the model was trained with another tool, so that its training images are unknown.
    """

    digest: str
    image_splits: Callable[[Dataset], ImageSplits | None]
    imported: bool = False


def training_data_of_run(run: Run) -> TrainingData:
    """Return the training data of a run's model."""
    record = run.split_record

    def image_splits(dataset: Dataset) -> ImageSplits | None:
        if dataset.digest == record["digest"]:
            return _split_names(dataset, recorded_split(dataset, record))
        contents = record.get("contents")
        if not contents or dataset.contents is None or not dataset.identifies(contents["of"]):
            return None
        known = shortened(dataset.contents)
        splits = np.full(len(known), "", "<U5")
        for name in ("test", "val", "inherited", "train"):
            splits[np.isin(known, separated_digests(contents[name]))] = "train" if name == "inherited" else name
        return splits

    return TrainingData(record["digest"], image_splits, "adopted" in run.metrics)


def training_data_of_bundle(provenance: Mapping[str, Any], recipe: Recipe) -> TrainingData:
    """Return the training data of a bundle's model, given the bundle's ``provenance`` and ``recipe``."""
    digest, summary = str(provenance.get("data_digest", "")), provenance.get("split")

    def image_splits(dataset: Dataset) -> ImageSplits | None:
        same, tagged = bool(digest) and dataset.digest == digest, "test" in dataset.splits
        if not isinstance(summary, dict):
            # Older versions split the images differently, but never trained on a test split defined by the data.
            return np.where(dataset.splits == "test", "test", "train") if same and tagged else None
        if same:
            return _split_names(dataset, split_dataset(dataset, recipe.data, recipe.seed))
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
        expected = expected_subsets(dataset, recipe.data, recipe.seed) if by_content else None
        if expected is None:
            return None
        expected[np.isin(known, moved)] = "train"
        return expected

    return TrainingData(digest, image_splits, "adopted" in provenance)


def chosen_images(
    dataset: Dataset, source: str, split: str | None, image_splits: list[ImageSplits] | None
) -> tuple[npt.NDArray[np.int64], str]:
    """Return the indices of the images on which to evaluate a model, and the name of their split.

    Args:
        dataset: the images.
        source: name of the data set, for messages.
        split: the requested split, or None for images the model was not trained on.
        image_splits: for each model of an ensemble, the split of each image during training, or None if it is unknown.

    Raises:
        DataError: the requested split has no images, or all images were used for training.
    """
    everything, tagged = np.arange(len(dataset.classes)), dataset.splits
    if split == "all":
        return everything, "all"
    overlap = image_splits is not None and any((splits != "").any() for splits in image_splits)
    if not overlap:
        if split is None and "test" not in tagged:
            return everything, "all"
        name = split or "test"
        if not len(part := everything[tagged == name]):
            raise DataError(
                f"Cannot evaluate on the {name} split: {source} has no {name} split, and the model's training "
                "images are unknown. Use --split all"
            )
        return part, name
    assert image_splits is not None
    if split is not None:
        part, name = everything[np.all([splits == split for splits in image_splits], axis=0)], split
    else:
        unseen = np.all([(splits == "test") | (splits == "") for splits in image_splits], axis=0)
        part = everything[unseen]
        new = np.any([splits[part] == "" for splits in image_splits], axis=0)
        name = "held-out" if new.any() else "test"
    if not len(part):
        raise DataError(
            f"no image in {source} belongs to the {split or 'test'} split of all models: use other data, or add "
            "--split all to include the models' training images"
        )
    return part, name


def _split_names(dataset: Dataset, split: Any) -> ImageSplits:
    names = np.full(len(dataset.classes), "", "<U5")
    for name in ("train", "val", "test"):
        names[split.part(name)] = name
    # Excluded images are duplicates of validation or test images.
    names[split.excluded] = "test"
    return names
