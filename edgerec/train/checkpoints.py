"""Find and load a run's checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from edgerec.data import Dataset
from edgerec.errors import DataError, ModelError, RunError
from edgerec.importing.keras_files import load_checkpoint, load_model
from edgerec.models import user_defined
from edgerec.train.backend import UNREADABLE
from edgerec.train.optimizer import restored_optimizer
from edgerec.train.run import Run, best_epoch

log = logging.getLogger(__name__)


def checkpoints(run: Run) -> dict[int, Path]:
    """Return a dictionary that maps epoch numbers (counted from 1) to the run's checkpoint files."""
    paths = (run.path / "checkpoints").glob("epoch-" + 5 * "[0-9]" + ".keras")
    return {int(path.stem.partition("-")[2]): path for path in paths}


def load_last_checkpoint(run: Run, dataset: Dataset) -> tuple[int, Any]:
    """Return the number of completed epochs and the model from the latest readable checkpoint.

    Without a readable checkpoint, the result is ``(0, None)``.
    """
    if dataset.digest != run.split_record["digest"]:
        raise DataError(f"The images have changed since {run.path} was started: train again with --overwrite")
    for path in sorted(checkpoints(run).values(), reverse=True):
        try:
            model = load_checkpoint(path)
        except UNREADABLE as error:
            log.warning("the checkpoint %s cannot be read (%s): trying the previous one", path, error)
            path.rename(path.with_suffix(".damaged"))
            continue
        epoch = int(path.stem.partition("-")[2])
        run.write_history([row for row in run.history() if row["epoch"] <= epoch])
        model.optimizer = restored_optimizer(model.optimizer, model.trainable_variables)
        log.info("resuming after epoch %d", epoch)
        return epoch, model
    if user_defined.is_user_defined(run.recipe.model.arch):
        # The run may be from an untrusted source, so its recipe must not cause any code to be executed.
        raise RunError(
            f"Cannot resume {run.path}, because it has no checkpoint, and resuming does not execute its network's "
            f"code ({run.recipe.model.arch}): train again with --overwrite"
        )
    run.write_history([])
    log.info("%s has no checkpoint: starting at the first epoch", run.path)
    return 0, None


def load_best_checkpoint(run: Run) -> tuple[int, Any]:
    """Load the checkpoint of the best epoch, and return the epoch's number and the model."""
    while rows := [row for row in run.history() if row["epoch"] in checkpoints(run)]:
        best = best_epoch(rows)
        path = checkpoints(run)[best]
        try:
            return best, load_model(path)
        except ModelError as error:
            log.warning("%s: using the next best epoch", error)
            path.rename(path.with_suffix(".damaged"))
    raise RunError(f"{run.path} has no readable checkpoint: train again with --overwrite")
