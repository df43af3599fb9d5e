"""Train a model as a recipe describes, and write a run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.data import Dataset, Split, load, recorded_split, split_dataset
from edgerec.data.quick_checks import quick_warnings
from edgerec.data.readers import NAMED, refuse_missing
from edgerec.data.tfrecord_reader import is_remote
from edgerec.errors import DataError, EdgerecError, ModelError, OutputExistsError, RecipeError, RunError
from edgerec.importing.keras3 import offer_keras3
from edgerec.importing.keras_files import check_opens, load_checkpoint, load_model, load_weights
from edgerec.models import BACKBONE, least_size_px, own, reconstructs
from edgerec.recipe import UNRESOLVED, DataSection, Recipe, one_or_tuple
from edgerec.train import baseline
from edgerec.train import training_plots as plots
from edgerec.train.anomaly import check_autoencoder, evaluate_autoencoder
from edgerec.train.automatic_recipe import with_architecture, with_epochs
from edgerec.train.backend import (
    UNREADABLE,
    compile_classifier,
    keras,
    prepare,
    versions,
)
from edgerec.train.callbacks import OnEpoch, checkpoints, next_stage, recorder
from edgerec.train.distillation import DistillationLoss, distillation_loss
from edgerec.train.distribute import Team, connected_team, run_to_write
from edgerec.train.evaluate import figures, keras_scorer
from edgerec.train.extend import extend
from edgerec.train.ignored import warn_ignored
from edgerec.train.input_pipeline import (
    evaluation_feed,
    evaluation_steps,
    reporting_damaged_records,
    steps_per_epoch,
    training_feed,
)
from edgerec.train.leakage import check_exposure, with_weights_file
from edgerec.train.optimizer import optimizer, restored_optimizer
from edgerec.train.precision import in_float32, in_training_precision
from edgerec.train.run import KERAS3, Run, best_epoch, split_record
from edgerec.train.transfer import (
    Stage,
    backbone_file,
    freeze_for_stage,
    input_size_px,
    network,
    stage_rate,
    stages,
    unfreeze,
)
from edgerec.utils.atomic import checked_output, real_path, refuse_existing, replacing_folder, user_path, write_file
from edgerec.utils.command_line import command
from edgerec.utils.optional import require
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)

# Number of training steps in each call from Python to TensorFlow. For a small model, a single step is faster than the
# call itself.
STEPS_PER_CALL = 20


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
) -> Run:
    """Train as a recipe describes, and write a run.

    Args:
        recipe: all settings of the training; with ``resume``, the recipe in ``out`` is used instead.
        out: the run's folder.
        resume: continue from the last checkpoint in ``out``.
        overwrite: replace an existing run.
        listener: receives the progress.
        on_epoch: function that is called after each epoch with the number of the epoch and the Keras model.
        finish: whether to evaluate the model on the test images after the last epoch. If False, the run stays
            unfinished, and a later call with ``resume`` can finish the run.
        more_epochs: with ``resume``, add this many epochs to a finished run, see :func:`edgerec.train.extend.extend`.

    Raises:
        EdgerecError: the recipe, the data or the folder cannot be used.
        InUseError: another process is writing to the run.
        TrainError: the loss became NaN. Earlier checkpoints are kept.
    """
    run = Run.at(out)
    with run.locked():
        if more_epochs:
            if not resume or more_epochs < 0:
                raise RecipeError(f"more_epochs is {more_epochs}, expected a positive number together with resume")
            extend(run, more_epochs)
        if resume:
            recipe = _existing_recipe(run)
            if run.finished:
                log.info("%s is finished already", run.path)
                return run
        else:
            _check_output(run, recipe, overwrite)
            _check_names(recipe)
        if reconstructs(recipe.model.arch):
            check_autoencoder(recipe)
        prepare(recipe.train, recipe.seed)
        with connected_team(recipe.train) as team, run_to_write(run, team) as own_run:
            recipe, dataset, parts = resolved(recipe, listener)
            team.check_batch(recipe.train.batch_size, recipe.train.accumulate)
            stages(recipe)  # raises an error for invalid stages before anything is written
            with team.scope():
                first_epoch, model = _load_last_checkpoint(own_run, dataset) if resume else (0, None)
                if model is None:
                    model = _initial_model(recipe, len(dataset.labels))
            if resume:  # the version of edgerec that started the run may have split the images by another rule
                parts = recorded_split(dataset, own_run.split_record)
            team.require_equal({"epoch": first_epoch, "data": dataset.digest} | recipe.without_source.to_dict())
            # Load the teachers after the model was built, because loading them changes the random state.
            teacher = distillation_loss(recipe, dataset.labels)
            if not resume:
                _write_new_run(own_run, recipe, dataset, parts, overwrite, check_exposure(recipe, dataset, parts))
                if finish and team.chief:
                    for problem in quick_warnings(dataset, parts):
                        log.warning(problem)
                warn_ignored(recipe)
            training = _Training(own_run, recipe, dataset, parts, teacher, team, listener, on_epoch)
            with reporting_damaged_records(dataset):
                while stage := next_stage(recipe, own_run.history()):
                    training.learn(model, stage, len(own_run.history()))
            if finish and team.chief:
                _finish(run, recipe, dataset, parts, listener)
        return run


def was_begun(recipe: Recipe, out: str | Path) -> bool:
    """Return whether ``out`` has a training with the same recipe, so that the same command can start and resume it.

    Raises:
        RecipeError: ``out`` has a training with another recipe.
    """
    run = Run.at(out)
    if not run.begun:
        return False
    recorded = run.recipe
    requested = replace(recipe, data=with_absolute_paths(recipe.data), model=with_weights_file(recipe.model))
    for section, keys in requested.to_dict().items():
        for key, value in keys.items() if isinstance(keys, dict) else {"": keys}.items():
            name = f"{section}.{key}" if key else section
            old = getattr(getattr(recorded, section), key) if key else getattr(recorded, section)
            unset = UNRESOLVED | {"data.black_level": 0}
            # The target is only used to choose the architecture, so its value may change.
            may_differ = name == "model.target" or (name in unset and value == unset[name])
            more = "; --resume --epochs +N adds epochs to a finished run" * (name == "train.epochs")
            if value != old and not may_differ:
                raise RecipeError(
                    f"{run.path} was started with {name} {old!r}, but now it is {value!r}: continue it unchanged with "
                    f"{command('train', '--resume', '--out', run.path)}, or choose another --out{more}"
                )
    return True


def resolved(recipe: Recipe, listener: Listener) -> tuple[Recipe, Dataset, Split]:
    """Return the recipe with values for all automatic keys, the data set, and the split of the data set."""
    recipe = with_architecture(replace(recipe, model=with_weights_file(recipe.model)), listener)
    unlabeled = reconstructs(recipe.model.arch)  # an autoencoder is trained without labels
    dataset, section = load(
        _sized_data_section(recipe),
        least_size_px=least_size_px(recipe.model.arch),
        flat=unlabeled,
        least_classes=1 if unlabeled else 2,
        listener=listener,
    )
    parts = split_dataset(dataset, section, recipe.seed)
    train = with_epochs(recipe.train, len(parts.train))
    size, accumulate = train.batch_size, train.accumulate
    if size < recipe.train.batch_size:
        log.warning(
            "train.batch_size is %d, but there are fewer training images: using a batch size of %d",
            recipe.train.batch_size,
            size,
        )
    if size % accumulate:
        raise RecipeError(
            f"train.accumulate is {accumulate}, expected a divisor of the batch size {size}: set train.batch_size to a "
            f"multiple of {accumulate} that is not above {len(parts.train)}, the number of training images"
        )
    return replace(recipe, data=with_absolute_paths(section), train=train), dataset, parts


@dataclass(frozen=True)
class _Training:
    """Data and settings that all stages of a training share."""

    run: Run
    recipe: Recipe
    dataset: Dataset
    parts: Split
    teacher: DistillationLoss | None
    team: Team
    listener: Listener
    on_epoch: OnEpoch | None

    def learn(self, model: Any, stage: Stage, done: int) -> None:
        """Train ``model`` for the remaining epochs of a stage; ``done`` is the number of completed epochs in total."""
        recipe, train, first = self.recipe, self.recipe.train, done
        dataset, parts, soft_labels = self.dataset, self.parts, recipe.augment.mixes
        steps = steps_per_epoch(parts.train, recipe)
        with self.team.scope():
            if first == stage.first:
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
        record = recorder(self.run, recipe, stage, steps, self.team, self.listener, self.on_epoch)
        model.fit(
            self.team.distribute(partial(training_feed, dataset, parts.train, recipe, first_epoch=first)),
            steps_per_epoch=steps,
            initial_epoch=first,
            epochs=stage.last,
            validation_data=self.team.distribute(
                partial(evaluation_feed, dataset, parts.val, recipe.normalise, soft_labels=soft_labels)
            ),
            validation_steps=evaluation_steps(parts.val, self.team.replicas),
            callbacks=[*_tensorboard(self.run, recipe), record],
            verbose=0,
        )


def with_absolute_paths(section: DataSection) -> DataSection:
    """Return the section with absolute paths, so that a run does not depend on the working directory.

    The paths of merged data sets are sorted, because their order has no effect.
    """
    sources = (
        source if source in NAMED or is_remote(source) else str(real_path(user_path(source)))
        for source in section.sources
    )
    absolute = replace(section, source=one_or_tuple(sorted(sources)))
    if any("\udc80" <= character <= "\udcff" for source in absolute.sources for character in source):
        raise DataError(f"The path {absolute.title} is not valid UTF-8, so a recipe cannot contain it: rename it")
    return absolute


def _sized_data_section(recipe: Recipe) -> DataSection:
    """Return the data section; if the network comes from a file, with the input size of this network."""
    if recipe.model.arch != BACKBONE:
        return recipe.data
    size = input_size_px(backbone_file(recipe))
    if recipe.data.input_size not in (0, size):
        raise RecipeError(
            f"data.input_size is {recipe.data.input_size}, but the network in {recipe.model.weights} takes images of "
            f"{size} pixels: leave data.input_size out"
        )
    return replace(recipe.data, input_size=size)


def _check_output(run: Run, recipe: Recipe, overwrite: bool) -> None:
    """Raise an error if the run's folder cannot be created or replaced."""
    inputs = [recipe.model.weights, *recipe.distill.teachers.split(",")]
    checked_output(run.path, inputs, data=recipe.data.source, folder=True)
    if run.begun and not run.finished and not overwrite:
        raise OutputExistsError(
            f"{run.path} has an unfinished training: add --resume to continue it, or --overwrite to start again"
        )
    refuse_existing(run.path, overwrite, replaceable=run.begun)


