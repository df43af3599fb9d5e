"""Fixtures for the tests of training."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def without_plots_and_keras3_file(monkeypatch):
    """Skip the plots and the Keras 3 file at the end of training, which take much of the time of short training runs.

    Fixtures with a larger scope write them, so that they are tested as well.
    """
    from edgerec.train import results

    for plot in ("learning_curves", "confusion_matrix", "worst_mistakes"):
        monkeypatch.setattr(results.plots, plot, lambda *_: None)
    monkeypatch.setattr(results, "offer_keras3", lambda *_: None)
