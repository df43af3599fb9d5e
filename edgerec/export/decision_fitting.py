"""The decision that travels with a bundle, fitted on the validation pictures."""

from __future__ import annotations

import logging

from edgerec.contract.decision import DecisionSpec, calibrated, fit_temperature, fit_thresholds
from edgerec.data import Dataset, Split
from edgerec.runtime.model import ImageModel
from edgerec.train.evaluate import tflite_scorer
from edgerec.train.run import Run
from edgerec.utils.progress import Listener

log = logging.getLogger(__name__)

# A stream's answer is the mean over about so many frames: a sixth of a second of most cameras.
MEMORY = 5


def fitted_decision(
    run: Run,
    content: bytes,
    dataset: Dataset,
    split: Split,
    *,
    threshold: float,
    precision: float | None,
    listener: Listener,
) -> DecisionSpec:
    """How the variant's scores become an answer.

    Args:
        run: whose labels they are.
        content: the variant's .tflite.
        dataset, split: the temperature, and the thresholds for ``precision``, are fitted on the validation pictures.
        threshold: of all labels.
        precision: part of each label's answers that shall be right; None fits no thresholds.
        listener: told of the progress.
    """
    decision = DecisionSpec(threshold=threshold, smoothing="mean", memory=MEMORY)
    if run.pseudo_labels() is not None:
        return decision  # without labels nobody knows how often a score is right
    scores = tflite_scorer(ImageModel(content, run.recipe.normalise))(dataset.select(split.val), listener)
    classes = dataset.classes[split.val]
    temperature = fit_temperature(scores, classes)
    thresholds = {}
    if precision is not None:
        thresholds = fit_thresholds(calibrated(scores, temperature), classes, run.labels, precision)
        if never := [label for label, value in thresholds.items() if value == 1.0]:
            log.warning("no threshold makes %s right %g of the time: always unknown", ", ".join(never), precision)
    return DecisionSpec(**vars(decision) | {"temperature": temperature, "thresholds": thresholds})
