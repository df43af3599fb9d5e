"""What a run's forms answer to its own pictures: calibration and mistakes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgerec.contract.decision import calibrated, fit_temperature
from edgerec.data import Dataset, Split
from edgerec.errors import EdgerecError, RunError
from edgerec.report.model import Calibration, Mistake
from edgerec.runtime.model import ImageModel
from edgerec.train.confidence_calibration import reliability
from edgerec.train.evaluate import Indices, Reals, Scorer, keras_scorer, tflite_scorer
from edgerec.train.run import Run
from edgerec.utils.atomic import sha256
from edgerec.utils.progress import Listener

log = logging.getLogger(__name__)

FLOAT = "float Keras"
MOST_MISTAKES = 24
# A variant sees so many pictures of a split, one by one; when all have taken so long, the rest is left out.
MOST_PICTURES = 10_000
BUDGET_S = 60.0


@dataclass(frozen=True)
class Looked:
    """Results of :func:`look`; see :class:`~edgerec.report.model.RunReport`.

    Attributes:
        float_top1: accuracy of the float model, measured now.
        float_classes: predicted class of the float model for each test image.
    """

    calibration: tuple[Calibration, ...] = ()
    mistakes_of: str = ""
    mistakes: tuple[Mistake, ...] = ()
    mistakes_total: int = 0
    float_top1: float | None = None
    float_classes: Indices | None = None
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Test:
    """A run's pictures, and how its forms are asked."""

    run: Run
    dataset: Dataset
    split: Split
    listener: Listener

    def score(self, scorer: Scorer, part: Indices, form: str) -> Reals:
        scores = scorer(self.dataset.select(part), self.listener)
        if scores.shape[1] != len(self.dataset.labels):
            raise RunError(
                f"{self.run.path}: {form} gives {scores.shape[1]} scores, labels.txt has {len(self.dataset.labels)} "
                "labels: train again with --overwrite"
            )
        return scores

    def calibration(self, form: str, val: Indices, val_scores: Reals, test: Indices, scores: Reals) -> Calibration:
        temperature = fit_temperature(val_scores, self.dataset.classes[val])
        truth = self.dataset.classes[test]
        after = reliability(calibrated(scores, temperature), truth)
        return Calibration(form, temperature, reliability(scores, truth), after)


def look(
    run: Run,
    dataset: Dataset,
    split: Split,
    variants: Mapping[str, Mapping[str, Any]],
    shipped: str | None,
    listener: Listener,
) -> Looked:
    """Run the float model and the int8 variants on the test images.

    Args:
        run, dataset, split: a finished run and its images.
        variants: report of each variant.
        shipped: the variant to ship. It is measured first, and its mistakes are shown; None shows the mistakes of the
            float model.
        listener: receives the progress.
    """
    test, own_answers = _Test(run, dataset, split, listener), run.pseudo_labels() is not None
    looked = Looked() if own_answers else _look_at_float(test)
    missing = looked.missing
    names = [name for name in variants if variants[name]["precision"] == "int8" or name == shipped]
    calibrations, began_s = [], time.monotonic()
    for name in sorted(names, key=lambda name: name != shipped):
        if name != shipped and time.monotonic() - began_s > BUDGET_S:
            missing.append(f"no calibration of {name}: those before it took {BUDGET_S:g} s")
            continue
        try:
            scorer = _variant_scorer(run, name, variants[name]["model_sha256"])
            if own_answers and name != shipped:
                continue
            held_out = _some(split.test)
            scores = test.score(scorer, held_out, name)
            if name == shipped:
                looked = _with_mistakes(looked, name, dataset, split.test, held_out, scores)
            if not own_answers:
                # Export fits the temperature on all validation images.
                val = split.val if name == shipped else _some(split.val)
                calibrations.append(test.calibration(name, val, test.score(scorer, val, name), held_out, scores))
        except EdgerecError as error:
            missing.append(f"nothing about {name}'s scores: {error}")
    return replace(looked, calibration=(*looked.calibration, *calibrations))


def _look_at_float(test: _Test) -> Looked:
    part, val = test.split.test, test.split.val
    try:
        scorer = keras_scorer(test.run.model(), test.run.recipe.normalise)
        scores = test.score(scorer, part, FLOAT)
        calibration = test.calibration(FLOAT, val, test.score(scorer, val, FLOAT), part, scores)
    except EdgerecError as error:
        return Looked(missing=[f"no mistakes and no calibration of the float model: {error}"])
    looked = Looked(
        (calibration,), float_top1=calibration.before.accuracy, float_classes=scores.argmax(axis=1).astype(np.int64)
    )
    return _with_mistakes(looked, FLOAT, test.dataset, part, part, scores)


def _with_mistakes(
    looked: Looked, form: str, dataset: Dataset, test: Indices, measured: Indices, scores: Reals
) -> Looked:
    """Set the mistakes to those of ``form`` on the ``measured`` images, a subset of the ``test`` images."""
    mistakes = list(_mistakes(dataset, measured, scores))
    shown = mistakes[:MOST_MISTAKES]
    if looked.float_classes is not None and form != FLOAT:
        float_class = dict(zip(test.tolist(), looked.float_classes.tolist(), strict=True))
        labels = [dataset.labels[float_class[mistake.position]] for mistake in shown]
        shown = [
            replace(mistake, float_answer="" if label == mistake.answer else label)
            for mistake, label in zip(shown, labels, strict=True)
        ]
    return replace(looked, mistakes_of=form, mistakes=tuple(shown), mistakes_total=len(mistakes))


def _mistakes(dataset: Dataset, part: Indices, scores: Reals) -> Iterator[Mistake]:
    """Yield the wrong predictions, sorted by descending score."""
    classes, answers = dataset.classes[part], scores.argmax(axis=1)
    wrong = np.flatnonzero(answers != classes)
    for i in wrong[np.argsort(-scores[wrong, answers[wrong]], kind="stable")]:
        position = int(part[i])
        yield Mistake(
            position,
            dataset.names[position],
            dataset.labels[classes[i]],
            dataset.labels[answers[i]],
            float(scores[i, answers[i]]),
        )


def _variant_scorer(run: Run, name: str, digest: str) -> Scorer:
    path = run.variant(name) / "model.tflite"
    content = path.read_bytes()
    if sha256(content) != digest:
        raise RunError(f"{path} is not the file that was measured: quantize again with --overwrite")
    return tflite_scorer(ImageModel(content, run.recipe.normalise, where=str(path)))


def _some(part: Indices) -> Indices:
    """So many of a split's pictures, evenly chosen, as a variant is shown."""
    return part if len(part) <= MOST_PICTURES else part[np.linspace(0, len(part) - 1, MOST_PICTURES).astype(np.int64)]
