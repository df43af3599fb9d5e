"""Search for the best recipe with Optuna. Requires the extras ``train`` and ``tune``."""

from edgerec.tuning.results import TrialRow, TuneReport
from edgerec.tuning.tune import tune

__all__ = ["TrialRow", "TuneReport", "tune"]
