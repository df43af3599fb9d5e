"""Measure the accuracy of a run, a bundle or a .tflite file on labeled images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.bundle import Bundle
from edgerec.contract.labels import read_labels
from edgerec.contract.manifest import origins
from edgerec.contract.preprocess import Fit, Image, PreprocessSpec
from edgerec.contract.tensors import AnyNormalise
from edgerec.data import Dataset, SelectedImages, load
from edgerec.errors import DataError, EdgerecError, ModelError
from edgerec.recipe import DataSection, DataSource, Recipe, one_or_tuple
from edgerec.runtime.classifier import Classifier
from edgerec.runtime.model import ImageModel
from edgerec.runtime.third_party import ThirdPartyModel
from edgerec.train.input_pipeline import EVALUATION_BATCH
from edgerec.train.label_order import FOLDERS, check_files_beside, check_order, label_order
from edgerec.train.origin import ImageSplits, Origin, chosen_images, origin_of_bundle, origin_of_run
from edgerec.train.run import AGREEMENT, Run
from edgerec.utils.optional import require
from edgerec.utils.progress import Listener, Progress, ignore, steps

log = logging.getLogger(__name__)

Indices = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float32]
# Function that takes pixels, uint8 ``(N, H, W, C)``, and a progress listener. It returns the scores of a classifier,
# float32 ``(N, classes)``, or the reconstruction errors of an autoencoder, float32 ``(N, 1)``.
Scorer = Callable[[npt.NDArray[np.uint8] | SelectedImages, Listener], Reals]


@dataclass(frozen=True)
class Figures:
    """Accuracy and other metrics of a model on labeled images.

    Attributes:
        accuracy: fraction of the images that are classified correctly, 0 to 1; for an autoencoder, the fraction of the
            images that it recognizes as known.
        loss: mean cross-entropy in nats; for an autoencoder, the mean reconstruction error.
        per_class: precision, recall, f1 and support of each label.
        confusion: confusion matrix of counts, ``confusion[true][predicted]``.
        labels: labels in the order of the rows and columns of ``confusion``.
        images: number of images.
        split: the measured split: ``train``, ``val``, ``test``, ``all``, or ``held-out``. ``held-out`` means test
            images, together with images that were not in the data set when the model was trained.
        training_images: number of the measured images that the model was trained on; None if this is not known. If it
            is greater than 0, the accuracy on new images is lower.
        data: source of the measured images, such as a folder; empty for the run's own data.
    """

    accuracy: float
    loss: float
    per_class: dict[str, dict[str, float]]
    confusion: list[list[int]]
    labels: tuple[str, ...]
    images: int
    split: str
    training_images: int | None = 0
    data: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as JSON values."""
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "per_class": self.per_class,
            "confusion": self.confusion,
            "labels": list(self.labels),
            "images": self.images,
            "split": self.split,
            "training_images": self.training_images,
            "data": self.data,
        }

    @property
    def measured(self) -> str:
        """Return a description of the images, such as ``on 280 images (test; none of them was used for training)``."""
        if self.training_images is None:
            origin = "it is not known whether the model was trained on them"
        elif self.training_images:
            origin = f"{self.training_images} of them were used for training"
        else:
            origin = "none of them was used for training"
        return f"on {self.images} images ({self.split}; {origin})"


def figures(
    scores: npt.NDArray[np.float32], classes: npt.NDArray[np.int64], labels: tuple[str, ...], split: str
) -> Figures:
    """Return the metrics of ``scores``, float32 ``(N, classes)``, for the true ``classes``, ``(N,)``.

    Raises:
        ModelError: a score is NaN or infinite, so that the prediction is undefined.
    """
    if invalid := int((~np.isfinite(scores).all(axis=1)).sum()):
        raise ModelError(
            f"the model gives scores that are not numbers (NaN) for {invalid} of {len(scores)} images: train or "
            "convert the model again"
        )
    metrics = require("sklearn.metrics")
    predicted, known = scores.argmax(axis=1), np.arange(len(labels))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        classes, predicted, labels=known, zero_division=0
    )
    true_scores = np.clip(scores[np.arange(len(classes)), classes].astype(np.float64), 1e-7, 1.0)
    return Figures(
        accuracy=float(np.mean(predicted == classes)),
        loss=float(-np.log(true_scores).mean()),
        per_class={
            label: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, label in enumerate(labels)
        },
        confusion=metrics.confusion_matrix(classes, predicted, labels=known).tolist(),
        labels=labels,
        images=len(classes),
        split=split,
    )


