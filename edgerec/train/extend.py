"""Add epochs to a finished run.

If the process is killed during :func:`extend`, the run either does not change, or :func:`complete_extension` completes
the extension.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

from edgerec.errors import EdgerecError, OutputExistsError, RunError
from edgerec.train.checkpoints import checkpoints
from edgerec.train.run import EXTENSIONS, Run
from edgerec.train.stages import restarts, stages
from edgerec.train.worker_handshake import Cluster
from edgerec.utils.atomic import replacing_folder, write_file

log = logging.getLogger(__name__)

_COPIED = ("recipe.toml", "labels.txt", "split.json", "history.csv", EXTENSIONS)
# Folder in the archive of the finished run. Its files replace files of the run at the end of the extension.
_NEW_FILES = "extension"


def extend(run: Run, epochs: int) -> None:
    """Add epochs to a finished run, and mark the run as unfinished, so that :func:`edgerec.fit` can resume it.

    The added epochs form a new stage that trains all layers. The optimizer and the learning-rate schedule restart.
    Early stopping counts from the first added epoch, and ``train.max_hours`` applies only to the added epochs. The
    data, split and seed do not change, so that no test image is used for training. The run's model will be that
    of the best epoch, old or new.

    The finished model and files derived from it, such as variants, are moved to the folder ``after-N-epochs/`` in the
    run. This folder is itself a finished run.

    If the process is killed, the run either remains finished and unchanged, or is unfinished. In the second case,
    :func:`complete_extension` completes the extension.

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
    previous = max((start for start in starts if _was_extended(run, start)), default=0)
    spent_hours = sum(row["seconds"] for row in history[previous:]) / 3600
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
    if _is_prepared(archive):
        shutil.rmtree(archive)
    if archive.exists():
        raise OutputExistsError(
            f"Cannot extend {run.path}, because {archive} already exists: rename or move this folder"
        )
    last_old_stage = len(stages(longer)) - 2  # the completed epochs may have had more stages than the new recipe
    with replacing_folder(archive) as partial:
        for name in _COPIED:
            if (run.path / name).exists():
                shutil.copy2(run.path / name, partial / name)
        new = Run(partial / _NEW_FILES)
        new.write_history(
            [row | ({"stage": min(row["stage"], last_old_stage)} if "stage" in row else {}) for row in history]
        )
        write_file(new.path / "recipe.toml", longer.to_toml())
        new.write_json(EXTENSIONS, {"after_epochs": [*run.extensions, last]})
    _archive(run, archive)
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


def complete_extension(run: Run) -> None:
    """Complete an extension if the process was killed while it moved files. Otherwise, do nothing.

    Raises:
        EdgerecError: the environment variable ``TF_CONFIG`` lists several workers.
    """
    for new_files in run.path.glob(f"after-*-epochs/{_NEW_FILES}"):
        if _is_prepared(new_files.parent):
            continue
        if Cluster.from_environment() is not None:
            raise EdgerecError(
                f"Cannot resume {run.path} with several workers, because adding epochs to it was interrupted: unset "
                "TF_CONFIG, and resume the run until the first epoch starts"
            )
        _archive(run, new_files.parent)


def _is_prepared(archive: Path) -> bool:
    """Return whether the archive of an extension was created, but the run has not been changed yet."""
    return (archive / _NEW_FILES).is_dir() and not (archive / "metrics.json").exists()


def _was_extended(run: Run, epoch: int) -> bool:
    """Return whether the run was extended after this epoch. Older versions did not write ``extensions.json``."""
    return epoch in run.extensions or (run.path / f"after-{epoch}-epochs").is_dir()


def _archive(run: Run, archive: Path) -> None:
    """Move a finished run's results into the folder ``archive``, and move the new files into the run.

    Calling this function again after an interruption completes the remaining steps.
    """
    for path in _results(run):
        os.replace(path, archive / path.name)
    for path in (archive / _NEW_FILES).iterdir():
        os.replace(path, run.path / path.name)
    (archive / _NEW_FILES).rmdir()


def _results(run: Run) -> list[Path]:
    """Return the result files and folders of a finished run, starting with ``metrics.json``."""
    metrics = run.path / "metrics.json"
    return [
        *([metrics] if metrics.exists() else []),
        *(path for path in run.path.glob("*.json") if path.name not in (*_COPIED, "metrics.json")),
        *run.path.glob("*.keras"),
        *run.path.glob("*.html"),
        *(path for path in (run.path / "plots",) if path.is_dir()),
        *(report.parent for report in sorted(run.path.glob("[!.]*/report.json"))),
    ]
