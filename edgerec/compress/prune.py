"""Magnitude pruning with fine-tuning (arXiv:1710.01878), by tensorflow-model-optimization."""

from __future__ import annotations

from typing import Any

from edgerec.compress.finetune import FineTune, fine_tune
from edgerec.compress.tfmot_wrappers import wrap
from edgerec.recipe import CompressSection
from edgerec.utils.optional import require


def prune(model: Any, section: CompressSection, tune: FineTune) -> Any:
    """A float model with ``section.sparsity`` of each layer's weights at zero, fine-tuned.

    By the polynomial schedule the sparsity rises over the first half of the fine-tuning and is held over the
    second; by the constant one it is there from the first step.
    """
    pruning = require("tensorflow_model_optimization").sparsity.keras
    rising = tune.steps * tune.epochs // 2
    frequency = max(1, min(10, rising // 10))
    if section.schedule == "constant":
        schedule = pruning.ConstantSparsity(section.sparsity, begin_step=0, frequency=frequency)
    else:
        # Masks are made every `frequency` steps; the last of them must be the one with all of the sparsity.
        end = max(1, rising // frequency) * frequency
        schedule = pruning.PolynomialDecay(0.0, section.sparsity, begin_step=0, end_step=end, frequency=frequency)

    def wrapped() -> Any:
        return wrap(model, lambda layer: pruning.prune_low_magnitude(layer, schedule), section.skip)

    # No epoch in the first half has the full sparsity: the best of the others counts. The learning rate is near that of
    # the training again (arXiv:2003.02389): at a tenth of it 80 % of MNIST's weights cost 1.2 points, at all 0.2.
    pruned = fine_tune(
        wrapped,
        tune,
        "pruning",
        callbacks=[pruning.UpdatePruningStep()],
        keep_from=tune.epochs // 2,
        retraining=True,
    )
    return pruning.strip_pruning(pruned)