def evaluate(
    model: str | Path,
    data: DataSource | None = None,
    *,
    split: str | None = None,
    normalise: str | None = None,
    activation: str | None = None,
    fit: Fit | None = None,
    labels: str | Path | None = None,
    listener: Listener = ignore,
) -> Figures:
    """Measure the accuracy of a run, a bundle or a .tflite file on labeled images.

    Args:
        model: a run's folder, a bundle's folder or .zip, or a .tflite file.
        data: a data set as for training; None uses the run's own data.
        split: ``train``, ``val``, ``test`` or ``all``. None chooses the split. If the data contains images of the
            model's training data, even in other folders, the images that the model was not trained on are measured.
            Otherwise the test split that the data defines is measured, or all images if there is no such split.
        normalise: normalization of a bare .tflite file's input, as :func:`parse_normalise` reads it. None uses the
            file's metadata; a quantized input takes pixels as they are.
        activation: activation that a bare .tflite file's output needs: ``none``, ``softmax`` or ``sigmoid``. None
            checks on the images whether the outputs are probabilities already.
        fit: for a bare .tflite file, how images with another aspect ratio than the input are fitted. None uses the
            method of the tool that made the model, or ``stretch`` if the tool is not known.
        labels: for a bare .tflite file, a file with the labels in the order of the model's outputs, or ``folders`` to
            accept the order of the data's classes. None uses the labels in the file's metadata. If there are none, the
            order of the data's classes is used, unless the predictions or a label file next to the model contradict
            this order.
        listener: receives the progress.

    Raises:
        EdgerecError: the model does not exist, or the data does not match the model.
    """
    path = Path(model)
    _refuse_tflite_options(path, normalise=normalise, activation=activation, fit=fit, labels=labels)
    subject = _open(path, normalise, activation, fit)
    if labels is not None:
        subject = _with_labels(subject, path, labels)
    if data is None and not subject.own_data:
        raise EdgerecError(f"{path} does not record where its images are: add --data")
    section = subject.data if data is None else replace(subject.data, source=one_or_tuple(data))
    dataset, _ = load(section, flat=subject.pseudo_labels is not None, listener=listener)
    known = [origin for origin in subject.origins if origin.digest == dataset.digest]
    if data is None and not known:
        raise DataError(
            f"{section.title} is not what {path} was trained on (its digest changed): restore the images, or choose "
            "the data to measure with --data"
        )
    image_splits = _image_splits(subject, dataset)
    part, name = chosen_images(dataset, section.title, split, image_splits)
    if not dataset.labels:
        if not known:
            raise DataError(
                f"{section.title} has no class folders, so its images have no labels to measure {path} against: put "
                "the images of each class into a folder of their own"
            )
        log.warning(AGREEMENT)
        dataset = dataset.relabeled(subject.labels, subject.pseudo_labels)
    trained = None
    if image_splits is not None and not any(origin.adopted for origin in subject.origins):
        trained = int(np.any([splits[part] == "train" for splits in image_splits], axis=0).sum())
    classes = _class_map(dataset, subject)[dataset.classes[part]]
    names = subject.labels or dataset.labels
    if assumed := not subject.labels and labels is None:
        check_files_beside(path, names)
    scores = subject.score(dataset, part, listener)
    if not any(origin.digest for origin in subject.origins):  # not trained by edgerec
        check_order(label_order({"": scores.argmax(axis=1)}, classes, names), path, explicit=not assumed)
    result = figures(scores, classes, names, name)
    result = replace(result, training_images=trained, data=section.title)
    if trained != 0:
        log.warning(
            "%s was measured %s; %s",
            path,
            result.measured,
            "the accuracy on new images is lower"
            if trained
            else "if it was trained on them, the accuracy on new images is lower",
        )
    return result


