"""Training: a recipe in, a run out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.contract.files import refuse_existing, replacing_folder, write_file
from edgerec.contract.progress import Listener, Progress, ignore
from edgerec.contract.recipe import DataSection, Recipe
from edgerec.data import Dataset, Split, load, split_dataset
from edgerec.data.sources import NAMED, user_path
from edgerec.errors import DataError, EdgerecError, ModelError, OutputExistsError, RunError, TrainError
from edgerec.models import build, find
from edgerec.train import plots
from edgerec.train.evaluate import figures, keras_scorer
from edgerec.train.feed import Feed, batch_size, evaluation_feed, training_feed
from edgerec.train.keras import UNREADABLE, compile_classifier, keras, load_model, load_weights, prepare, versions
from edgerec.train.keras3 import write_keras3
from edgerec.train.run import KERAS3, Run, best_epoch, split_record

log = logging.getLogger(__name__)

# A Python call between steps costs more than a step of a small model: so many steps run in one.
STEPS_PER_CALL = 20

OnEpoch = Callable[[int, Any], None]


def fit(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener = ignore,
    on_epoch: OnEpoch | None = None,
    finish: bool = True,
) -> Run:
    """Train by a recipe and write a run.

    Args:
        recipe: what to do; with ``resume`` the run's own recipe is used instead.
        out: the run's folder.
        resume: go on from the last checkpoint in ``out``.
        overwrite: replace a run that is there.
        listener: told of the progress.
        on_epoch: called with the number and the Keras model after every epoch.
        finish: without it the run is left unfinished after its last epoch, and nobody looks at the held-out
            pictures; ``resume`` finishes it.

    Raises:
        EdgerecError: the recipe, the data or the folder do not allow it.
        TrainError: the loss became NaN; the checkpoints before stay.
    """
    run = Run.at(out)
    if resume:
        recipe = _resumable(run)
        if run.finished:
            log.info("%s is finished already", run.path)
            return run
    else:
        _refuse(run, overwrite)
    architecture = find(recipe.model.arch)
    prepare(recipe.train, recipe.seed)
    dataset, section = load(recipe.data, least_size_px=architecture.least_size_px, listener=listener)
    parts = split_dataset(dataset, section, recipe.seed)
    size = batch_size(recipe.train.batch_size, len(parts.train))
    recipe = replace(recipe, data=placed(section), train=replace(recipe.train, batch_size=size))
    first_epoch, model = _restore(run, dataset) if resume else (0, None)
    feed = training_feed(dataset, parts.train, recipe, first_epoch=first_epoch)
    if model is None:
        model = _compiled(recipe, len(dataset.labels), feed.steps)
    if not resume:
        _start(run, recipe, dataset, parts, overwrite)
    recorder = _recorder(run, recipe, feed, listener, on_epoch)
    if not recorder.enough(first_epoch):
        model.fit(
            feed.batches,
            steps_per_epoch=feed.steps,
            initial_epoch=first_epoch,
            epochs=recipe.train.epochs,
            validation_data=evaluation_feed(dataset, parts.val, recipe.normalise),
            class_weight=_class_weights(recipe, dataset, parts),
            callbacks=_callbacks(recipe, recorder),
            verbose=0,
        )
    if finish:
        _finish(run, recipe, dataset, parts)
    return run


def placed(section: DataSection) -> DataSection:
    """The section with its data's absolute path, so that a run finds its pictures from wherever it is used."""
    if section.source in NAMED:
        return section
    return replace(section, source=str(user_path(section.source).resolve()))


def _refuse(run: Run, overwrite: bool) -> None:
    if run.begun and not run.finished and not overwrite:
        raise OutputExistsError(
            f"{run.path} holds an unfinished training: add --resume to go on, or --overwrite to start again"
        )
    refuse_existing(run.path, overwrite, ours=run.begun)


def _resumable(run: Run) -> Recipe:
    if not run.begun:
        raise EdgerecError(f"{run.path} has nothing to resume: it is no run; train without --resume")
    return run.recipe