def _check_names(recipe: Recipe) -> None:
    """Raise an error for unknown names in the recipe before TensorFlow is loaded and images are read."""
    least_size_px(recipe.model.arch)
    if own.is_own(recipe.model.arch):
        own.find_function(recipe.model.arch)
    refuse_missing(recipe.data.sources)


def _existing_recipe(run: Run) -> Recipe:
    """Return the recipe of an existing run; raise an error if there is no run."""
    if not run.begun:
        raise EdgerecError(f"{run.path} cannot be resumed, because it is not a run: train without --resume")
    return run.recipe


def _write_new_run(
    run: Run, recipe: Recipe, dataset: Dataset, parts: Split, overwrite: bool, inherited: npt.NDArray[np.bytes_]
) -> None:
    """Write the recipe, the labels and the split of a new run, and log the sizes of the subsets."""
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


def _load_last_checkpoint(run: Run, dataset: Dataset) -> tuple[int, Any]:
    """Return the number of completed epochs and the model of the last checkpoint that can be read.

    The result is ``(0, None)`` if there is no such checkpoint.
    """
    if dataset.digest != run.split_record["digest"]:
        raise DataError(f"The images have changed since {run.path} was started: train again with --overwrite")
    for path in sorted(checkpoints(run).values(), reverse=True):
        try:
            model = load_checkpoint(path)
        except UNREADABLE as error:
            log.warning("%s cannot be read (%s): trying the previous checkpoint", path, error)
            path.rename(path.with_suffix(".damaged"))
            continue
        epoch = int(path.stem.partition("-")[2])
        run.write_history([row for row in run.history() if row["epoch"] <= epoch])
        model.optimizer = restored_optimizer(model.optimizer, model.trainable_variables)
        log.info("resuming after epoch %d", epoch)
        return epoch, model
    if own.is_own(run.recipe.model.arch):
        # The run may come from another person, so its recipe must not cause any code to be executed.
        raise RunError(
            f"{run.path} has no checkpoint, and its network is your own code ({run.recipe.model.arch}), which --resume "
            "does not execute: train again with --overwrite"
        )
    run.write_history([])
    log.info("no checkpoint in %s: starting at the first epoch", run.path)
    return 0, None


