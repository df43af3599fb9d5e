"""Magnitude pruning with fine-tuning (arXiv:1710.01878), by tensorflow-model-optimization."""

from __future__ import annotations

from typing import Any

from edgerec.compress.adapt import adapt
from edgerec.compress.finetune import FineTune, fine_tune
from edgerec.optional import require


def prune(model: Any, sparsity: float, tune: FineTune) -> Any:
    """A float model with ``sparsity`` of each layer's weights at zero, fine-tuned.

    ``model`` is adapted first (``adapt.py``), and stays as it is.
    The sparsity rises over the first half of the fine-tuning and is held over the second.
    """
    pruning = require("tensorflow_model_optimization").sparsity.keras
    model = adapt(model, "prune").model
    rising = tune.feed.steps * tune.epochs // 2
    frequency = max(1, min(10, rising // 10))
    # Masks are made every `frequency` steps; the last of them must be the one with all of the sparsity.
    end = max(1, rising // frequency) * frequency
    schedule = pruning.PolynomialDecay(0.0, sparsity, begin_step=0, end_step=end, frequency=frequency)
    wrapped = pruning.prune_low_magnitude(model, schedule)
    # No epoch before the end has the full sparsity: the last one counts.
    fine_tune(wrapped, tune, "pruning", callbacks=[pruning.UpdatePruningStep()], keep="last")
    return pruning.strip_pruning(wrapped)
