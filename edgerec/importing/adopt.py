"""Create a run from a third-party model, so that the run can be compressed, evaluated and exported like any other."""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.labels import read_labels
from edgerec.contract.tensors import NORMALISATIONS, NORMALISE_CHOICES, AnyNormalise, parse_normalise
from edgerec.data import Dataset, Split, load, split_dataset
from edgerec.errors import DataError, EdgerecError
from edgerec.importing.classifier import check_classifier, with_input_normalise, with_scores
from edgerec.importing.foreign_keras import expects_pixels, read_foreign
from edgerec.importing.keras3 import offer_keras3
from edgerec.importing.keras_files import SUFFIXES
from edgerec.importing.saved_model import FOLDER, SavedModel, load_saved_model
from edgerec.models import IMPORTED
from edgerec.recipe import DataSource, Recipe, one_or_tuple
from edgerec.train.automatic_recipe import with_absolute_paths, with_epochs
from edgerec.train.backend import prepare, versions
from edgerec.train.label_order import FOLDERS, check_files_beside, check_order, label_files_beside, label_order
from edgerec.train.leakage import TrainedImages, check_not_trained_on
from edgerec.train.metrics import classifier_report
from edgerec.train.run import KERAS3, PSEUDO_LABELS, Run
from edgerec.train.scorers import keras_scorer
from edgerec.train.split_record import split_record
from edgerec.utils.atomic import checked_output, refuse_existing, replacing_folder, user_path, write_file
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)

# Number of training images on which the normalizations are compared, and the lead in percentage points that the best
# normalization needs over the next one.
TRIED_IMAGES = 500
CLEAR_POINTS = 2.0
# Per-channel normalizations that are tried in addition to those with a single scale.
PER_CHANNEL = ("torch", "caffe")
# The order of the labels is checked on this many images per class, but on at most this many images in total.
IMAGES_PER_CLASS, MOST_IMAGES = 10, 2000
# If more than this fraction of the images get the same prediction, agreement between models is meaningless.
MAX_SAME_PREDICTION = 0.9


def is_model(path: str | Path) -> bool:
    """Return whether ``path`` names a third-party model (.keras, .h5 or the folder of a SavedModel), not a run."""
    return Path(path).suffix in SUFFIXES or (Path(path) / "saved_model.pb").is_file()


