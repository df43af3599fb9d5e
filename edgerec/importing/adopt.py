"""Import a third-party model into a run folder, so that it can be compressed and exported like a trained model."""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.tensors import parse_normalize
from edgerec.data import Dataset, Split
from edgerec.errors import EdgerecError
from edgerec.importing.adopted_data import ModelData, read_model_data, read_model_labels
from edgerec.importing.classifier import check_classifier, with_input_normalize, with_scores
from edgerec.importing.keras_files import SUFFIXES
from edgerec.importing.normalization_choice import NormalizationChoice, choose_normalization, predictions
from edgerec.importing.saved_model import FOLDER, SavedModel, load_saved_model
from edgerec.importing.third_party_keras import read_third_party
from edgerec.importing.to_keras3 import offer_keras3
from edgerec.recipe import DataSource, Recipe
from edgerec.train.backend import prepare, versions
from edgerec.train.label_order import FOLDERS
from edgerec.train.metrics import classifier_report
from edgerec.train.run import KERAS3, PSEUDO_LABELS, Run
from edgerec.train.scorers import keras_scorer
from edgerec.train.split_record import split_record
from edgerec.utils.atomic import checked_output, refuse_existing, replacing_folder, user_path, write_file
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)

# A warning is logged if more than this fraction of the images has the same prediction.
MAX_SAME_PREDICTION = 0.9


def is_model(path: str | Path) -> bool:
    """Return whether ``path`` is a third-party model (.keras, .h5 or a SavedModel folder) rather than a run folder."""
    return Path(path).suffix in SUFFIXES or (Path(path) / "saved_model.pb").is_file()


