"""Measure the calibration of a run's models, and find misclassified images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from edgerec.contract.decision import calibrated, fit_temperature
from edgerec.data import Dataset, Split
from edgerec.data.split import Indices
from edgerec.errors import EdgerecError, RunError
from edgerec.report.content import Calibration, Mistake
from edgerec.runtime.image_model import ImageModel
from edgerec.train.confidence_calibration import reliability
from edgerec.train.metrics import Reals
from edgerec.train.run import Run
from edgerec.train.run_files import VariantRecord
from edgerec.train.scorers import Scorer, keras_scorer, tflite_scorer
from edgerec.utils.atomic import sha256
from edgerec.utils.progress import Listener

FLOAT = "float Keras"
MAX_MISTAKES = 24
# Each variant is run on at most this number of validation images and test images.
MAX_IMAGES = 10_000
# Variants that are not measured within this time limit, in seconds, are skipped.
BUDGET_S = 60.0


@dataclass(frozen=True)
class Measurements:
    """Calibration and misclassified images of a run's models.

    :class:`~edgerec.report.content.ReportContent` documents the other attributes.

    Attributes:
        float_top1: the float model's top-1 accuracy, or None if it was not run.
        float_classes: the float model's predicted class for each test image.
    """

    calibration: tuple[Calibration, ...] = ()
    mistakes_of: str = ""
    mistakes: tuple[Mistake, ...] = ()
    mistakes_total: int = 0
    float_top1: float | None = None
    float_classes: Indices | None = None
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Scoring:
    """Measures the accuracy and calibration of a run's models."""

    run: Run
    dataset: Dataset
    split: Split
    listener: Listener

    def score(self, scorer: Scorer, indices: Indices, model: str) -> Reals:
        scores = scorer(self.dataset.select(indices), self.listener)
        if scores.shape[1] != len(self.dataset.labels):
            raise RunError(
                f"{self.run.path}: {model} returns {scores.shape[1]} scores, but labels.txt contains "
                f"{len(self.dataset.labels)} labels: train again with --overwrite"
            )
        return scores

    def calibration(self, model: str, val: Indices, val_scores: Reals, test: Indices, scores: Reals) -> Calibration:
        temperature = fit_temperature(val_scores, self.dataset.classes[val])
        truth = self.dataset.classes[test]
        after = reliability(calibrated(scores, temperature), truth)
        return Calibration(model, temperature, reliability(scores, truth), after)


def measure(
    run: Run,
    dataset: Dataset,
    split: Split,
    variants: Mapping[str, VariantRecord],
    shipped: str | None,
    listener: Listener,
) -> Measurements:
    """Evaluate the float model and the int8 variants on the validation and test images.

    Args:
        run: a finished run.
        dataset: the run's images.
        split: the run's split.
        variants: report of each variant, keyed by name.
        shipped: the variant to measure first and whose misclassified images are shown. If None, those of the float
            model are shown.
        listener: receives progress updates.
    """
    scoring, has_labels = _Scoring(run, dataset, split, listener), run.pseudo_labels() is None
    measurements = _measure_float(scoring) if has_labels else Measurements()
    missing = measurements.missing
    names = [name for name in variants if variants[name]["precision"] == "int8" or name == shipped]
    calibrations, began_s = [], time.monotonic()
    for name in sorted(names, key=lambda name: name != shipped):
        if name != shipped and time.monotonic() - began_s > BUDGET_S:
            missing.append(
                f"calibration of {name} is missing, because measuring the other variants took more than {BUDGET_S:g} s"
            )
            continue
        try:
            scorer = _variant_scorer(run, name, variants[name]["model_sha256"])
            if not has_labels and name != shipped:
                continue
            test = _subset(split.test)
            scores = scoring.score(scorer, test, name)
            if name == shipped:
                measurements = _with_mistakes(measurements, name, dataset, split.test, test, scores)
            if has_labels:
                # The chosen variant is evaluated on all validation images, as in edgerec export.
                val = split.val if name == shipped else _subset(split.val)
                calibrations.append(scoring.calibration(name, val, scoring.score(scorer, val, name), test, scores))
        except EdgerecError as error:
            missing.append(f"calibration and misclassified images of {name} are missing: {error}")
    return replace(measurements, calibration=(*measurements.calibration, *calibrations))


def _measure_float(scoring: _Scoring) -> Measurements:
    test, val = scoring.split.test, scoring.split.val
    try:
        scorer = keras_scorer(scoring.run.model(), scoring.run.recipe.normalize)
        scores = scoring.score(scorer, test, FLOAT)
        calibration = scoring.calibration(FLOAT, val, scoring.score(scorer, val, FLOAT), test, scores)
    except EdgerecError as error:
        return Measurements(missing=[f"calibration and misclassified images of the float model are missing: {error}"])
    measurements = Measurements(
        (calibration,), float_top1=calibration.before.accuracy, float_classes=scores.argmax(axis=1).astype(np.int64)
    )
    return _with_mistakes(measurements, FLOAT, scoring.dataset, test, test, scores)


def _with_mistakes(
    measurements: Measurements, model: str, dataset: Dataset, test: Indices, measured: Indices, scores: Reals
) -> Measurements:
    """Return a copy of the measurements with the images that ``model`` misclassified.

    ``scores`` belong to the test images at the indices in ``measured``.
    """
    mistakes = list(_mistakes(dataset, measured, scores))
    shown = mistakes[:MAX_MISTAKES]
    if measurements.float_classes is not None and model != FLOAT:
        float_class = dict(zip(test.tolist(), measurements.float_classes.tolist(), strict=True))
        labels = [dataset.labels[float_class[mistake.position]] for mistake in shown]
        shown = [
            replace(mistake, float_prediction="" if label == mistake.prediction else label)
            for mistake, label in zip(shown, labels, strict=True)
        ]
    return replace(measurements, mistakes_of=model, mistakes=tuple(shown), mistakes_total=len(mistakes))


def _mistakes(dataset: Dataset, indices: Indices, scores: Reals) -> Iterator[Mistake]:
    """Yield the misclassified images in descending order of the predicted label's score."""
    classes, predictions = dataset.classes[indices], scores.argmax(axis=1)
    wrong = np.flatnonzero(predictions != classes)
    for i in wrong[np.argsort(-scores[wrong, predictions[wrong]], kind="stable")]:
        position = int(indices[i])
        yield Mistake(
            position,
            dataset.names[position],
            dataset.labels[classes[i]],
            dataset.labels[predictions[i]],
            float(scores[i, predictions[i]]),
        )


def _variant_scorer(run: Run, name: str, digest: str) -> Scorer:
    path = run.variant(name) / "model.tflite"
    content = path.read_bytes()
    if sha256(content) != digest:
        raise RunError(
            f"{path} was modified after its accuracy was measured: quantize the model again with --overwrite"
        )
    return tflite_scorer(ImageModel(content, run.recipe.normalize, where=str(path)))


def _subset(indices: Indices) -> Indices:
    """Select at most ``MAX_IMAGES`` evenly spaced indices."""
    if len(indices) <= MAX_IMAGES:
        return indices
    return indices[np.linspace(0, len(indices) - 1, MAX_IMAGES).astype(np.int64)]
