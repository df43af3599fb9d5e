"""Search for the best recipe with Optuna.

The extras ``train`` and ``tune`` are required.
"""

from edgerec.tuning.results import TrialRow, TuneReport
from edgerec.tuning.tune import tune

__all__ = ["TrialRow", "TuneReport", "tune"]
