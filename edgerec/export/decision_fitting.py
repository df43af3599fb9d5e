"""Fit the decision settings of a bundle (temperature and thresholds) on the validation images."""

from __future__ import annotations

import logging

from edgerec.contract.decision import DecisionSpec, calibrated, fit_temperature, fit_thresholds
from edgerec.data import Dataset, Split
from edgerec.runtime.image_model import ImageModel
from edgerec.train.run import Run
from edgerec.train.scorers import tflite_scorer
from edgerec.utils.progress import Listener

log = logging.getLogger(__name__)

# The scores of a stream are averaged over about 5 frames (1/6 s at 30 frames per second).
MEMORY = 5


def fit_decision(
    run: Run,
    content: bytes,
    dataset: Dataset,
    split: Split,
    *,
    threshold: float,
    precision: float | None,
    listener: Listener,
) -> DecisionSpec:
    """Fit the settings that determine how the scores of a variant are converted to a label.

    Args:
        run: the run that provides the labels and the normalization.
        content: content of the variant's .tflite file.
        dataset: images of the run.
        split: split of the run. The temperature, and the thresholds for ``precision``, are fitted on the validation
            images.
        threshold: score threshold for all labels, in [0, 1].
        precision: precision that each label must reach on the validation images, in [0, 1]. None fits no thresholds.
        listener: receives the progress.
    """
    decision = DecisionSpec(threshold=threshold, smoothing="mean", memory=MEMORY)
    if run.pseudo_labels() is not None:
        return decision  # temperature scaling needs images with true labels
    scores = tflite_scorer(ImageModel(content, run.recipe.normalise))(dataset.select(split.val), listener)
    classes = dataset.classes[split.val]
    temperature = fit_temperature(scores, classes)
    thresholds = {}
    if precision is not None:
        thresholds = fit_thresholds(calibrated(scores, temperature), classes, run.labels, precision)
        if always_unknown := [label for label, value in thresholds.items() if value == 1.0]:
            log.warning(
                "no threshold reaches a precision of %g for these labels, so the bundle never predicts them: %s",
                precision,
                ", ".join(always_unknown),
            )
    return DecisionSpec(**vars(decision) | {"temperature": temperature, "thresholds": thresholds})