def _initial_model(recipe: Recipe, classes: int) -> Any:
    """Return the model with its initial weights."""
    model = _build_model(recipe, classes)
    if recipe.model.pretrained and recipe.model.weights != "imagenet" and recipe.model.arch != BACKBONE:
        loaded, total = load_weights(model, Path(recipe.model.weights))
        log.info("loaded %d of %d variables from %s", loaded, total, recipe.model.weights)
    return model


def _tensorboard(run: Run, recipe: Recipe) -> list[Any]:
    """Return the TensorBoard callback in a list; an empty list if ``train.tensorboard`` is not set."""
    if not recipe.train.tensorboard:
        return []
    require("tensorboard")
    return [keras().callbacks.TensorBoard(str(run.path / "tensorboard"), write_graph=False)]


def _build_model(recipe: Recipe, classes: int) -> Any:
    """Build the recipe's network in the precision of the training."""
    model = network(recipe, classes)
    if own.is_own(recipe.model.arch):
        check_opens(model, recipe.model.arch)
    return in_training_precision(model)


def _load_best(run: Run) -> tuple[int, Any]:
    """Return the number of the best epoch whose checkpoint can be read, and the model of this checkpoint."""
    while rows := [row for row in run.history() if row["epoch"] in checkpoints(run)]:
        best = best_epoch(rows)
        path = checkpoints(run)[best]
        try:
            return best, load_model(path)
        except ModelError as error:
            log.warning("%s: using the next best epoch", error)
            path.rename(path.with_suffix(".damaged"))
    raise RunError(f"{run.path} has no checkpoint that can be read: train again with --overwrite")


