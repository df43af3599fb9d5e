"""Add epochs to a finished run."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edgerec.errors import EdgerecError, OutputExistsError, RunError
from edgerec.train.checkpoints import checkpoints
from edgerec.train.run import Run
from edgerec.train.stages import restarts, stages
from edgerec.train.worker_handshake import Cluster
from edgerec.utils.atomic import write_file

log = logging.getLogger(__name__)

_COPIED = ("recipe.toml", "labels.txt", "split.json", "history.csv")


def extend(run: Run, epochs: int) -> None:
    """Add epochs to a finished run, and mark the run as unfinished, so that :func:`edgerec.fit` can resume it.

    The added epochs form a new stage that trains all layers. The optimizer and the learning-rate schedule restart.
    Early stopping counts from the first added epoch, and ``train.max_hours`` applies only to the added epochs. The
    data, split and seed do not change, so that no test image is used for training. The run's model will be that
    of the best epoch, old or new.

    The finished model and files derived from it, such as variants, are moved to the folder ``after-N-epochs/`` in the
    run. This folder is itself a finished run.

    Raises:
        EdgerecError: the run is not finished, or its last epoch has no checkpoint.
    """
    finished = Run.open(run.path)
    recipe, history = finished.recipe, finished.history()
    if Cluster.from_environment() is not None:
        raise EdgerecError(f"Cannot extend {run.path} with several workers: unset TF_CONFIG, or train a new run")
    last = int(history[-1]["epoch"]) if history else 0
    if not last or last not in checkpoints(run):
        raise RunError(
            f"Cannot extend {run.path}, because its last epoch has no checkpoint: train a new run from its weights "
            f"with --weights {run.path / 'model.keras'}"
        )
    train = recipe.train
    # If training ended early, omit the restarts that were not reached.
    starts = [start for start in restarts(recipe) if start < last]
    # The time limit of an extended run already includes the epochs before its last extension.
    extended = max((start for start in starts if (run.path / f"after-{start}-epochs").is_dir()), default=0)
    spent_hours = sum(row["seconds"] for row in history[extended:]) / 3600
    longer = replace(
        recipe,
        train=replace(
            train,
            epochs=last + epochs,
            restarts=", ".join(map(str, [*starts, last])),
            max_hours=train.max_hours and spent_hours + train.max_hours,
        ),
    )
    archive = run.path / f"after-{last}-epochs"
    if archive.exists():
        raise OutputExistsError(
            f"Cannot extend {run.path}, because {archive} already exists: rename or move this folder"
        )
    _archive(run, archive)
    last_old_stage = len(stages(longer)) - 2
    run.write_history(
        [row | ({"stage": min(row["stage"], last_old_stage)} if "stage" in row else {}) for row in history]
    )
    write_file(run.path / "recipe.toml", longer.to_toml())
    log.info(
        "adding %d epochs to the %d epochs of %s: the learning rate restarts at %g (schedule %s), and the split and "
        "seed do not change. The previous model and its variants are in %s",
        epochs,
        last,
        run.path,
        stages(longer)[-1].rate,
        train.schedule,
        archive,
    )


def _archive(run: Run, archive: Path) -> None:
    """Move a finished run's results into the folder ``archive``.

    If moving is interrupted, the run counts as unfinished, and ``--resume`` computes its results again.
    """
    archive.mkdir()
    for name in _COPIED:
        shutil.copy2(run.path / name, archive / name)
    for path in _results(run):
        os.replace(path, archive / path.name)


def _results(run: Run) -> Iterator[Path]:
    """Yield the result files and folders of a finished run, starting with ``metrics.json``."""
    yield run.path / "metrics.json"
    yield from (path for path in run.path.glob("*.json") if path.name not in (*_COPIED, "metrics.json"))
    yield from run.path.glob("*.keras")
    yield from run.path.glob("*.html")
    yield from (path for path in (run.path / "plots",) if path.is_dir())
    yield from (report.parent for report in sorted(run.path.glob("[!.]*/report.json")))