def _image_splits(subject: _Subject, dataset: Dataset) -> list[ImageSplits] | None:
    """Return, for each model, the split that each image had in the model's training; None if it is not always known."""
    known = [splits for origin in subject.origins if (splits := origin.image_splits(dataset)) is not None]
    return known if known and len(known) == len(subject.origins) else None


@dataclass(frozen=True)
class _Subject:
    """A model that is ready to be evaluated.

    Attributes:
        score: function that takes a dataset, positions of images and a listener, and returns scores
            ``(images, classes)``.
        labels: label of each output; empty if they are not known.
        data: data section of the recipe with the model's preprocessing.
        classes: number of outputs.
        origins: origin of the model; one for each model of an ensemble.
        own_data: whether ``data`` names the images that the model was trained on.
        pseudo_labels: predictions of an adopted model for its own images, by image name, if these images have no
            labels.
    """

    score: Callable[[Dataset, Indices, Listener], Reals]
    labels: tuple[str, ...]
    data: DataSection
    classes: int
    origins: tuple[Origin, ...] = ()
    own_data: bool = False
    pseudo_labels: dict[str, str] | None = None


def keras_scorer(model: Any, normalise: AnyNormalise) -> Scorer:
    """Return a scorer for a Keras classifier or autoencoder. The score of an autoencoder is the mean squared error."""

    def score(pixels: npt.NDArray[np.uint8] | SelectedImages, listener: Listener) -> npt.NDArray[np.float32]:
        parts = []
        listener(Progress("evaluating", 0, len(pixels)))
        for start in range(0, len(pixels), EVALUATION_BATCH):
            batch = normalise.apply(pixels[start : start + EVALUATION_BATCH].astype(np.float32))
            outputs = np.asarray(model(batch, training=False))
            parts.append(_errors(outputs, batch) if outputs.shape == batch.shape else outputs)
            listener(Progress("evaluating", min(start + EVALUATION_BATCH, len(pixels)), len(pixels)))
        return np.concatenate(parts)

    return score


def _errors(outputs: Reals, images: Reals) -> Reals:
    """Return the mean squared error of each image, float32 ``(N, 1)``."""
    squares = np.square(outputs - images, dtype=np.float64)
    return squares.reshape(len(outputs), -1).mean(axis=1, keepdims=True).astype(np.float32)


def tflite_scorer(model: ImageModel) -> Scorer:
    """Return a scorer for a .tflite model, which runs in the same interpreter as on the device."""

    return lambda pixels, listener: _one_by_one(map(model.scores, pixels), len(pixels), listener)


def _one_by_one(scores: Iterable[Reals], count: int, listener: Listener) -> Reals:
    """Compute the scores of one image after the other, and report the progress.

    Args:
        scores: an iterable that computes the scores of the next image, float32 ``(classes,)``.
        count: number of images.
        listener: receives the progress.

    Returns:
        float32 ``(count, classes)``.
    """
    reported = steps(count)
    computed: list[Reals] = []
    for position, image_scores in enumerate(scores):
        computed.append(image_scores)
        if position in reported:
            listener(Progress("evaluating", position + 1, count))
    return np.stack(computed)


def _refuse_tflite_options(path: Path, **options: object) -> None:
    """Raise an error for options that only a bare .tflite file needs, because runs and bundles state these values."""
    if path.suffix == ".tflite":
        return
    for name, value in options.items():
        if value is not None:
            raise EdgerecError(f"--{name} is for a bare .tflite file, but {path} states its own {name}: omit --{name}")


def _open(path: Path, normalise: str | None, activation: str | None, fit: Fit | None) -> _Subject:
    if path.is_file() and path.suffix == ".tflite":
        return _open_tflite(path, normalise, activation, fit)
    if Run(path).begun:
        return _open_run(Run.open_classifier(path))
    if path.is_file() or (path / "manifest.json").is_file():
        return _open_bundle(Bundle.open(path))
    raise EdgerecError(f"{path} is neither a run, a bundle nor a .tflite file: check the path")


