"""Train a model from a recipe, and save the training run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.data import Dataset, Split, recorded_split
from edgerec.data.quick_checks import quick_warnings
from edgerec.data.readers import refuse_missing
from edgerec.data.tfrecord_reader import Packed, is_pack
from edgerec.errors import EdgerecError, OutputExistsError, RecipeError
from edgerec.importing.keras_files import check_opens
from edgerec.importing.keras_weights import load_weights
from edgerec.models import BACKBONE, least_size_px, reconstructs, user_defined
from edgerec.recipe import UNRESOLVED, DataSection, DataSource, Recipe, one_or_tuple
from edgerec.train.anomaly import check_autoencoder
from edgerec.train.automatic_recipe import resolved, with_absolute_paths
from edgerec.train.backend import keras, prepare
from edgerec.train.callbacks import OnEpoch, epoch_recorder
from edgerec.train.checkpoints import load_last_checkpoint
from edgerec.train.distillation_loss import DistillationLoss, distillation_loss
from edgerec.train.distribute import Workers, connect_workers, run_to_write
from edgerec.train.early_stopping import next_stage
from edgerec.train.extend import complete_extension, extend
from edgerec.train.ignored_keys import warn_ignored
from edgerec.train.input_pipeline import (
    evaluation_batches,
    evaluation_steps,
    reporting_damaged_records,
    steps_per_epoch,
    training_batches,
)
from edgerec.train.leakage import check_leakage, with_weights_file
from edgerec.train.optimizer import optimizer
from edgerec.train.precision import in_training_precision
from edgerec.train.results import write_results
from edgerec.train.run import Run
from edgerec.train.split_record import split_record
from edgerec.train.stages import TrainingStage, stage_rate, stages
from edgerec.train.training_step import STEPS_PER_CALL, compile_classifier
from edgerec.train.transfer import freeze_for_stage, network
from edgerec.train.worker_handshake import Cluster
from edgerec.utils.atomic import checked_output, refuse_existing, replacing_folder, write_file
from edgerec.utils.command_line import command
from edgerec.utils.optional import require
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)


def fit(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener = ignore,
    on_epoch: OnEpoch | None = None,
    finish: bool = True,
    more_epochs: int = 0,
    data: DataSource | None = None,
) -> Run:
    """Train a model from a recipe, and save the training run.

    Args:
        recipe: all training settings. With ``resume``, the recipe in ``out`` is used instead.
        out: the run's folder.
        resume: continue from the last checkpoint in ``out``.
        overwrite: replace an existing run.
        listener: receives the progress.
        on_epoch: function called after each epoch with the epoch's number and the Keras model.
        finish: whether to evaluate the model on the test images after the last epoch. If False, the run stays
            unfinished, and a later call with ``resume`` can finish the run.
        more_epochs: with ``resume``, add this many epochs to a finished run; see :func:`edgerec.train.extend.extend`.
        data: with ``resume``, the current location of the run's images, if they were moved. The run records it.

    Raises:
        EdgerecError: the recipe, the data or the folder cannot be used.
        InUseError: another process is writing to the run.
        TrainError: the loss became NaN or infinite. Earlier checkpoints are kept.
    """
    run = Run.at(out)
    with run.locked():
        if resume:
            complete_extension(run)
        loaded = None
        if data is not None:
            if not resume:
                raise RecipeError("the argument data requires resume=True: set data.source in the recipe instead")
            loaded = _record_location(run, data, listener)
        if more_epochs:
            if not resume or more_epochs < 0:
                raise RecipeError(f"more_epochs must be positive and requires resume=True, got {more_epochs}")
            extend(run, more_epochs)
        if resume:
            # The recipe contains the chief's data path, but other workers may use another path.
            recipe = _existing_recipe(run) if data is None else _at_location(_existing_recipe(run), data)
            if run.finished:
                log.info("the run %s is already finished", run.path)
                return run
        else:
            _check_output(run, recipe, overwrite)
            _check_names(recipe)
        if reconstructs(recipe.model.arch):
            check_autoencoder(recipe)
        prepare(recipe.train, recipe.seed)
        with connect_workers(recipe.train) as workers, run_to_write(run, workers) as own_run:
            recipe, dataset, parts = resolved(recipe, listener, loaded)
            workers.check_batch(recipe.train.batch_size, recipe.train.accumulate)
            # Raise an error about train.restarts before any file is written.
            stages(recipe)
            with workers.scope():
                first_epoch, model = load_last_checkpoint(own_run, dataset) if resume else (0, None)
                if model is None:
                    model = _initial_model(recipe, len(dataset.labels))
            # Older versions of edgerec split the images differently.
            if resume:
                parts = recorded_split(dataset, own_run.split_record)
            workers.require_equal({"epoch": first_epoch, "data": dataset.digest} | recipe.without_source.flattened)
            # Load the teachers after building the model, because loading them changes the random state.
            teacher = distillation_loss(recipe, dataset.labels)
            if not resume:
                _write_new_run(own_run, recipe, dataset, parts, overwrite, check_leakage(recipe, dataset, parts))
                if finish and workers.chief:
                    for problem in quick_warnings(dataset, parts):
                        log.warning(problem)
                warn_ignored(recipe)
            training = _Training(own_run, recipe, dataset, parts, teacher, workers, listener, on_epoch)
            with reporting_damaged_records(dataset):
                while stage := next_stage(recipe, own_run.history()):
                    training.train_stage(model, stage, len(own_run.history()))
            if finish and workers.chief:
                write_results(run, recipe, dataset, parts, listener)
        return run


def was_begun(recipe: Recipe, out: str | Path) -> bool:
    """Return whether ``out`` contains a run of this recipe that can be resumed.

    ``data.source`` may differ, because the images may have been moved. To resume the run with the images in their new
    location, call :func:`fit` with ``data=recipe.data.source``, which checks that the images are the same.

    Raises:
        RecipeError: ``out`` contains a training run with another recipe.
    """
    run = Run.at(out)
    if not run.begun:
        return False
    recorded = run.recipe.flattened
    requested = replace(recipe, data=with_absolute_paths(recipe.data), model=with_weights_file(recipe.model))
    unset = UNRESOLVED | {"data.black_level": 0}
    source = requested.data.source
    if isinstance(source, str) and is_pack(source):
        default = DataSection()
        unset |= {f"data.{key}": getattr(default, key) for key in Packed.open(source).data_settings}
    for name, value in requested.flattened.items():
        old = recorded[name]
        # Another target or data path does not prevent resuming a run.
        may_differ = name in ("model.target", "data.source") or (name in unset and value == unset[name])
        if name == "train.batch_size" and value > old:  # the batch size never exceeds the number of training images
            may_differ = may_differ or run.split_record.get("train_images") == old
        extension = command("train", "--resume", "--epochs", "+N", "--out", run.path)
        more = f"; to add epochs to a finished run, use {extension}" * (name == "train.epochs")
        if value != old and not may_differ:
            raise RecipeError(
                f"{run.path} was started with {name}={old!r}, but this command sets {name}={value!r}: resume "
                f"the run unchanged with {command('train', '--resume', '--out', run.path)}, or choose another "
                f"--out{more}"
            )
    return True


def load_same_images(run: Run, source: DataSource, listener: Listener = ignore) -> tuple[Dataset, DataSection]:
    """Load a run's images from ``source``, and return the data set and the run's data section for this location.

    Raises:
        RecipeError: ``source`` does not contain the images that the run was started with.
    """
    dataset, section = run.load_images(source, listener)
    if dataset.digest != run.split_record["digest"]:
        raise RecipeError(
            f"{run.path} was started with other images than those in {section.title} (the digests differ): resume the "
            "run with its own images, or choose another --out"
        )
    # recorded_split() raises an error if an image in the split record is missing.
    recorded_split(dataset, run.split_record)
    return dataset, section


@dataclass(frozen=True)
class _Training:
    """Data and settings shared by all stages of a training run."""

    run: Run
    recipe: Recipe
    dataset: Dataset
    parts: Split
    teacher: DistillationLoss | None
    workers: Workers
    listener: Listener
    on_epoch: OnEpoch | None

    def train_stage(self, model: Any, stage: TrainingStage, first_epoch: int) -> None:
        recipe, train = self.recipe, self.recipe.train
        dataset, parts, soft_labels = self.dataset, self.parts, recipe.augment.mixes
        steps = steps_per_epoch(parts.train, recipe)
        with self.workers.scope():
            if first_epoch == stage.first:
                freeze_for_stage(model, recipe, stage)
                model.optimizer = optimizer(train.optimizer, stage_rate(recipe, stage, steps), train.weight_decay)
            compile_classifier(
                model,
                model.optimizer,
                min(STEPS_PER_CALL, steps),
                xla=train.xla,
                micro_batches=train.accumulate,
                soft_labels=soft_labels,
                teacher=self.teacher,
                teacher_weight=recipe.distill.weight,
            )
        record = epoch_recorder(self.run, recipe, stage, steps, self.workers, self.listener, self.on_epoch)
        model.fit(
            self.workers.distribute(partial(training_batches, dataset, parts.train, recipe, first_epoch=first_epoch)),
            steps_per_epoch=steps,
            initial_epoch=first_epoch,
            epochs=stage.last,
            validation_data=self.workers.distribute(
                partial(evaluation_batches, dataset, parts.val, recipe.normalize, soft_labels=soft_labels)
            ),
            validation_steps=evaluation_steps(parts.val, self.workers.replicas),
            callbacks=[*_tensorboard_callbacks(self.run, recipe), record],
            verbose=0,
        )


def _check_output(run: Run, recipe: Recipe, overwrite: bool) -> None:
    inputs = [recipe.model.weights, *recipe.distill.teachers.split(",")]
    checked_output(run.path, inputs, data=recipe.data.source, folder=True)
    if run.begun and not run.finished and not overwrite:
        raise OutputExistsError(
            f"{run.path} is an unfinished run: add --resume to continue training, or --overwrite to start again"
        )
    refuse_existing(run.path, overwrite, replaceable=run.begun)


def _check_names(recipe: Recipe) -> None:
    """Raise an error if a recipe's architecture or data does not exist, before TensorFlow is loaded."""
    least_size_px(recipe.model.arch)
    if user_defined.is_user_defined(recipe.model.arch):
        user_defined.find_function(recipe.model.arch)
    refuse_missing(recipe.data.sources)


