"""Magnitude pruning with fine-tuning (arXiv:1710.01878), using tensorflow-model-optimization."""

from __future__ import annotations

from typing import Any

from edgerec.compress.finetune import FineTune, fine_tune
from edgerec.compress.layer_wrappers import wrap
from edgerec.recipe import CompressSection
from edgerec.utils.optional import require


def prune(model: Any, section: CompressSection, tune: FineTune) -> Any:
    """Set a fraction of each layer's weights (``section.sparsity``) to zero, and fine-tune the model.

    With the polynomial schedule, the sparsity rises during the first half of the fine-tuning and then stays constant.
    With the constant schedule, the sparsity has its final value from the first step.
    """
    pruning = require("tensorflow_model_optimization").sparsity.keras
    rising = tune.steps * tune.epochs // 2
    frequency = max(1, min(10, rising // 10))
    if section.schedule == "constant":
        schedule = pruning.ConstantSparsity(section.sparsity, begin_step=0, frequency=frequency)
    else:
        # End pruning at a multiple of ``frequency``, because masks are only updated every ``frequency`` steps.
        end = max(1, rising // frequency) * frequency
        schedule = pruning.PolynomialDecay(0.0, section.sparsity, begin_step=0, end_step=end, frequency=frequency)

    def wrapped() -> Any:
        return wrap(model, lambda layer: pruning.prune_low_magnitude(layer, schedule), section.skip)

    # Choose the best epoch from the second half, because the model reaches its final sparsity only then.
    # Use a learning rate close to the original training's, as recommended in arXiv:2003.02389.
    pruned = fine_tune(
        wrapped,
        tune,
        "pruning",
        callbacks=[pruning.UpdatePruningStep()],
        keep_from=tune.epochs // 2,
        retraining=True,
    )
    return pruning.strip_pruning(pruned)
