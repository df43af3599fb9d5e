"""Evaluate a run's trained model, and write the results to the run's folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from edgerec.data import Dataset, Split
from edgerec.importing.to_keras3 import offer_keras3
from edgerec.recipe import Recipe
from edgerec.train import baseline
from edgerec.train import training_plots as plots
from edgerec.train.anomaly import evaluate_autoencoder
from edgerec.train.backend import keras, versions
from edgerec.train.checkpoints import load_best_checkpoint
from edgerec.train.metrics import classifier_report
from edgerec.train.precision import in_float32
from edgerec.train.run import KERAS3, Run
from edgerec.train.scorers import keras_scorer
from edgerec.train.transfer import unfreeze
from edgerec.utils.progress import Listener

log = logging.getLogger(__name__)


def write_results(run: Run, recipe: Recipe, dataset: Dataset, parts: Split, listener: Listener) -> None:
    """Evaluate the best epoch's model, and write the model, the plots and ``metrics.json``."""
    history = run.history()
    best, model = load_best_checkpoint(run)
    if recipe.train.mixed_precision:
        # The TFLite conversion requires a float32 model.
        keras().mixed_precision.set_global_policy("float32")
        model = in_float32(model)
    if recipe.model.pretrained:
        unfreeze(model)
    run.save_model(model, "model.keras")
    offer_keras3(model, run.path / KERAS3)
    plots.learning_curves(history, best, run.path / "plots" / "learning_curves.png")
    row = next(row for row in history if row["epoch"] == best)
    if run.reconstructs:
        metrics = evaluate_autoencoder(model, recipe, dataset, parts, run.path / "plots", listener) | {
            "val_loss": row["val_loss"]
        }
    else:
        metrics = _evaluate_classifier(model, recipe, dataset, parts, run.path / "plots", listener)
        metrics["val_accuracy"] = row["val_accuracy"]
        metrics["majority_level"] = baseline.majority_level(metrics)
        if problem := baseline.warning(metrics):
            log.warning("%s; %s", problem, baseline.ADVICE)
    summary = {
        "best_epoch": best,
        "epochs": len(history),
        "seconds": round(sum(row["seconds"] for row in history), 1),
        "parameters": int(model.count_params()),
        "train_images": len(parts.train),
        "val_images": len(parts.val),
        "data_digest": dataset.digest,
        "versions": versions(),
    }
    run.write_json("metrics.json", metrics | summary)


def _evaluate_classifier(
    model: Any, recipe: Recipe, dataset: Dataset, parts: Split, folder: Path, listener: Listener
) -> dict[str, Any]:
    scores = keras_scorer(model, recipe.normalize)(dataset.select(parts.test), listener)
    result = classifier_report(scores, dataset.classes[parts.test], dataset.labels, "test")
    plots.confusion_matrix(result, folder / "confusion_matrix.png")
    plots.worst_mistakes(dataset, parts.test, scores, folder / "worst_mistakes.png")
    return result.to_dict()
