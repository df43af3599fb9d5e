"""Whether the outputs of other people's models are in the order of the labels that are assumed for them."""

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
from edgerec.optional import require

log = logging.getLogger(__name__)

# The value of --labels that accepts the order of the data's classes.
FOLDERS = "folders"
# Standard deviations by which another order must be better, and the smallest ratio of the images that it makes right
# to those that it makes wrong.
DEVIATIONS, RATIO = 2.33, 2.0
# Chance of a model that guesses to get no image right, below which this is taken as a fault.
CHANCE = 0.2
_SUFFIXES = (".txt", ".json", ".csv", ".pbtxt", ".names", ".yaml", ".yml")
# File names that tools give to the labels of any model: labels.txt, class_indices.json, id2label.json, label_map.pbtxt;
# dict.txt is AutoML's, and metadata.json Teachable Machine's.
_GENERAL = re.compile(
    r"(class(es)?|labels?)([ _-]?(names?|map|indices|index|idx|list|dict))?"
    r"|(id|idx|index|class|label)_?(2|to)_?(id|idx|index|class|label|name)s?|dict|metadata|names|categories",
    re.IGNORECASE,
)
# Names such as retrained_labels.txt and labels_flowers.txt, which may belong to another model.
_SIMILAR = re.compile(r"(.*[ _.-])?(class(es)?|labels?|classnames|labelmap)([ _.-].*)?", re.IGNORECASE)
# Files in a folder that are looked at.
MAX_FILES = 10_000

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelOrder:
    """How many images are right in the assumed order of the labels, and in the order that fits the outputs best.

    Attributes:
        labels: in the order of the outputs, as it fits best.
        right, right_reordered: the number of images with the right label in either order; the second is
            cross-validated.
        images: the number of images.
        clear: whether the other order is clearly better.
        none_right: whether no image is right in the assumed order although guessing would get some.
    """

    labels: tuple[str, ...]
    right: int
    right_reordered: int
    images: int
    clear: bool
    none_right: bool

    @property
    def doubtful(self) -> bool:
        """Whether the assumed order is probably wrong."""
        return self.clear or self.none_right

    def describe(self) -> str:
        """One sentence with the figures and, if it is clear, the order that fits."""
        assumed = f"{self.right} of {self.images} images have the right label"
        if not self.clear:
            return assumed
        shown = ", ".join(self.labels[:12]) + (", …" if len(self.labels) > 12 else "")
        return f"{assumed}; {self.right_reordered} would in the order: {shown}"


def label_order(predicted: Mapping[str, Classes], classes: Classes, labels: Sequence[str]) -> LabelOrder:
    """Compare the assumed order of the labels with the best other order.

    The best order is the assignment of classes to outputs that makes most images right. It is found on one half of
    the images and counted on the other, and the reverse, so that a weak model does not appear better by chance.

    Args:
        predicted: by the name of each normalization that comes into question, the outputs with the highest score.
        classes: the index of each image's label in ``labels``.
        labels: one per output, in the assumed order.
    """
    count, images = len(labels), len(classes)
    right = max((outputs == classes for outputs in predicted.values()), key=np.sum)
    best: tuple[int, Any, bool] | None = None
    for outputs in predicted.values():
        reordered = np.zeros(images, bool)
        fold = _rank_in_class(classes) % 2
        for part in (0, 1):
            order = _best_order(outputs[fold != part], classes[fold != part], count)
            reordered[fold == part] = order[outputs[fold == part]] == classes[fold == part]
        gained, lost = int((reordered & ~right).sum()), int((right & ~reordered).sum())
        clear = gained - lost > DEVIATIONS * np.sqrt(gained + lost) and gained >= RATIO * lost
        if best is None or reordered.sum() > best[0]:
            best = int(reordered.sum()), _best_order(outputs, classes, count), bool(clear)
    total, order, clear = best or (0, np.arange(count), False)
    # A model that always gives the same output is faulty, but not because of its order.
    most_frequent = int(np.bincount(classes).max())
    clear = clear and total > most_frequent and not np.array_equal(order, np.arange(count))
    none_right = not right.any() and (1 - 1 / count) ** images < CHANCE
    return LabelOrder(tuple(labels[int(i)] for i in order), int(right.sum()), total, images, clear, none_right)


def label_files_beside(model: Path, outputs: int) -> dict[Path, tuple[str, ...]]:
    """Return the readable label files in a model's folder that have one label per output.

    Args:
        model: a file, or the folder of a SavedModel, in and beside which label files are looked for.
        outputs: the number of the model's outputs.
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
                log.info("%s beside the model is not used: %s", path.name, error)
                continue
            result[path] = labels
    return result


def _belongs(path: Path, model: Path) -> bool:
    """Whether a label file's name says that it belongs to the model, not only that it has labels."""
    own = path.stem.casefold().removeprefix(model.stem.casefold())
    return _GENERAL.fullmatch(own.strip(" _.-")) is not None or not own


def check_files_beside(model: Path, labels: Sequence[str]) -> None:
    """Refuse the order of the data's classes if a label file beside the model says otherwise.

    A file with other labels that may belong to another model, e.g. ``flower_labels.txt``, only causes a warning.

    Raises:
        DataError: a label file has other labels, or another order.
    """
    for path, beside in label_files_beside(model, len(labels)).items():
        if tuple(beside) == tuple(labels):
            log.info("%s has the same labels as the data, in the same order", path)
            continue
        same = sorted(beside) == sorted(labels)
        what = "another order" if same else "other labels"
        if not same and not _belongs(path, model):
            log.warning(
                "%s beside the model has other labels (%s): if they are its own, add --labels", path, _shown(beside)
            )
            continue
        raise DataError(
            f"{path} lies beside {model.name} and has {what} ({_shown(beside)}) than the data's classes "
            f"({_shown(labels)}): add --labels {path} to use it, or --labels {FOLDERS} to keep the order of the data"
        )


def check_order(order: LabelOrder, where: str | Path, *, explicit: bool) -> None:
    """Refuse labels that are probably in another order than the outputs, or warn if they were chosen explicitly.

    Raises:
        DataError: the order is doubtful and was only assumed.
    """
    if not order.doubtful:
        return
    if explicit:
        log.warning("the outputs of %s do not fit the order of its labels: %s", where, order.describe())
        return
    cause = "are in another order than the data's classes" if order.clear else "do not fit the data's classes"
    raise DataError(
        f"the outputs of {where} {cause}: {order.describe()}. Give the labels in the order of the outputs with "
        f"--labels FILE, or accept the order of the data with --labels {FOLDERS}"
    )


def _shown(labels: Sequence[str]) -> str:
    return ", ".join(labels[:6]) + (", …" if len(labels) > 6 else "")


def _rank_in_class(classes: Classes) -> Classes:
    """For each image, how many images of its class come before it."""
    ranks = np.zeros(len(classes), np.int64)
    for value in np.unique(classes):
        ranks[classes == value] = np.arange((classes == value).sum())
    return ranks


def _best_order(outputs: Classes, classes: Classes, count: int) -> Classes:
    """The class of each output with which most images are right; outputs keep their own where others are no better."""
    confusion = np.zeros((count, count))
    np.add.at(confusion, (outputs, classes), 1.0)
    confusion += 0.5 / count * np.eye(count)
    _, order = require("scipy.optimize").linear_sum_assignment(-confusion)
    return np.asarray(order, np.int64)