def adopt(
    model_path: str | Path,
    data: DataSource,
    out: str | Path,
    *,
    normalize: str | None = None,
    labels: str | Path | None = None,
    recipe: Recipe | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> Run:
    """Import a third-party model (``.keras``, ``.h5`` or SavedModel) into a run folder, and evaluate it.

    No code from a Keras file is executed (:func:`~edgerec.importing.third_party_keras.read_third_party`). TensorFlow
    runs a SavedModel's graph only after it has been checked
    (:func:`~edgerec.importing.saved_model.load_saved_model`). A SavedModel supports post-training quantization only.

    A model that outputs logits gets a softmax. The single output of a binary classifier, which is the score of the
    second class, becomes two outputs. The model's training images are unknown, so the test accuracy may be too high.
    The accuracy lost by compression is still measured correctly.

    Args:
        model_path: the file or folder.
        data: a data set as for training, with its classes in the order of the model's outputs. If the folder has no
            class folders, the model's own predictions are used as labels.
        out: the run's folder.
        normalize: the normalization that the model expects, in the format of
            :func:`edgerec.contract.tensors.parse_normalize`. A normalization for which recipes have no name becomes a
            layer of the model. With None, ``pixels`` is used if the model normalizes pixels itself, otherwise the
            normalization with the highest accuracy on training images.
        labels: file with the model's labels in the order of its outputs, or ``folders`` for the order of the data's
            classes. None also uses the order of the data's classes, but raises an error if the predictions or a label
            file next to the model contradict this order.
        recipe: supplies the settings of the split, and the augmentation and learning rate of fine-tuning.
        overwrite: replace an existing run.
        listener: called with progress updates.

    Raises:
        ModelError: the file cannot be read, a layer is not supported, or the model is not an image classifier.
        DataError: the labels do not match the model's outputs in number or order.
    """
    path, run = user_path(model_path), Run.at(out)
    checked_output(run.path, [path, labels], data=data, folder=True)
    refuse_existing(run.path, overwrite, replaceable=run.begun)
    if normalize is not None:
        # Reject an invalid value before TensorFlow is imported, which takes seconds.
        parse_normalize(normalize)
    base = recipe or Recipe()
    prepare(replace(base.train, mixed_precision=False), base.seed)
    model = _read(path)
    model_data = read_model_data(model, path, data, labels, base, listener)
    choice = choose_normalization(model, path, model_data, normalize, listener, explicit=labels is not None)
    if choice.layer:
        model = with_input_normalize(model, parse_normalize(choice.layer))
    _write(run, path, model, model_data, choice, overwrite, listener)
    return run


def open_or_adopt(
    model_path: str | Path,
    data: DataSource | None,
    out: str | Path | None = None,
    *,
    normalize: str | None = None,
    labels: str | Path | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> Run:
    """Return the run in ``out`` if it was created from the same model. Otherwise, import the model with :func:`adopt`.

    Args:
        model_path: as for :func:`adopt`.
        data: as for :func:`adopt`.
        out: the run's folder, by default next to the model, named after it with the suffix ``-run``.
        normalize: as for :func:`adopt`.
        labels: as for :func:`adopt`.
        overwrite: as for :func:`adopt`.
        listener: as for :func:`adopt`.

    Raises:
        EdgerecError: ``data`` is None, or the run in ``out`` was created with another normalization or other labels.
    """
    path = user_path(model_path)
    if data is None:
        raise EdgerecError(f"{path} is a model, not a run, so it has no data set; add --data FOLDER")
    run = Run.at(out if out is not None else path.with_name(f"{path.name.removesuffix(path.suffix)}-run"))
    record = run.adopted if run.finished else None
    if record is None or not path.exists() or record["sha256"] != _digest(path):
        log.info("creating the run %s from %s", run.path, path)
        return adopt(path, data, run.path, normalize=normalize, labels=labels, overwrite=overwrite, listener=listener)
    before = record["normalize"]
    same_normalize = normalize is None or parse_normalize(normalize) == parse_normalize(before)
    own_labels = labels is not None and str(labels) != FOLDERS
    for name, same in (
        ("normalize", same_normalize),
        ("labels", not own_labels or read_model_labels(str(labels), len(run.labels), str(path)) == run.labels),
    ):
        if not same:
            raise EdgerecError(
                f"{run.path} was created from {path} with another value for --{name}; choose another folder with --out"
            )
    return run


def _read(path: Path) -> Any:
    model = load_saved_model(path) if path.is_dir() else read_third_party(path)
    check_classifier(model, str(path))
    return model if isinstance(model, SavedModel) else with_scores(model, str(path))


def _write(
    run: Run,
    path: Path,
    model: Any,
    model_data: ModelData,
    choice: NormalizationChoice,
    overwrite: bool,
    listener: Listener,
) -> None:
    recipe = model_data.recipe.override({"data.normalize": choice.name})
    dataset, parts, labels = model_data.dataset, model_data.parts, model_data.labels
    with run.locked(), replacing_folder(run.path, overwrite=overwrite) as folder:
        new = Run(folder)
        write_file(folder / "recipe.toml", recipe.to_toml())
        write_file(folder / "labels.txt", "".join(f"{label}\n" for label in labels))
        new.write_json("split.json", split_record(dataset, parts))
        parts.report()
        new.write_history([])
        if not dataset.labels:
            best = predictions(model, recipe.normalize, dataset, np.arange(len(dataset.classes)), listener)
            _warn_of_same_prediction(best, labels)
            pseudo_labels = {name: labels[index] for name, index in zip(dataset.names, best, strict=True)}
            new.write_json(PSEUDO_LABELS, pseudo_labels)
            dataset = dataset.relabeled(labels, pseudo_labels)
        _write_model(new, path, model)
        record = {
            "file": path.name,
            "sha256": _digest(path),
            "truth": "labels" if model_data.dataset.labels else "the model's own predictions",
            "normalize": choice.text,
            "input_layer": choice.layer,
            "tried": choice.tried,
        }
        metrics = _metrics(model, recipe, dataset, parts, labels, listener)
        new.write_json("metrics.json", metrics | {"adopted": record})


def _metrics(
    model: Any, recipe: Recipe, dataset: Dataset, parts: Split, labels: tuple[str, ...], listener: Listener
) -> dict[str, Any]:
    score = keras_scorer(model, recipe.normalize)
    result = classifier_report(score(dataset.select(parts.test), listener), dataset.classes[parts.test], labels, "test")
    right = score(dataset.select(parts.val), listener).argmax(axis=1) == dataset.classes[parts.val]
    return result.to_dict() | {
        "val_accuracy": float(np.mean(right)),
        "best_epoch": 0,
        "epochs": 0,
        "seconds": 0.0,
        "parameters": int(model.count_params()),
        "train_images": len(parts.train),
        "val_images": len(parts.val),
        "data_digest": dataset.digest,
        "versions": versions(),
    }


def _warn_of_same_prediction(best: npt.NDArray[np.int64], labels: tuple[str, ...]) -> None:
    counts = np.bincount(best)
    if counts.max() > MAX_SAME_PREDICTION * len(best):
        log.warning(
            "the model predicts %r for %d of %d images, so agreement with its predictions is meaningless: use other "
            "images",
            *(labels[counts.argmax()], counts.max(), len(best)),
        )


def _write_model(run: Run, path: Path, model: Any) -> None:
    if isinstance(model, SavedModel):
        shutil.copytree(path, run.path / FOLDER)
        return
    run.save_model(model, "model.keras")
    offer_keras3(model, run.path / KERAS3)


def _digest(path: Path) -> str:
    """Return the SHA-256 digest of a file, or of all file names and contents in a folder."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        digest.update(file.relative_to(path).as_posix().encode(errors="surrogateescape") + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
