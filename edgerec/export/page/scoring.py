"""What a run's forms answer to its own pictures: calibration and mistakes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgerec.contract.decision import calibrated, fit_temperature
from edgerec.contract.files import sha256
from edgerec.contract.progress import Listener, ignore
from edgerec.data import Dataset, Split
from edgerec.errors import EdgerecError, RunError
from edgerec.export.page.facts import Calibration, Mistake
from edgerec.runtime.model import ImageModel
from edgerec.train.evaluate import Indices, Reals, Scorer, keras_scorer, tflite_scorer
from edgerec.train.reliability import reliability
from edgerec.train.run import Run

log = logging.getLogger(__name__)

FLOAT = "float Keras"
MOST_MISTAKES = 24
# A variant sees so many pictures of a split, one by one; when all have taken so long, the rest is left out.
MOST_PICTURES = 10_000
BUDGET_S = 60.0


@dataclass(frozen=True)
class Looked:
    """What came out: see :class:`~edgerec.export.page.facts.RunReport`; ``float_top1`` is measured now."""

    calibration: tuple[Calibration, ...] = ()
    mistakes_of: str = ""
    mistakes: tuple[Mistake, ...] = ()
    mistakes_total: int = 0
    float_top1: float | None = None
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Test:
    """A run's pictures, and how its forms are asked."""

    run: Run
    dataset: Dataset
    split: Split
    listener: Listener

    def score(self, scorer: Scorer, part: Indices, form: str) -> Reals:
        scores = scorer(self.dataset.pictures(part), self.listener)
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
    chosen: str | None,
    listener: Listener,
) -> Looked:
    """Ask the float model and the int8 variants.

    Args:
        run, dataset, split: a finished run and its pictures.
        variants: each one's report.
        chosen: the variant that goes to a device, which is asked first.
        listener: told of the progress.
    """
    test, own_answers = _Test(run, dataset, split, listener), run.answers() is not None
    looked = Looked() if own_answers else _look_at_float(test)
    missing = looked.missing
    int8 = sorted((name for name in variants if variants[name]["precision"] == "int8"), key=lambda name: name != chosen)
    found, began_s = [], time.monotonic()
    for name in int8:
        if name != chosen and time.monotonic() - began_s > BUDGET_S:
            missing.append(f"no calibration of {name}: those before it took {BUDGET_S:g} s")
            continue
        try:
            scorer = _variant_scorer(run, name, variants[name]["model_sha256"])
            if name == chosen:
                looked = _with_chosen(test, looked, name, scorer, own_answers)
            if not own_answers:
                # Export fits the temperature on all of them.
                val = split.val if name == chosen else _some(split.val)
                held_out = _some(split.test)
                scores = test.score(scorer, held_out, name)
                found.append(test.calibration(name, val, test.score(scorer, val, name), held_out, scores))
        except EdgerecError as error:
            missing.append(f"nothing about {name}'s scores: {error}")
    return replace(looked, calibration=(*looked.calibration, *found))


def _look_at_float(test: _Test) -> Looked:
    part, val = test.split.test, test.split.val
    try:
        scorer = keras_scorer(test.run.model(), test.run.recipe.normalise)
        scores = test.score(scorer, part, FLOAT)
        calibration = test.calibration(FLOAT, val, test.score(scorer, val, FLOAT), part, scores)
    except EdgerecError as error:
        return Looked(missing=[f"no mistakes and no calibration of the float model: {error}"])
    mistakes = list(_mistakes(test.dataset, part, scores))
    return Looked(
        (calibration,),
        FLOAT,
        tuple(mistakes[:MOST_MISTAKES]),
        len(mistakes),
        float_top1=calibration.before.accuracy,
    )


def _with_chosen(test: _Test, looked: Looked, name: str, scorer: Scorer, own_answers: bool) -> Looked:
    """What the chosen variant answers where float is wrong; where float's answers are the truth, its own mistakes."""
    if own_answers:
        part = _some(test.split.test)
        mistakes = list(_mistakes(test.dataset, part, test.score(scorer, part, name)))
        return replace(looked, mistakes_of=name, mistakes=tuple(mistakes[:MOST_MISTAKES]), mistakes_total=len(mistakes))
    if not looked.mistakes:
        return looked
    pixels = test.dataset.images[[mistake.position for mistake in looked.mistakes]]
    labels = [test.dataset.labels[i] for i in scorer(pixels, ignore).argmax(axis=1)]
    asked = [
        replace(mistake, variant_answer="" if label == mistake.answer else label)
        for mistake, label in zip(looked.mistakes, labels, strict=True)
    ]
    return replace(looked, mistakes=tuple(asked))


def _mistakes(dataset: Dataset, part: Indices, scores: Reals) -> Iterator[Mistake]:
    """The wrong answers, those first of which the model was surest."""
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
