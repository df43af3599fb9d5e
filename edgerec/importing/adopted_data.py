"""Load the images and labels needed to import a third-party model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgerec.contract.labels import read_labels
from edgerec.data import Dataset, Split, load, split_dataset
from edgerec.errors import DataError
from edgerec.models import IMPORTED
from edgerec.recipe import DataSource, Recipe, one_or_tuple
from edgerec.train.automatic_recipe import with_absolute_paths, with_epochs
from edgerec.train.label_order import FOLDERS, check_files_beside, label_files_beside
from edgerec.train.leakage import TrainedImages, check_not_trained_on
from edgerec.utils.progress import Listener

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelData:
    """The labels, images and recipe for importing a model."""

    labels: tuple[str, ...]
    dataset: Dataset
    parts: Split
    recipe: Recipe


def read_model_data(
    model: Any, path: Path, data: DataSource, labels: str | Path | None, base: Recipe, listener: Listener
) -> ModelData:
    """Load the data set in the model's input size and color mode, and determine the model's labels.

    Args:
        model: the third-party model.
        path: path to the model, for messages.
        data: as for :func:`edgerec.importing.adopt.adopt`.
        labels: as for :func:`edgerec.importing.adopt.adopt`.
        base: recipe to use, apart from its data source and architecture.
        listener: receives the progress.

    Raises:
        DataError: the number of labels differs from the number of outputs, or a label occurs twice.
    """
    _, height, _, channels = model.input_shape
    section = with_absolute_paths(replace(base.data, source=one_or_tuple(data), input_size=height, channels=channels))
    dataset, section = load(section, least_size_px=1, flat=True, listener=listener)
    count = model.output_shape[1]
    if labels is not None and str(labels) != FOLDERS:
        known, where = read_model_labels(labels, count, str(path)), str(labels)
    elif dataset.labels:
        known, where = dataset.labels, section.title
        if labels is None and len(known) == count:
            check_files_beside(path, known)
    else:
        known, where = tuple(map(str, range(count))), ""
        log.info("%s has no labels: using class numbers as names; set other names with --labels", path)
        for beside in label_files_beside(path, count):
            log.warning("found the label file %s next to the model: to use it, add --labels %s", beside, beside)
    if len(known) != count:
        raise DataError(
            f"{path} has {count} classes, but {where} has {len(known)} labels ({', '.join(known[:5])}): "
            "set the labels with --labels FILE, one per line, in the order of the model's outputs"
        )
    parts = split_dataset(dataset, section, base.seed)
    if TrainedImages.of_file(path, dataset) is not None:
        check_not_trained_on(path, str(path), dataset, parts)
    recipe = replace(
        base,
        data=section,
        model=replace(base.model, arch=IMPORTED, width=base.model.width or 1.0, weights="none"),
        train=replace(with_epochs(base.train, len(parts.train)), mixed_precision=False),
    )
    return ModelData(known, dataset.relabeled(known) if dataset.labels else dataset, parts, recipe)


def read_model_labels(path: str | Path, count: int, model: str) -> tuple[str, ...]:
    """Load the label file for a model with ``count`` outputs. Raise :class:`DataError` if a label is duplicated."""
    labels = read_labels(Path(path), count, model)
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise DataError(f"{path} has the duplicate label {twice[0]!r}; give each output its own label")
    return labels
