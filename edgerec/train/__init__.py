"""Fitting and evaluating. Needs the train extra."""

from edgerec.train.evaluate import evaluate
from edgerec.train.fit import fit
from edgerec.train.run import Run

__all__ = ["Run", "evaluate", "fit"]