def adopt(
    model_path: str | Path,
    data: DataSource,
    out: str | Path,
    *,
    normalise: str | None = None,
    labels: str | Path | None = None,
    recipe: Recipe | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> Run:
    """Create a run from a third-party model (``.keras``, ``.h5`` or SavedModel) and images like its training images.

    No code from a Keras file is executed (:func:`~edgerec.importing.foreign_keras.read_foreign`). TensorFlow runs the
    graph of a SavedModel after the graph was checked (:func:`~edgerec.importing.saved_model.load_saved_model`). A
    SavedModel supports post-training quantization only. A model that outputs logits gets a softmax. A single output,
    the score of the second of two classes, becomes two outputs. The training images of the model are not known, so the
    accuracy on the test set may be too high. The accuracy lost by compression is still measured correctly.

    Args:
        model_path: the file or folder.
        data: a data set as for training, with its classes in the order of the model's outputs. If the folder has no
            class folders, the model's own predictions are used as labels.
        out: the run's folder.
        normalise: the normalization that the model expects, as :func:`edgerec.contract.tensors.parse_normalise` reads
            it. None takes ``pixels`` if the model scales them itself, otherwise the one with which most training images
            are classified correctly. If a recipe has no name for it, it becomes a layer of the model.
        labels: file with the model's labels in the order of its outputs, or ``folders`` for the order of the data's
            classes. None also uses the order of the data's classes, but raises an error if the predictions or a label
            file next to the model contradict this order.
        recipe: supplies the settings of the split, and the augmentation and learning rate of fine-tuning.
        overwrite: replace an existing run.
        listener: receives the progress.

    Raises:
        ModelError: the file cannot be read, a layer is not supported, or the model is not an image classifier.
        DataError: the labels do not match the model's outputs in number or order.
    """
    path, run = user_path(model_path), Run.at(out)
    checked_output(run.path, [path, labels], data=data, folder=True)
    refuse_existing(run.path, overwrite, replaceable=run.begun)
    if normalise is not None:
        parse_normalise(normalise)  # refused before TensorFlow is loaded
    base = recipe or Recipe()
    prepare(replace(base.train, mixed_precision=False), base.seed)
    model = _read(path)
    model_data = _read_data(model, path, data, labels, base, listener)
    choice = _check_and_choose(model, path, model_data, normalise, listener, explicit=labels is not None)
    if choice.layer:
        model = with_input_normalise(model, parse_normalise(choice.layer))
    _write(run, path, model, model_data, choice, overwrite, listener)
    return run


def adopted(
    model_path: str | Path,
    data: DataSource | None,
    out: str | Path | None = None,
    *,
    normalise: str | None = None,
    labels: str | Path | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> Run:
    """Return the run in ``out`` if it was created from the same file, otherwise create a run by :func:`adopt`.

    Args:
        model_path: as for :func:`adopt`.
        data: as for :func:`adopt`.
        out: the run's folder; None uses the model's name with ``-run`` in the same folder.
        normalise: as for :func:`adopt`.
        labels: as for :func:`adopt`.
        overwrite: as for :func:`adopt`.
        listener: as for :func:`adopt`.

    Raises:
        EdgerecError: ``data`` is None, or the run in ``out`` was created with another normalization or other labels.
    """
    path = user_path(model_path)
    if data is None:
        raise EdgerecError(f"{path} is not a run, so its images are not known: add --data FOLDER")
    run = Run.at(out if out is not None else path.with_name(f"{path.name.removesuffix(path.suffix)}-run"))
    adopted = run.adopted if run.finished else None
    if adopted is None or not path.exists() or adopted["sha256"] != _digest(path):
        log.info("creating the run %s from %s", run.path, path)
        return adopt(path, data, run.path, normalise=normalise, labels=labels, overwrite=overwrite, listener=listener)
    before = adopted["normalise"]
    same_normalise = normalise is None or parse_normalise(normalise) == parse_normalise(before)
    own_labels = labels is not None and str(labels) != FOLDERS
    for name, same in (
        ("normalise", same_normalise),
        ("labels", not own_labels or _read_labels(str(labels), len(run.labels), str(path)) == run.labels),
    ):
        if not same:
            raise EdgerecError(
                f"{run.path} was created from {path} with another value of --{name}: choose another --out"
            )
    return run


@dataclass(frozen=True)
class _ModelData:
    """The model's labels, the images, and the recipe with which they are read."""

    labels: tuple[str, ...]
    dataset: Dataset
    parts: Split
    recipe: Recipe


@dataclass(frozen=True)
class _Choice:
    """The chosen normalization, and the accuracy on training images (0 to 1) with each normalization that was tried."""

    text: str
    tried: dict[str, float] | None = None

    @property
    def name(self) -> str:
        """Name of the normalization in a recipe; ``pixels`` if the normalization becomes a layer of the model."""
        normalise = parse_normalise(self.text)
        return next((name for name, known in NORMALISATIONS.items() if known == normalise), "pixels")

    @property
    def layer(self) -> str:
        """Name of the normalization to build into the model as a layer; empty if there is none."""
        return "" if parse_normalise(self.text) in NORMALISATIONS.values() else self.text


def _read(path: Path) -> Any:
    model = load_saved_model(path) if path.is_dir() else read_foreign(path)
    check_classifier(model, str(path))
    return model if isinstance(model, SavedModel) else with_scores(model, str(path))


def _read_labels(path: str | Path, count: int, model: str) -> tuple[str, ...]:
    labels = read_labels(Path(path), count, model)
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise DataError(f"{path} has the label {twice[0]!r} twice: give every output its own label")
    return labels


def _read_data(
    model: Any, path: Path, data: DataSource, labels: str | Path | None, base: Recipe, listener: Listener
) -> _ModelData:
    """Read the images in the size and color mode of the model's input, and determine the model's labels."""
    _, height, _, channels = model.input_shape
    section = with_absolute_paths(replace(base.data, source=one_or_tuple(data), input_size=height, channels=channels))
    dataset, section = load(section, least_size_px=1, flat=True, listener=listener)
    count = model.output_shape[1]
    if labels is not None and str(labels) != FOLDERS:
        known, where = _read_labels(labels, count, str(path)), str(labels)
    elif dataset.labels:
        known, where = dataset.labels, section.title
        if labels is None and len(known) == count:
            check_files_beside(path, known)
    else:
        known, where = tuple(map(str, range(count))), ""
        log.info("%s has no labels: using class numbers as names; set other names with --labels", path)
        for beside in label_files_beside(path, count):
            log.warning("found the label file %s next to the model: to use it, add --labels %s", beside, beside)
    if len(known) != count:
        raise DataError(
            f"{path} has {count} classes, {where} has {len(known)} ({', '.join(known[:5])}): "
            "give the model's labels with --labels FILE, one per line, in the order of its outputs"
        )
    parts = split_dataset(dataset, section, base.seed)
    if TrainedImages.of_file(path, dataset) is not None:
        check_not_trained_on(path, str(path), dataset, parts)
    recipe = replace(
        base,
        data=section,
        model=replace(base.model, arch=IMPORTED, width=base.model.width or 1.0, weights="none"),
        train=replace(with_epochs(base.train, len(parts.train)), mixed_precision=False),
    )
    return _ModelData(known, dataset.relabeled(known) if dataset.labels else dataset, parts, recipe)


def _check_and_choose(
    model: Any, path: Path, model_data: _ModelData, normalise: str | None, listener: Listener, *, explicit: bool
) -> _Choice:
    """Choose the normalization and check the order of the labels; both use the same predictions.

    Raises:
        DataError: the normalization is not known and cannot be measured because the images have no labels; or the
            labels are in another order than the outputs and were not given explicitly.
    """
    if normalise is not None:
        texts = [normalise]
    elif not isinstance(model, SavedModel) and expects_pixels(model):
        log.info("%s normalizes its input itself: using normalization 'pixels' (0 to 255)", path)
        texts = ["pixels"]
    else:
        texts = [*NORMALISATIONS, *(PER_CHANNEL if model.input_shape[-1] == 3 else ())]
    if not model_data.dataset.labels:
        if len(texts) > 1:
            raise DataError(
                f"the normalization that {path} expects cannot be measured on images without labels: "
                f"add --normalise {NORMALISE_CHOICES}"
            )
        return _Choice(texts[0])
    rng = np.random.default_rng(model_data.recipe.seed)
    count = min(max(TRIED_IMAGES, IMAGES_PER_CLASS * len(model_data.labels)), MOST_IMAGES)
    some = np.sort(rng.permutation(len(model_data.dataset.classes))[:count])
    classes = model_data.dataset.classes[some]
    predicted = {text: _predictions(model, parse_normalise(text), model_data.dataset, some, listener) for text in texts}
    check_order(label_order(predicted, classes, model_data.labels), path, explicit=explicit)
    if len(texts) == 1:
        return _Choice(texts[0])
    train = np.isin(some, model_data.parts.train)
    right = {text: float(np.mean(outputs[train] == classes[train])) for text, outputs in predicted.items()}
    return _best(right, path, int(train.sum()), len(model_data.labels))


def _best(right: dict[str, float], path: Path, images: int, classes: int) -> _Choice:
    """Return the normalization with the highest accuracy; a per-channel one is chosen only if it is clearly better."""
    simple = max(NORMALISATIONS, key=right.__getitem__)
    best = max(right, key=right.__getitem__)
    if (right[best] - right[simple]) * 100 < CLEAR_POINTS:
        best = simple
    other = max((text for text in right if text != best), key=right.__getitem__)
    figures = ", ".join(f"{text} {fraction:.1%}" for text, fraction in right.items())
    log.info("%s: normalization %r; correct on %d training images: %s", path, best, images, figures)
    if right[best] < 1.5 / classes:
        log.warning(
            "%s is hardly better than guessing with any of the normalizations %s: set the right one with --normalise",
            path,
            ", ".join(right),
        )
    elif (right[best] - right[other]) * 100 < CLEAR_POINTS:
        log.warning(
            "%s has about the same accuracy with the normalizations %r and %r: set the right one with --normalise",
            path,
            best,
            other,
        )
    return _Choice(best, right)


def _predictions(
    model: Any, normalise: AnyNormalise, dataset: Dataset, part: npt.NDArray[np.int64], listener: Listener = ignore
) -> npt.NDArray[np.int64]:
    return keras_scorer(model, normalise)(dataset.select(part), listener).argmax(axis=1)


def _write(
    run: Run, path: Path, model: Any, model_data: _ModelData, choice: _Choice, overwrite: bool, listener: Listener
) -> None:
    recipe = model_data.recipe.override({"data.normalise": choice.name})
    dataset, parts, labels = model_data.dataset, model_data.parts, model_data.labels
    with run.locked(), replacing_folder(run.path, overwrite=overwrite) as folder:
        new = Run(folder)
        write_file(folder / "recipe.toml", recipe.to_toml())
        write_file(folder / "labels.txt", "".join(f"{label}\n" for label in labels))
        new.write_json("split.json", split_record(dataset, parts))
        parts.report()
        new.write_history([])
        if not dataset.labels:
            everything = np.arange(len(dataset.classes))
            best = _predictions(model, recipe.normalise, dataset, everything, listener)
            _warn_of_same_prediction(best, labels)
            predictions = {name: labels[index] for name, index in zip(dataset.names, best, strict=True)}
            new.write_json(PSEUDO_LABELS, predictions)
            dataset = dataset.relabeled(labels, predictions)
        _write_model(new, path, model)
        score = keras_scorer(model, recipe.normalise)
        result = classifier_report(
            score(dataset.select(parts.test), listener), dataset.classes[parts.test], labels, "test"
        )
        right = score(dataset.select(parts.val), listener).argmax(axis=1) == dataset.classes[parts.val]
        about = {
            "val_accuracy": float(np.mean(right)),
            "best_epoch": 0,
            "epochs": 0,
            "seconds": 0.0,
            "parameters": int(model.count_params()),
            "train_images": len(parts.train),
            "val_images": len(parts.val),
            "data_digest": dataset.digest,
            "versions": versions(),
            "adopted": {
                "file": path.name,
                "sha256": _digest(path),
                "truth": "labels" if model_data.dataset.labels else "the model's own answers",
                "normalise": choice.text,
                "input_layer": choice.layer,
                "tried": choice.tried,
            },
        }
        new.write_json("metrics.json", result.to_dict() | about)


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
    """Return the SHA-256 of a file, or of the names and contents of the files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        digest.update(file.relative_to(path).as_posix().encode(errors="surrogateescape") + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
