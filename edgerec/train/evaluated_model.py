"""Open a run, a bundle or a .tflite file for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgerec.contract.bundle import Bundle
from edgerec.contract.labels import read_labels
from edgerec.contract.manifest import origins
from edgerec.contract.preprocess import Fit, Image, PreprocessSpec
from edgerec.data import Dataset
from edgerec.data.split import Indices
from edgerec.errors import DataError, EdgerecError, ModelError
from edgerec.recipe import DataSection, Recipe
from edgerec.runtime.classifier import Classifier
from edgerec.runtime.image_model import ImageModel
from edgerec.runtime.third_party import ThirdPartyModel
from edgerec.train.label_order import FOLDERS
from edgerec.train.metrics import Reals
from edgerec.train.run import Run
from edgerec.train.scorers import keras_scorer, one_by_one, tflite_scorer
from edgerec.train.training_data import (
    ImageSplits,
    TrainingData,
    training_data_of_bundle,
    training_data_of_run,
)
from edgerec.utils.progress import Listener

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluatedModel:
    """A run, bundle or .tflite file opened for evaluation.

    Attributes:
        score: function that takes a dataset, indices of images and a listener, and returns scores ``(images,
            classes)``.
        labels: label of each output, or an empty tuple if the labels are unknown.
        data: data section of the recipe with the model's preprocessing.
        classes: number of outputs.
        training_data: training data of the model, or of each model of an ensemble.
        own_data: whether ``data`` refers to the images the model was trained on.
        pseudo_labels: predictions of an imported model for its own images, keyed by image name, if these images have
            no labels.
    """

    score: Callable[[Dataset, Indices, Listener], Reals]
    labels: tuple[str, ...]
    data: DataSection
    classes: int
    training_data: tuple[TrainingData, ...] = ()
    own_data: bool = False
    pseudo_labels: dict[str, str] | None = None

    def image_splits(self, dataset: Dataset) -> list[ImageSplits] | None:
        """Return the images' splits during training, as one array per model, or None if they are unknown."""
        known = [splits for origin in self.training_data if (splits := origin.image_splits(dataset)) is not None]
        return known if known and len(known) == len(self.training_data) else None

    def output_indices(self, dataset: Dataset) -> Indices:
        """Return an int64 array that maps the data's classes to the model's outputs."""
        if not self.labels:
            if len(dataset.labels) != self.classes:
                raise DataError(
                    f"the model has {self.classes} outputs, but the data has {len(dataset.labels)} classes: use data "
                    "with the model's classes, or name the outputs with --labels"
                )
            return np.arange(self.classes)
        missing = [label for label in dataset.labels if label not in self.labels]
        if missing:
            raise DataError(
                f"the data has a class {missing[0]!r} that the model does not know: remove or rename the folder of "
                f"this class. The model has these labels: {', '.join(self.labels[:10])}"
            )
        return np.array([self.labels.index(label) for label in dataset.labels])


def open_model(
    path: Path, normalize: str | None, activation: str | None, fit: Fit | None, labels: str | Path | None
) -> EvaluatedModel:
    """Open a run, a bundle or a .tflite file. The arguments are those of :func:`edgerec.train.evaluate.evaluate`."""
    if path.suffix != ".tflite":
        options = {"normalize": normalize, "activation": activation, "fit": fit, "labels": labels}
        if name := next((name for name, value in options.items() if value is not None), None):
            raise EdgerecError(f"--{name} requires a .tflite file, but {path} contains its own {name}: omit --{name}")
    elif path.is_file():
        return _open_tflite(path, normalize, activation, fit, labels)
    if Run(path).begun:
        return _open_run(Run.open_classifier(path))
    if path.is_file() or (path / "manifest.json").is_file():
        return _open_bundle(Bundle.open(path))
    raise EdgerecError(f"{path} is not a run, a bundle or a .tflite file: check the path")


def _open_run(run: Run) -> EvaluatedModel:
    recipe, labels = run.recipe, run.labels
    scorer = keras_scorer(run.model(), recipe.normalize)
    return EvaluatedModel(
        lambda dataset, part, listener: scorer(dataset.select(part), listener),
        labels,
        recipe.data,
        len(labels),
        training_data=(training_data_of_run(run),),
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

    where, known = f"{bundle.path}: provenance.recipe", origins(manifest)
    recipes = [Recipe.from_dict(each.get("recipe", {}), where, base=Recipe().unversioned) for each in known]
    section = _data_section(manifest.preprocess, recipes[0].data, str(bundle.path))
    training_data = tuple(map(training_data_of_bundle, known, recipes))
    return EvaluatedModel(score, manifest.labels, section, len(manifest.labels), training_data)


def _open_tflite(
    path: Path, text: str | None, activation: str | None, fit: Fit | None, label_file: str | Path | None
) -> EvaluatedModel:
    original = ThirdPartyModel.open(path, activation=activation, own_labels=True, own_normalize=text is not None)
    finished, normalize = original.normalized(text)
    model = ImageModel(finished.content, normalize, activation=finished.activation, where=finished.where)
    metadata, _, height, width, channels = original.metadata, *finished.input.shape
    reason = "chosen with --fit" if fit else original.family.reason
    fit = fit or original.family.fit
    log.info("%s: fit %s: %s", path, fit, reason)
    log.info("%s: activation %s: %s", path, finished.activation, finished.activation_reason)
    labels = metadata.labels if metadata is not None and len(metadata.labels) == model.classes else ()
    if label_file is not None:
        labels = () if str(label_file) == FOLDERS else read_labels(Path(label_file), model.classes, str(path))
    section = _data_section(PreprocessSpec(height, width, channels, fit), DataSection(), finished.where)
    scorer = tflite_scorer(model)
    return EvaluatedModel(
        lambda dataset, part, listener: scorer(dataset.select(part), listener), labels, section, model.classes
    )


def _data_section(spec: PreprocessSpec, base: DataSection, where: str) -> DataSection:
    if spec.height != spec.width:
        raise ModelError(
            f"Cannot evaluate {where}, because its input of {spec.width}×{spec.height} pixels is not square: use a "
            "model with a square input"
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
