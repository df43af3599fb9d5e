"""Detect initial weights and teachers that were trained on the current validation or test images."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.data import Dataset, Split, recorded_split
from edgerec.errors import RecipeError
from edgerec.models import IMPORTED
from edgerec.recipe import AUTO, ModelSection, Recipe
from edgerec.train.run import TRAINED_IMAGES, Run
from edgerec.train.run_files import SplitDigests
from edgerec.train.split_record import separated_digests, shortened
from edgerec.utils.atomic import real_path
from edgerec.utils.bounded_parsing import parse_json

log = logging.getLogger(__name__)

Digests = npt.NDArray[np.bytes_]

# Values of model.weights that name neither a file nor a run.
RANDOM_OR_IMAGENET = ("none", "imagenet", AUTO)
# Maximum folder depth of a model file in a run.
DEPTH = 3
# Maximum size of the training image list in a model file, in bytes.
MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class TrainedImages:
    """The images a model was trained on, including those used to train its initial weights.

    Attributes:
        train: digests of the training images.
        val: digests of the validation images, which were used to select the best epoch.
        advice: advice on keeping these images out of the validation and test sets, for error messages.
    """

    train: Digests
    val: Digests
    advice: str

    @classmethod
    def of_file(cls, path: str | Path, dataset: Dataset) -> TrainedImages | None:
        """Return the images that a model file or run was trained on, or None if they are unknown."""
        if (run := run_of(path)) is not None:
            return cls._of_run(run, dataset)
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.getinfo(TRAINED_IMAGES).file_size > MOST_BYTES:
                    return None
                record = parse_json(archive.read(TRAINED_IMAGES), max_bytes=MOST_BYTES)
            return cls._recorded(record["contents"], dataset, record["seed"], record["data"])
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, KeyError, TypeError):
            return None

    @classmethod
    def _recorded(
        cls, contents: SplitDigests, dataset: Dataset, seed: int, data: Mapping[str, Any]
    ) -> TrainedImages | None:
        if not dataset.identifies(contents["of"]):
            return None
        train, val, inherited = map(separated_digests, (contents["train"], contents["val"], contents["inherited"]))
        keys = ", ".join(f"data.{key}={data[key]!r}" for key in ("test_fraction", "val_fraction", "group_by"))
        advice = f"use the split that it was trained with (seed={seed!r}, {keys})"
        return cls(np.concatenate([train, inherited]), val, advice)

    @classmethod
    def _of_run(cls, run: Run, dataset: Dataset) -> TrainedImages | None:
        if run.recipe.model.arch == IMPORTED:  # an imported model's training images are unknown
            return None
        record = run.split_record
        if contents := record.get("contents"):
            return cls._recorded(contents, dataset, run.recipe.seed, vars(run.recipe.data))
        if dataset.contents is not None and dataset.digest == record["digest"]:
            parts, known = recorded_split(dataset, record), shortened(dataset.contents)
            advice = "train this model again, because an older version of edgerec split its images in a different way"
            return cls(known[parts.train], known[parts.val], advice)
        return None


def with_weights_file(section: ModelSection) -> ModelSection:
    """Replace a run folder in ``model.weights`` with the path of the run's ``model.keras``.

    Raises:
        EdgerecError: the run is not finished.
    """
    if section.weights in RANDOM_OR_IMAGENET or not Path(section.weights).is_dir():
        return section
    return replace(section, weights=str(Run.open(section.weights).path / "model.keras"))


def run_of(path: str | Path) -> Run | None:
    """Return the run at a path or in one of its parent folders, or None if there is no run."""
    for location in dict.fromkeys((Path(path).absolute(), real_path(path))):
        for folder in (location, *location.parents[:DEPTH]):
            if Run(folder).begun:
                return Run(folder)
    return None


def check_leakage(recipe: Recipe, dataset: Dataset, parts: Split) -> Digests:
    """Raise an error if the initial weights or teachers were trained on this split's test or validation images.

    Args:
        recipe: names the initial weights (``model.weights``) and the teachers (``distill.teachers``).
        dataset: the images.
        parts: the split of the images.

    Returns:
        Digests of the images the weights and teachers were trained on, except this split's training images.

    Raises:
        RecipeError: the weights or a teacher were trained on validation or test images, which would make the measured
            accuracy too high.
    """
    sources = [("distill.teachers", path.strip()) for path in recipe.distill.teachers.split(",") if path.strip()]
    if recipe.model.weights not in RANDOM_OR_IMAGENET:
        sources.append(("model.weights", recipe.model.weights))
    inherited: list[Digests] = []
    for key, path in sources:
        known_images = check_not_trained_on(path, f"{key} {path}", dataset, parts)
        if known_images is not None:
            inherited += [known_images.train, known_images.val]
    own = np.empty(0, "S16") if dataset.contents is None else shortened(dataset.contents[parts.train])
    return np.setdiff1d(np.concatenate([np.empty(0, "S16"), *inherited]), own)


def check_not_trained_on(path: str | Path, what: str, dataset: Dataset, parts: Split) -> TrainedImages | None:
    """Raise :class:`RecipeError` if a model was trained on the validation or test images of ``parts``.

    Returns:
        The images the model was trained on, or None if they are unknown, in which case a warning is logged.
    """
    known_images = TrainedImages.of_file(path, dataset)
    if known_images is None or dataset.contents is None:
        log.warning(
            "the training images of %s are unknown; if test images are among them, the test accuracy is too high",
            what,
        )
        return None
    known = shortened(dataset.contents)
    for name, positions, trained in (
        ("test", parts.test, np.concatenate([known_images.train, known_images.val])),
        ("validation", parts.val, known_images.train),
    ):
        common = positions[np.isin(known[positions], trained)]
        if len(common):
            raise RecipeError(
                f"{what} was trained on {len(common)} of the {len(positions)} {name} images (such as "
                f"{dataset.names[common[0]]}), so the {name} accuracy would be too high: {known_images.advice}, "
                "or start from other weights"
            )
    return known_images