def _start(run: Run, recipe: Recipe, dataset: Dataset, parts: Split, overwrite: bool) -> None:
    with replacing_folder(run.path, overwrite=overwrite) as partial:
        write_file(partial / "recipe.toml", recipe.to_toml())
        write_file(partial / "labels.txt", "".join(f"{label}\n" for label in dataset.labels))
        Run(partial).write_json("split.json", split_record(dataset, parts))
    log.info(
        "%d classes, %d images to train, %d to validate, %d %s",
        len(dataset.labels),
        len(parts.train),
        len(parts.val),
        len(parts.test),
        f"held out for the test (listed in {run.path}/split.json)"
        if parts.held_out
        else "in the data's own test split",
    )


def _restore(run: Run, dataset: Dataset) -> tuple[int, Any]:
    if dataset.digest != run.split_record["digest"]:
        raise DataError(f"the pictures changed since {run.path} was begun: train again with --overwrite")
    for path in sorted(_checkpoints(run).values(), reverse=True):
        try:
            model = keras().models.load_model(path, safe_mode=True)
        except UNREADABLE as error:
            log.warning("%s cannot be read (%s): trying the one before", path, error)
            path.rename(path.with_suffix(".damaged"))
            continue
        epoch = int(path.stem.partition("-")[2])
        run.write_history([row for row in run.history() if row["epoch"] <= epoch])
        log.info("resuming after epoch %d", epoch)
        return epoch, model
    run.write_history([])
    log.info("no checkpoint in %s: starting at the first epoch", run.path)
    return 0, None


def _checkpoints(run: Run) -> dict[int, Path]:
    found = (run.path / "checkpoints").glob("epoch-" + 5 * "[0-9]" + ".keras")
    return {int(path.stem.partition("-")[2]): path for path in found}


def _compiled(recipe: Recipe, classes: int, steps: int) -> Any:
    model = _built(recipe, classes)
    if recipe.model.weights not in ("none", "imagenet"):
        taken, total = load_weights(model, Path(recipe.model.weights))
        log.info("%d of %d variables from %s", taken, total, recipe.model.weights)
    rate = _learning_rate(recipe, steps)
    compile_classifier(model, optimizer(recipe.train.optimizer, rate), min(STEPS_PER_CALL, steps))
    return model


def _built(recipe: Recipe, classes: int) -> Any:
    model = build(keras(), recipe.model, recipe.preprocess.shape, classes, recipe.normalise)
    return _decaying(model, recipe.train.weight_decay) if recipe.train.weight_decay else model


def _decaying(model: Any, rate: float) -> Any:
    """The model with ``rate / 2`` of each kernel's sum of squares in its loss, whose gradient is ``rate`` times it."""
    for layer in model.layers:
        if getattr(layer, "kernel", None) is not None and not hasattr(layer, "depthwise_kernel"):
            layer.kernel_regularizer = keras().regularizers.L2(rate / 2)
    # A layer takes up its regularizer when it is built.
    decaying = keras().Model.from_config(model.get_config())
    decaying.set_weights(model.get_weights())
    return decaying


def _learning_rate(recipe: Recipe, steps: int) -> Any:
    train = recipe.train
    if train.schedule != "cosine":
        return train.learning_rate
    total = steps * train.epochs
    warmup = min(round(steps * train.warmup_epochs), total // 2)
    return cosine(train.learning_rate, total, warmup)


def optimizer(name: str, rate: Any) -> Any:
    """Keras' optimizer for a recipe's ``train.optimizer``; ``rate`` is a number or a schedule."""
    if name == "sgd":
        return keras().optimizers.SGD(rate, momentum=0.9, nesterov=True)
    return keras().optimizers.Adam(rate)


def cosine(peak: float, steps: int, warmup: int = 0) -> Any:
    """Up to ``peak`` over ``warmup`` steps, then half a cosine down to zero (arXiv:1608.03983)."""
    decay = keras().optimizers.schedules.CosineDecay
    if warmup:
        return decay(0.0, max(1, steps - warmup), warmup_target=peak, warmup_steps=warmup)
    return decay(peak, max(1, steps))


def _class_weights(recipe: Recipe, dataset: Dataset, parts: Split) -> dict[int, float] | None:
    if recipe.train.class_weights != "balanced":
        return None
    counts = np.bincount(dataset.classes[parts.train], minlength=len(dataset.labels))
    return {i: float(counts.sum() / (len(counts) * count)) for i, count in enumerate(counts)}


def _callbacks(recipe: Recipe, recorder: Any) -> list[Any]:
    if recipe.train.schedule == "plateau":
        return [keras().callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=3), recorder]
    return [recorder]