def _open_run(run: Run) -> _Subject:
    recipe, labels = run.recipe, run.labels
    scorer = keras_scorer(run.model(), recipe.normalise)
    return _Subject(
        lambda dataset, part, listener: scorer(dataset.select(part), listener),
        labels,
        recipe.data,
        len(labels),
        origins=(origin_of_run(run),),
        own_data=True,
        pseudo_labels=run.pseudo_labels(),
    )


def _open_bundle(bundle: Bundle) -> _Subject:
    classifier, manifest = Classifier(bundle, delegate=""), bundle.manifest
    same_preprocessing = len({spec.preprocess for spec in manifest.models}) == 1

    def score(dataset: Dataset, part: Indices, listener: Listener) -> Reals:
        def inputs(index: int) -> tuple[Image, ...]:
            if same_preprocessing:
                return (dataset.images[index],) * len(classifier.models)
            return classifier.pixels(dataset.original(index))

        return _one_by_one((classifier.scores(inputs(int(index))) for index in part), len(part), listener)

    known = []
    for provenance in origins(manifest):
        where = f"{bundle.path}: provenance.recipe"
        recipe = Recipe.from_dict(provenance.get("recipe", {}), where, base=Recipe().unversioned)
        known.append((origin_of_bundle(provenance, recipe), recipe.data))
    section = _data_section(manifest.preprocess, known[0][1], str(bundle.path))
    return _Subject(score, manifest.labels, section, len(manifest.labels), origins=tuple(origin for origin, _ in known))


def _open_tflite(path: Path, text: str | None, activation: str | None, fit: Fit | None) -> _Subject:
    original = ThirdPartyModel.open(path, activation=activation, own_labels=True, own_normalise=text is not None)
    finished, normalise = original.normalised(text)
    model = ImageModel(finished.content, normalise, activation=finished.activation, where=finished.where)
    metadata, _, height, width, channels = original.metadata, *finished.input.shape
    reason = "chosen with --fit" if fit else original.family.reason
    fit = fit or original.family.fit
    log.info("%s: fit %s: %s", path, fit, reason)
    log.info("%s: activation %s: %s", path, finished.activation, finished.activation_reason)
    labels = metadata.labels if metadata is not None and len(metadata.labels) == model.classes else ()
    section = _data_section(PreprocessSpec(height, width, channels, fit), DataSection(), finished.where)
    scorer = tflite_scorer(model)
    return _Subject(
        lambda dataset, part, listener: scorer(dataset.select(part), listener), labels, section, model.classes
    )


def _with_labels(subject: _Subject, path: Path, labels: str | Path) -> _Subject:
    names = () if str(labels) == FOLDERS else read_labels(Path(labels), subject.classes, str(path))
    return replace(subject, labels=names)


def _data_section(spec: PreprocessSpec, base: DataSection, where: str) -> DataSection:
    if spec.height != spec.width:
        raise ModelError(
            f"Cannot evaluate {where}, because its input of {spec.width}×{spec.height} pixels is not square"
        )
    return replace(
        base,
        input_size=spec.height,
        channels=spec.channels,
        fit=spec.fit,
        interpolation=spec.interpolation,
        preprocess_version=spec.version,
        black_level=spec.black_level,
        white_level=spec.white_level,
    )


def _class_map(dataset: Dataset, subject: _Subject) -> npt.NDArray[np.int64]:
    """Return the index of the model's output for each class of the data, int64 ``(classes of the data,)``."""
    if not subject.labels:
        if len(dataset.labels) != subject.classes:
            raise DataError(
                f"the model has {subject.classes} outputs, but the data has {len(dataset.labels)} classes: choose data "
                "with the model's classes, or give the labels of the outputs with --labels"
            )
        return np.arange(subject.classes)
    missing = [label for label in dataset.labels if label not in subject.labels]
    if missing:
        raise DataError(
            f"the data has a class {missing[0]!r} that the model does not know: remove or rename the folder of this "
            f"class. The model's labels: {', '.join(subject.labels[:10])}"
        )
    return np.array([subject.labels.index(label) for label in dataset.labels])
