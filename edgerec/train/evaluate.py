"""Measure the accuracy of a run, a bundle or a .tflite file on labeled images."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgerec.contract.preprocess import Fit
from edgerec.data import load
from edgerec.errors import DataError, EdgerecError
from edgerec.recipe import DataSource, one_or_tuple
from edgerec.train.evaluated_model import open_model
from edgerec.train.label_order import check_files_beside, check_order, label_order
from edgerec.train.metrics import EvaluationReport, classifier_report
from edgerec.train.run import AGREEMENT
from edgerec.train.training_data import chosen_images
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)


def evaluate(
    model: str | Path,
    data: DataSource | None = None,
    *,
    split: str | None = None,
    normalize: str | None = None,
    activation: str | None = None,
    fit: Fit | None = None,
    labels: str | Path | None = None,
    listener: Listener = ignore,
) -> EvaluationReport:
    """Measure the accuracy of a run, a bundle or a .tflite file on labeled images.

    Args:
        model: a run's folder, a bundle's folder or .zip, or a .tflite file.
        data: a data set in any format that training accepts. None uses the run's own data.
        split: ``train``, ``val``, ``test`` or ``all``. None chooses the split. If the data contains images from the
            model's training data, even in other folders, the model is evaluated on the images it was not trained on.
            Otherwise it is evaluated on the data's own test split, or on all images if there is no such split.
        normalize: normalization of the input of a plain .tflite file, in the syntax of :func:`parse_normalize`. None
            uses the file's metadata; a quantized input takes unchanged pixels.
        activation: activation to apply to the output of a plain .tflite file: ``none``, ``softmax`` or ``sigmoid``.
            None checks whether the outputs are probabilities already.
        fit: for a plain .tflite file, how to fit images to the input's aspect ratio. None uses the method of the tool
            that created the model, or ``stretch`` if the tool is unknown.
        labels: for a plain .tflite file, a file with the labels in the order of the model's outputs, or ``folders`` to
            use the order of the data's classes. None uses the labels in the file's metadata. If there are none, the
            order of the data's classes is used, unless the predictions or a label file next to the model contradict
            this order.
        listener: receives the progress.

    Raises:
        EdgerecError: the model does not exist, or the data does not match the model.
    """
    path = Path(model)
    evaluated = open_model(path, normalize, activation, fit, labels)
    if data is None and not evaluated.own_data:
        raise EdgerecError(
            f"cannot evaluate {path} on its own images, because only runs record their location: add --data"
        )
    section = evaluated.data if data is None else replace(evaluated.data, source=one_or_tuple(data))
    dataset, _ = load(section, flat=evaluated.pseudo_labels is not None, listener=listener)
    same_data = any(origin.digest == dataset.digest for origin in evaluated.training_data)
    if data is None and not same_data:
        raise DataError(
            f"{section.title} has changed since the model in {path} was trained (its digest differs): restore the "
            "original images, or choose other images with --data"
        )
    image_splits = evaluated.image_splits(dataset)
    part, name = chosen_images(dataset, section.title, split, image_splits)
    if not dataset.labels:
        if not same_data:
            raise DataError(
                f"Cannot evaluate {path} on {section.title}, because it has no class folders, and its images therefore "
                "have no labels: put the images of each class into a separate folder"
            )
        log.warning(AGREEMENT)
        dataset = dataset.relabeled(evaluated.labels, evaluated.pseudo_labels)
    training_images = None
    if image_splits is not None and not any(origin.imported for origin in evaluated.training_data):
        training_images = int(np.any([splits[part] == "train" for splits in image_splits], axis=0).sum())
    classes = evaluated.output_indices(dataset)[dataset.classes[part]]
    names = evaluated.labels or dataset.labels
    if assumed := not evaluated.labels and labels is None:
        check_files_beside(path, names)
    scores = evaluated.score(dataset, part, listener)
    trained_by_edgerec = any(origin.digest for origin in evaluated.training_data)
    if not trained_by_edgerec:
        check_order(label_order({"": scores.argmax(axis=1)}, classes, names), path, explicit=not assumed)
    report = classifier_report(scores, classes, names, name)
    report = replace(report, training_images=training_images, data=section.title)
    if training_images != 0:
        log.warning(
            "%s was evaluated %s; %s",
            path,
            report.measured,
            "the accuracy on new images is lower"
            if training_images
            else "if it was trained on them, the accuracy on new images is lower",
        )
    return report
