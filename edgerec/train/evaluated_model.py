"""Open a run, a bundle or a .tflite file for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerec.contract.bundle import Bundle
from edgerec.contract.labels import read_labels
from edgerec.contract.manifest import origins
from edgerec.contract.preprocess import Fit, Image, PreprocessSpec
from edgerec.data import Dataset
from edgerec.data.split import Indices
from edgerec.errors import DataError, EdgerecError, ModelError
from edgerec.recipe import DataSection, Recipe
from edgerec.runtime.classifier import Classifier
from edgerec.runtime.model import ImageModel
from edgerec.runtime.third_party import ThirdPartyModel
from edgerec.train.label_order import FOLDERS
from edgerec.train.metrics import Reals
from edgerec.train.run import Run
from edgerec.train.scorers import keras_scorer, one_by_one, tflite_scorer
from edgerec.train.training_data import (
    TrainingData,
    training_data_of_bundle,
    training_data_of_run,
)
from edgerec.utils.progress import Listener

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluatedModel:
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
    origins: tuple[TrainingData, ...] = ()
    own_data: bool = False
    pseudo_labels: dict[str, str] | None = None


def open_model(path: Path, normalise: str | None, activation: str | None, fit: Fit | None) -> EvaluatedModel:
    if path.is_file() and path.suffix == ".tflite":
        return _open_tflite(path, normalise, activation, fit)
    if Run(path).begun:
        return _open_run(Run.open_classifier(path))
    if path.is_file() or (path / "manifest.json").is_file():
        return _open_bundle(Bundle.open(path))
    raise EdgerecError(f"{path} is neither a run, a bundle nor a .tflite file: check the path")


def _open_run(run: Run) -> EvaluatedModel:
    recipe, labels = run.recipe, run.labels
    scorer = keras_scorer(run.model(), recipe.normalise)
    return EvaluatedModel(
        lambda dataset, part, listener: scorer(dataset.select(part), listener),
        labels,
        recipe.data,
        len(labels),
        origins=(training_data_of_run(run),),
        own_data=True,
        pseudo_labels=run.pseudo_labels(),
    )


def _open_bundle(bundle: Bundle) -> EvaluatedModel:
    classifier, manifest = Classifier(bundle, delegate=""), bundle.manifest
    same_preprocessing = len({spec.preprocess for spec in manifest.models}) == 1

    def score(dataset: Dataset, part: Indices, listener: Listener) -> Reals:
        def inputs(index: int) -> tuple[Image, ...]:
            if same_preprocessing:
                return (dataset.images[index],) * len(classifier.models)
            return classifier.pixels(dataset.original(index))

        return one_by_one((classifier.scores(inputs(int(index))) for index in part), len(part), listener)

    known = []
    for provenance in origins(manifest):
        where = f"{bundle.path}: provenance.recipe"
        recipe = Recipe.from_dict(provenance.get("recipe", {}), where, base=Recipe().unversioned)
        known.append((training_data_of_bundle(provenance, recipe), recipe.data))
    section = _data_section(manifest.preprocess, known[0][1], str(bundle.path))
    return EvaluatedModel(
        score, manifest.labels, section, len(manifest.labels), origins=tuple(origin for origin, _ in known)
    )


def _open_tflite(path: Path, text: str | None, activation: str | None, fit: Fit | None) -> EvaluatedModel:
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
    return EvaluatedModel(
        lambda dataset, part, listener: scorer(dataset.select(part), listener), labels, section, model.classes
    )


def _with_labels(subject: EvaluatedModel, path: Path, labels: str | Path) -> EvaluatedModel:
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


def _class_map(dataset: Dataset, subject: EvaluatedModel) -> npt.NDArray[np.int64]:
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
