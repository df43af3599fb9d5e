"""Determine which normalization a third-party model expects, by measuring its accuracy with each candidate."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.tensors import NORMALIZATIONS, NORMALIZE_CHOICES, AnyNormalize, parse_normalize
from edgerec.data import Dataset
from edgerec.errors import DataError
from edgerec.importing.adopted_data import ModelData
from edgerec.importing.saved_model import SavedModel
from edgerec.importing.third_party_keras import expects_pixels
from edgerec.train.label_order import check_order, label_order
from edgerec.train.scorers import keras_scorer
from edgerec.utils.progress import Listener

log = logging.getLogger(__name__)

# Number of training images for comparing normalizations.
TRIED_IMAGES = 500
# Minimum accuracy gain, in percentage points, for a normalization to count as clearly better.
CLEAR_POINTS = 2.0
# Per-channel normalizations to try in addition to those with a single scale.
PER_CHANNEL = ("torch", "caffe")
# Maximum number of images for checking the label order, per class and in total.
IMAGES_PER_CLASS, MOST_IMAGES = 10, 2000


@dataclass(frozen=True)
class NormalizationChoice:
    """The normalization chosen for a model, and the accuracy with each normalization that was tried.

    Attributes:
        text: the normalization in the format of :func:`edgerec.contract.tensors.parse_normalize`.
        tried: maps each normalization to the accuracy on training images (0 to 1), or None if none was tried.
    """

    text: str
    tried: dict[str, float] | None = None

    @property
    def name(self) -> str:
        """Name of the recipe's normalization, or ``pixels`` if a layer in the model normalizes the input."""
        normalize = parse_normalize(self.text)
        return next((name for name, known in NORMALIZATIONS.items() if known == normalize), "pixels")

    @property
    def layer(self) -> str:
        """Normalization to add to the model as a layer, or an empty string if no layer is needed."""
        return "" if parse_normalize(self.text) in NORMALIZATIONS.values() else self.text


def choose_normalization(
    model: Any, path: Path, model_data: ModelData, normalize: str | None, listener: Listener, *, explicit: bool
) -> NormalizationChoice:
    """Choose the normalization and check the label order, based on the same predictions.

    Raises:
        DataError: the normalization is unknown and cannot be determined because the images have no labels, or the
            labels were not given explicitly and are in a different order than the outputs.
    """
    if normalize is not None:
        texts = [normalize]
    elif not isinstance(model, SavedModel) and expects_pixels(model):
        log.info("%s normalizes its input itself: using normalization 'pixels' (0 to 255)", path)
        texts = ["pixels"]
    else:
        texts = [*NORMALIZATIONS, *(PER_CHANNEL if model.input_shape[-1] == 3 else ())]
    if not model_data.dataset.labels:
        if len(texts) > 1:
            raise DataError(
                f"cannot determine which normalization {path} expects, because the images have no labels: "
                f"add --normalize {NORMALIZE_CHOICES}"
            )
        return NormalizationChoice(texts[0])
    rng = np.random.default_rng(model_data.recipe.seed)
    count = min(max(TRIED_IMAGES, IMAGES_PER_CLASS * len(model_data.labels)), MOST_IMAGES)
    some = np.sort(rng.permutation(len(model_data.dataset.classes))[:count])
    classes = model_data.dataset.classes[some]
    predicted = {text: predictions(model, parse_normalize(text), model_data.dataset, some, listener) for text in texts}
    check_order(label_order(predicted, classes, model_data.labels), path, explicit=explicit)
    if len(texts) == 1:
        return NormalizationChoice(texts[0])
    train = np.isin(some, model_data.parts.train)
    right = {text: float(np.mean(outputs[train] == classes[train])) for text, outputs in predicted.items()}
    return _best(right, path, int(train.sum()), len(model_data.labels))


def _best(right: dict[str, float], path: Path, images: int, classes: int) -> NormalizationChoice:
    """Return the most accurate normalization. A per-channel normalization is chosen only if it is clearly better."""
    simple = max(NORMALIZATIONS, key=right.__getitem__)
    best = max(right, key=right.__getitem__)
    if (right[best] - right[simple]) * 100 < CLEAR_POINTS:
        best = simple
    other = max((text for text in right if text != best), key=right.__getitem__)
    figures = ", ".join(f"{text} {fraction:.1%}" for text, fraction in right.items())
    log.info("%s: normalization %r; correct on %d training images: %s", path, best, images, figures)
    if right[best] < 1.5 / classes:
        log.warning(
            "%s is hardly better than guessing with all tried normalizations (%s): set the right one with --normalize",
            path,
            ", ".join(right),
        )
    elif (right[best] - right[other]) * 100 < CLEAR_POINTS:
        log.warning(
            "%s has about the same accuracy with the normalizations %r and %r: set the correct one with --normalize",
            path,
            best,
            other,
        )
    return NormalizationChoice(best, right)


def predictions(
    model: Any, normalize: AnyNormalize, dataset: Dataset, part: npt.NDArray[np.int64], listener: Listener
) -> npt.NDArray[np.int64]:
    """Return the predicted classes of the images whose indices are in ``part``."""
    return keras_scorer(model, normalize)(dataset.select(part), listener).argmax(axis=1)
