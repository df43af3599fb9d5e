"""Check whether a third-party model's outputs are in the assumed label order."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.labels import read_labels
from edgerec.errors import DataError
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

# Value of --labels that selects the data's class order.
FOLDERS = "folders"
# Another label order must improve the accuracy by at least this many standard deviations.
DEVIATIONS = 2.33
# Another label order must correct at least this many predictions for each new error.
RATIO = 2.0
# An accuracy of zero indicates a wrong label order if its probability by chance is below this value.
CHANCE = 0.2
_SUFFIXES = (".txt", ".json", ".csv", ".pbtxt", ".names", ".yaml", ".yml")
# Common label file names, such as labels.txt, class_indices.json, id2label.json and label_map.pbtxt.
# AutoML exports dict.txt, and Teachable Machine exports metadata.json.
_GENERAL = re.compile(
    r"(class(es)?|labels?)([ _-]?(names?|map|indices|index|idx|list|dict))?"
    r"|(id|idx|index|class|label)_?(2|to)_?(id|idx|index|class|label|name)s?|dict|metadata|names|categories",
    re.IGNORECASE,
)
# Names of label files that may belong to another model, such as retrained_labels.txt and labels_flowers.txt.
_SIMILAR = re.compile(r"(.*[ _.-])?(class(es)?|labels?|classnames|labelmap)([ _.-].*)?", re.IGNORECASE)
# Maximum number of files in a model's folder to inspect when searching for label files.
MAX_FILES = 10_000

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelOrder:
    """Comparison of the assumed label order with the order that best matches the predictions.

    Attributes:
        labels: the labels in the order that best matches the predictions.
        correct: number of correctly classified images with the assumed order.
        correct_reordered: number of correctly classified images with the best order, cross-validated.
        images: number of images.
        clear: whether the best order is clearly better than the assumed order.
        none_correct: whether the assumed order classifies no image correctly, although random guessing probably would.
    """

    labels: tuple[str, ...]
    correct: int
    correct_reordered: int
    images: int
    clear: bool
    none_correct: bool

    @property
    def doubtful(self) -> bool:
        """True if the assumed label order is probably wrong."""
        return self.clear or self.none_correct

    def describe(self) -> str:
        """Describe the accuracy of the assumed label order, and the best order if it is clearly better."""
        assumed = f"{self.correct} of {self.images} images are classified correctly"
        if not self.clear:
            return assumed
        shown = ", ".join(self.labels[:12]) + (", …" if len(self.labels) > 12 else "")
        return f"{assumed}; {self.correct_reordered} are correct with the order: {shown}"


def label_order(predicted: Mapping[str, Classes], classes: Classes, labels: Sequence[str]) -> LabelOrder:
    """Compare the assumed label order with the best alternative.

    The best order is the assignment of classes to outputs with the highest accuracy. It is determined on one half of
    the images and evaluated on the other half, and vice versa, because without cross-validation, another order could
    appear better by chance.

    Args:
        predicted: a dictionary that maps each possible normalization to the predicted class of each image.
        classes: index of each image's label in ``labels``.
        labels: one label per output, in the assumed order.
    """
    count, images = len(labels), len(classes)
    correct = max((outputs == classes for outputs in predicted.values()), key=np.sum)
    best: tuple[int, Any, bool] | None = None
    for outputs in predicted.values():
        reordered = np.zeros(images, bool)
        fold = _rank_in_class(classes) % 2
        for part in (0, 1):
            order = _best_order(outputs[fold != part], classes[fold != part], count)
            reordered[fold == part] = order[outputs[fold == part]] == classes[fold == part]
        gained, lost = int((reordered & ~correct).sum()), int((correct & ~reordered).sum())
        clear = gained - lost > DEVIATIONS * np.sqrt(gained + lost) and gained >= RATIO * lost
        if best is None or reordered.sum() > best[0]:
            best = int(reordered.sum()), _best_order(outputs, classes, count), bool(clear)
    total, order, clear = best or (0, np.arange(count), False)
    # A low accuracy has another cause if even the best order is no better than a constant prediction.
    most_frequent = int(np.bincount(classes).max())
    clear = clear and total > most_frequent and not np.array_equal(order, np.arange(count))
    none_correct = not correct.any() and (1 - 1 / count) ** images < CHANCE
    return LabelOrder(tuple(labels[int(i)] for i in order), int(correct.sum()), total, images, clear, none_correct)


def label_files_beside(model: Path, outputs: int) -> dict[Path, tuple[str, ...]]:
    """Find and read label files next to a model that have one label per output.

    Args:
        model: the model file, or the folder of a SavedModel. The parent folder is searched for label files, and so is a
            SavedModel's own folder.
        outputs: number of the model's outputs.
    """
    folders = [model, model / "assets", model.parent] if model.is_dir() else [model.parent]
    result: dict[Path, tuple[str, ...]] = {}
    for folder in filter(Path.is_dir, folders):
        for path in sorted(itertools.islice(folder.iterdir(), MAX_FILES)):
            if path.suffix.casefold() not in _SUFFIXES or not path.is_file():
                continue
            similar = path.suffix.casefold() == ".names" or _SIMILAR.fullmatch(path.stem)
            if not (similar or _belongs(path, model)):
                continue
            try:
                labels = read_labels(path, outputs)
            except DataError as error:
                log.info("the label file %s next to the model is not used: %s", path.name, error)
                continue
            result[path] = labels
    return result


def _belongs(path: Path, model: Path) -> bool:
    """Return whether the name of a label file indicates that the file belongs to the model."""
    own = path.stem.casefold().removeprefix(model.stem.casefold())
    return _GENERAL.fullmatch(own.strip(" _.-")) is not None or not own


def check_files_beside(model: Path, labels: Sequence[str]) -> None:
    """Raise an error if a label file next to the model contradicts the data's class order.

    A label file that may belong to another model, such as ``flower_labels.txt``, only causes a warning.

    Raises:
        DataError: a label file has different labels, or the same labels in a different order.
    """
    for path, beside in label_files_beside(model, len(labels)).items():
        if tuple(beside) == tuple(labels):
            log.info("the label file %s has the same labels as the data, in the same order", path)
            continue
        same = sorted(beside) == sorted(labels)
        difference = "a different order" if same else "different labels"
        if not same and not _belongs(path, model):
            log.warning(
                "the label file %s next to the model has different labels (%s): if they belong to the model, add "
                "--labels",
                path,
                _preview(beside),
            )
            continue
        raise DataError(
            f"the label file {path} next to the model has {difference} ({_preview(beside)}) than the data "
            f"({_preview(labels)}): add --labels {path} to use the file, or --labels {FOLDERS} to use the data's order"
        )


def check_order(order: LabelOrder, where: str | Path, *, explicit: bool) -> None:
    """Raise an error if the assumed label order is probably wrong.

    If the order is ``explicit``, i.e. chosen by the user, only log a warning.

    Raises:
        DataError: the order is probably wrong, and not ``explicit``.
    """
    if not order.doubtful:
        return
    if explicit:
        log.warning("the predictions of %s do not match the order of its labels: %s", where, order.describe())
        return
    cause = "are not in the order of the data's classes" if order.clear else "do not match the data's classes"
    raise DataError(
        f"the outputs of {where} {cause}: {order.describe()}. List the labels in output order with "
        f"--labels FILE, or use the data's order with --labels {FOLDERS}"
    )


def _preview(labels: Sequence[str]) -> str:
    return ", ".join(labels[:6]) + (", …" if len(labels) > 6 else "")


def _rank_in_class(classes: Classes) -> Classes:
    """Return, for each image, the number of preceding images of the same class."""
    ranks = np.zeros(len(classes), np.int64)
    for value in np.unique(classes):
        ranks[classes == value] = np.arange((classes == value).sum())
    return ranks


def _best_order(outputs: Classes, classes: Classes, count: int) -> Classes:
    """Return the most accurate label order, or the assumed order if there is a tie."""
    confusion = np.zeros((count, count))
    np.add.at(confusion, (outputs, classes), 1.0)
    confusion += 0.5 / count * np.eye(count)
    _, order = require("scipy.optimize").linear_sum_assignment(-confusion)
    return np.asarray(order, np.int64)