def _record_location(run: Run, source: DataSource, listener: Listener) -> tuple[Dataset, DataSection] | None:
    """Load and check moved images, and set ``data.source`` in the run's recipe to their current location.

    Return the data set and its section, or None if the images were not moved.
    """
    recipe = _existing_recipe(run)
    moved = _at_location(recipe, source)
    if moved == recipe:
        return None
    loaded = load_same_images(run, moved.data.source, listener)
    cluster = Cluster.from_environment()
    if cluster is None or cluster.chief:
        log.info("%s now reads its images from %s", run.path, moved.data.title)
        write_file(run.path / "recipe.toml", moved.to_toml())
    return loaded


def _at_location(recipe: Recipe, source: DataSource) -> Recipe:
    return replace(recipe, data=with_absolute_paths(replace(recipe.data, source=one_or_tuple(source))))


def _existing_recipe(run: Run) -> Recipe:
    if not run.begun:
        raise EdgerecError(f"Cannot resume {run.path}, because it is not a run: train without --resume")
    return run.recipe


def _write_new_run(
    run: Run, recipe: Recipe, dataset: Dataset, parts: Split, overwrite: bool, inherited: npt.NDArray[np.bytes_]
) -> None:
    with replacing_folder(run.path, overwrite=overwrite) as partial:
        write_file(partial / "recipe.toml", recipe.to_toml())
        write_file(partial / "labels.txt", "".join(f"{label}\n" for label in dataset.labels))
        Run(partial).write_json("split.json", split_record(dataset, parts, inherited))
    parts.report()
    log.info(
        "%s, %d images to train, %d to validate, %d %s",
        f"{len(dataset.labels)} classes" if not run.reconstructs else "labels are not used",
        len(parts.train),
        len(parts.val),
        len(parts.test),
        f"to test (listed in {run.path}/split.json)"
        if parts.held_out
        else "to test (the test split that the data defines)",
    )


def _initial_model(recipe: Recipe, classes: int) -> Any:
    model = _build_model(recipe, classes)
    if recipe.model.pretrained and recipe.model.weights != "imagenet" and recipe.model.arch != BACKBONE:
        loaded, total = load_weights(model, Path(recipe.model.weights))
        log.info("loaded %d of %d variables from %s", loaded, total, recipe.model.weights)
    return model


def _tensorboard_callbacks(run: Run, recipe: Recipe) -> list[Any]:
    if not recipe.train.tensorboard:
        return []
    require("tensorboard")
    return [keras().callbacks.TensorBoard(str(run.path / "tensorboard"), write_graph=False)]


def _build_model(recipe: Recipe, classes: int) -> Any:
    model = network(recipe, classes)
    if user_defined.is_user_defined(recipe.model.arch):
        check_opens(model, recipe.model.arch)
    return in_training_precision(model)
