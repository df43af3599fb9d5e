"""Measure the accuracy of a run, a bundle or a .tflite file on labeled images."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgerec.contract.preprocess import Fit
from edgerec.data import Dataset, load
from edgerec.errors import DataError, EdgerecError
from edgerec.recipe import DataSource, one_or_tuple
from edgerec.train.evaluated_model import EvaluatedModel, _class_map, _with_labels, open_model
from edgerec.train.label_order import check_files_beside, check_order, label_order
from edgerec.train.metrics import EvaluationReport, classifier_report
from edgerec.train.run import AGREEMENT
from edgerec.train.training_data import (
    ImageSplits,
    chosen_images,
)
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)


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
) -> EvaluationReport:
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
    subject = open_model(path, normalise, activation, fit)
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
    result = classifier_report(scores, classes, names, name)
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


def _image_splits(subject: EvaluatedModel, dataset: Dataset) -> list[ImageSplits] | None:
    """Return, for each model, the split that each image had in the model's training; None if it is not always known."""
    known = [splits for origin in subject.origins if (splits := origin.image_splits(dataset)) is not None]
    return known if known and len(known) == len(subject.origins) else None


def _refuse_tflite_options(path: Path, **options: object) -> None:
    """Raise an error for options that only a bare .tflite file needs, because runs and bundles state these values."""
    if path.suffix == ".tflite":
        return
    for name, value in options.items():
        if value is not None:
            raise EdgerecError(f"--{name} is for a bare .tflite file, but {path} states its own {name}: omit --{name}")