def _finish(run: Run, recipe: Recipe, dataset: Dataset, parts: Split, listener: Listener) -> None:
    """Evaluate the model of the best epoch, and write the model, the plots and ``metrics.json``."""
    history = run.history()
    best, model = _load_best(run)
    if recipe.train.mixed_precision:
        # Rebuild the model in float32, because the conversion needs a float32 model.
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
    facts = {
        "best_epoch": best,
        "epochs": len(history),
        "seconds": round(sum(row["seconds"] for row in history), 1),
        "parameters": int(model.count_params()),
        "train_images": len(parts.train),
        "val_images": len(parts.val),
        "data_digest": dataset.digest,
        "versions": versions(),
    }
    run.write_json("metrics.json", metrics | facts)


def _evaluate_classifier(
    model: Any, recipe: Recipe, dataset: Dataset, parts: Split, folder: Path, listener: Listener
) -> dict[str, Any]:
    """Return the metrics of a trained classifier on the test images, and write plots to ``folder``."""
    scores = keras_scorer(model, recipe.normalise)(dataset.select(parts.test), listener)
    result = figures(scores, dataset.classes[parts.test], dataset.labels, "test")
    plots.confusion_matrix(result, folder / "confusion_matrix.png")
    plots.worst_mistakes(dataset, parts.test, scores, folder / "worst_mistakes.png")
    return result.to_dict()