def _recorder(run: Run, recipe: Recipe, feed: Feed, listener: Listener, on_epoch: OnEpoch | None) -> Any:
    """The callback that reports, records and checkpoints. Its class needs Keras, so it is made here."""

    class Recorder(keras().callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch, self.began_s = epoch, time.monotonic()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                raise TrainError(
                    f"the loss became {loss} in epoch {self.epoch + 1}: lower train.learning_rate "
                    f"(now {recipe.train.learning_rate:g}); the checkpoints before stay in {run.path}"
                )
            text = f"epoch {self.epoch + 1}/{recipe.train.epochs}  loss {loss:.4f}  accuracy {logs['accuracy']:.4f}"
            done = self.epoch * feed.steps + batch + 1
            listener(Progress("training", done, recipe.train.epochs * feed.steps, text))

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            row = {key: float(logs[key]) for key in ("loss", "accuracy", "val_loss", "val_accuracy")}
            rate = float(keras().backend.get_value(self.model.optimizer.learning_rate))
            row |= {"epoch": epoch + 1, "learning_rate": rate, "seconds": time.monotonic() - self.began_s}
            # The row first: what it says of an epoch without a checkpoint is cut off when the run is resumed.
            run.write_history([*run.history(), row])
            run.save_model(self.model, f"checkpoints/epoch-{epoch + 1:05d}.keras")
            kept = {epoch + 1, best_epoch(run.history())}
            for number, path in _checkpoints(run).items():
                if number not in kept:
                    path.unlink()
            log.info(
                "epoch %d/%d  loss %.4f  accuracy %.4f  val_loss %.4f  val_accuracy %.4f  %.1f s",
                epoch + 1,
                recipe.train.epochs,
                *(row[key] for key in ("loss", "accuracy", "val_loss", "val_accuracy", "seconds")),
            )
            if on_epoch is not None:
                on_epoch(epoch + 1, self.model)
            self.model.stop_training = self.enough(epoch + 1)

        def enough(self, epoch: int) -> bool:
            """Whether the run has all its epochs, or no better one for too long."""
            patience, history = recipe.train.early_stopping, run.history() if epoch else []
            stalled = bool(patience and history and epoch - best_epoch(history) >= patience)
            return stalled or epoch >= recipe.train.epochs

    return Recorder()


def _best(run: Run) -> tuple[int, Any]:
    """The best epoch whose checkpoint can be read, and its model."""
    while rows := [row for row in run.history() if row["epoch"] in _checkpoints(run)]:
        best = best_epoch(rows)
        path = _checkpoints(run)[best]
        try:
            return best, load_model(path)
        except ModelError as error:
            log.warning("%s: taking the next best epoch", error)
            path.rename(path.with_suffix(".damaged"))
    raise RunError(f"{run.path} has no checkpoint that can be read: train again with --overwrite")


def _finish(run: Run, recipe: Recipe, dataset: Dataset, parts: Split) -> None:
    history = run.history()
    best, model = _best(run)
    if recipe.train.mixed_precision:
        # Built again in float32, whatever the training computed in: that is what is converted.
        keras().mixed_precision.set_global_policy("float32")
        weights = model.get_weights()
        model = _built(recipe, len(dataset.labels))
        model.set_weights(weights)
    run.save_model(model, "model.keras")
    write_keras3(model, run.path / KERAS3)
    scores = keras_scorer(model, recipe.normalise)(dataset.images[parts.test], ignore)
    result = figures(scores, dataset.classes[parts.test], dataset.labels, "test")
    plots.learning_curves(history, best, run.path / "plots" / "learning_curves.png")
    plots.confusion_matrix(result, run.path / "plots" / "confusion_matrix.png")
    plots.worst_mistakes(dataset, parts.test, scores, run.path / "plots" / "worst_mistakes.png")
    row = next(row for row in history if row["epoch"] == best)
    about = {
        "val_accuracy": row["val_accuracy"],
        "best_epoch": best,
        "epochs": len(history),
        "seconds": round(sum(row["seconds"] for row in history), 1),
        "parameters": int(model.count_params()),
        "train_images": len(parts.train),
        "val_images": len(parts.val),
        "data_digest": dataset.digest,
        "versions": versions(),
    }
    run.write_json("metrics.json", result.to_dict() | about)
