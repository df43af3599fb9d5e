"""Fit a bundle's decision settings (temperature and thresholds) on the validation images."""

from __future__ import annotations

import logging

from edgerec.contract.decision import DecisionSpec, calibrated, fit_temperature, fit_thresholds
from edgerec.data import Dataset, Split
from edgerec.runtime.image_model import ImageModel
from edgerec.train.run import Run
from edgerec.train.scorers import tflite_scorer
from edgerec.utils.progress import Listener

log = logging.getLogger(__name__)

# Scores in a video stream are averaged over this number of frames (1/6 s at 30 frames per second).
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
    """Fit the temperature and the thresholds that convert a model's scores to a label.

    Args:
        run: the variant's run.
        content: content of the variant's .tflite file.
        dataset: the run's images.
        split: the run's split. The temperature and the per-label thresholds are fitted on the validation images.
        threshold: minimum score for all labels, in [0, 1].
        precision: precision that each label must reach on the validation images, in [0, 1]. If None, no per-label
            thresholds are fitted.
        listener: receives progress updates.
    """
    decision = DecisionSpec(threshold=threshold, smoothing="mean", memory=MEMORY)
    if run.pseudo_labels() is not None:
        return decision  # temperature scaling requires true labels, not pseudo-labels
    scores = tflite_scorer(ImageModel(content, run.recipe.normalize))(dataset.select(split.val), listener)
    classes = dataset.classes[split.val]
    temperature = fit_temperature(scores, classes)
    thresholds = {}
    if precision is not None:
        thresholds = fit_thresholds(calibrated(scores, temperature), classes, run.labels, precision)
        if always_unknown := [label for label, value in thresholds.items() if value == 1.0]:
            log.warning(
                "no threshold achieves a precision of %g for these labels, so the bundle never predicts them: %s",
                precision,
                ", ".join(always_unknown),
            )
    return DecisionSpec(**vars(decision) | {"temperature": temperature, "thresholds": thresholds})
