"""Everything that a device must know about a model, as one JSON file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from edgerec.contract.decision import COMBINATIONS, DecisionSpec
from edgerec.contract.image_files import Levels
from edgerec.contract.preprocess import PreprocessSpec
from edgerec.contract.target import DELEGATES
from edgerec.contract.tensors import ACTIVATIONS, BINARY, Normalise, TensorSpec
from edgerec.errors import BundleError, unknown
from edgerec.utils.bounded import check_structure, parse_json
from edgerec.utils.text import is_printable, to_json

SCHEMA_VERSION = 1
MAX_MEMBERS = 64
_SHA256 = re.compile(r"[0-9a-f]{64}")


# Structure of the fields that describe how the bundle was built, see check_structure.
_FORM = {"name": str, "top1": float, "agreement": float, "size_bytes": int, "gzip_bytes": int}
_FILE = {"file": str, "sha256": str}
_ORIGIN = {
    "recipe?": {"data?": dict, "model?": dict},
    "data_digest?": str,
    "split?": (dict, type(None)),
    "adopted?": _FILE | {"truth": str},
    "imported?": _FILE,
}
_METRICS = {"forms?": [_FORM, 1]}
_DESCRIPTION = {
    "metrics?": _METRICS | {"members?": [{"name": str, "variant": str, "metrics": _METRICS}], "novelty?": dict},
    "provenance?": _ORIGIN | {"members?": [_ORIGIN]},
}


@dataclass(frozen=True)
class ModelSpec:
    """One model of a bundle, with its preprocessing and postprocessing.

    Attributes:
        model: name of the .tflite file.
        input, output: dtype, shape and quantization of the model's input and output tensors.
        preprocess: conversion of an image to the pixels of the model's input.
        normalise: conversion of pixels to the real values of the input.
        activation: function that converts the output to scores, a key of ``ACTIVATIONS``.
        delegate_model: name of the file that is compiled for the bundle's delegate; empty if there is none.
    """

    model: str
    input: TensorSpec
    output: TensorSpec
    preprocess: PreprocessSpec
    normalise: Normalise
    activation: str = "none"
    delegate_model: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict`` of its parts; raises TypeError, ValueError or KeyError on anything else."""
        read = {key: _READERS[key](value) if key in _READERS else value for key, value in values.items()}
        return cls(**read)

    def check(self, where: str, labels: tuple[str, ...], files: Mapping[str, str]) -> None:
        """Raise :class:`BundleError` when the parts do not fit each other, or the bundle."""
        self._check_texts(where)
        self._check_output(where, labels)
        if self.input.shape != (1, *self.preprocess.shape):
            raise BundleError(
                f"{where}: input shape {list(self.input.shape)} does not fit preprocess {list(self.preprocess.shape)}"
            )
        if not 0 < self.normalise.std < math.inf or not math.isfinite(self.normalise.mean):
            raise BundleError(f"{where}: {self.normalise}: expected a finite mean and a std above 0")
        for name in (self.model, *filter(None, [self.delegate_model])):
            if name not in files:
                raise BundleError(f"{where} names {name!r} but lists no digest for it")

    def _check_texts(self, where: str) -> None:
        for key in ("model", "activation", "delegate_model"):
            if not isinstance(getattr(self, key), str):
                raise BundleError(f"{where}: {key} is {getattr(self, key)!r}, expected text")
        if self.activation not in ACTIVATIONS:
            raise BundleError(f"{where}: {unknown('activation', self.activation, ACTIVATIONS)}")

    def _check_output(self, where: str, labels: tuple[str, ...]) -> None:
        if self.output.size != (1 if self.activation in BINARY else len(labels)):
            raise BundleError(f"{where} has {len(labels)} labels for an output of shape {list(self.output.shape)}")
        if self.activation in BINARY and len(labels) != 2:
            raise BundleError(f"{where} has {len(labels)} labels for a binary classifier")


@dataclass(frozen=True)
class NoveltySpec(ModelSpec):
    """The autoencoder of a bundle, which computes an anomaly score: the reconstruction error of an image.

    Attributes:
        threshold: reconstruction error above which an image is an anomaly. The error is the mean squared difference
            between the output and the normalized pixels.
    """

    threshold: float = 0.0

    def _check_output(self, where: str, labels: tuple[str, ...]) -> None:
        if self.output.shape != self.input.shape:
            raise BundleError(f"{where} gives {list(self.output.shape)}, expected {list(self.input.shape)} as it takes")
        threshold: Any = self.threshold
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < math.inf:
            raise BundleError(f"{where}: threshold is {threshold!r}, expected a number above 0")


@dataclass(frozen=True)
class Manifest:
    """The manifest of a bundle.

    Attributes:
        name: display name of the model.
        labels: label of each output, in the order of the outputs.
        input, output, preprocess, normalise, model, activation, delegate_model: fields of :class:`ModelSpec` for the
            first model.
        decision: settings for the conversion of scores to a prediction.
        target: name of the target, never a path.
        variant: name of the model variant.
        members: further models of an ensemble; empty for a single model.
        combine: function that combines the scores of an ensemble, a key of ``COMBINATIONS``.
        novelty: autoencoder that detects unknown images regardless of their scores; None if there is none.
        threads: interpreter threads; 0 lets the runtime choose.
        delegate: delegate that runs the files compiled for it, one of :data:`~edgerec.contract.target.DELEGATES`;
            empty uses the CPU.
        files: SHA-256 of every other file of the bundle by its relative path.
        metrics: metrics at export (top-1 accuracy, agreement, size in bytes).
        provenance: recipe, digests and versions that were used to build the bundle.
    """

    name: str
    labels: tuple[str, ...]
    input: TensorSpec
    output: TensorSpec
    preprocess: PreprocessSpec
    normalise: Normalise
    decision: DecisionSpec
    target: str
    variant: str
    files: Mapping[str, str]
    model: str = "model.tflite"
    activation: str = "none"
    threads: int = 0
    delegate: str = ""
    delegate_model: str = ""
    members: tuple[ModelSpec, ...] = ()
    combine: str = "mean"
    novelty: NoveltySpec | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """The classifier, or all classifiers of an ensemble."""
        first = ModelSpec(**{item.name: getattr(self, item.name) for item in fields(ModelSpec)})
        return (first, *self.members)

    @property
    def networks(self) -> tuple[ModelSpec, ...]:
        """All models that are run on an image: :attr:`models`, followed by the autoencoder if there is one."""
        return self.models if self.novelty is None else (*self.models, self.novelty)

    @property
    def runtime_files(self) -> frozenset[str]:
        """Names of the files that inference or verification uses: models, labels and golden vectors."""
        models = {name for spec in self.networks for name in (spec.model, spec.delegate_model)}
        return frozenset(
            name for name in self.files if name in models or name == "labels.txt" or name.startswith("golden/")
        )

    @property
    def levels(self) -> Levels:
        """Values that become black and white in image files with 16 bits per sample."""
        return self.preprocess.levels

    def _check_levels(self, where: str) -> None:
        for number, spec in enumerate(self.networks[1:], start=2):
            if spec.preprocess.levels != self.levels:
                raise BundleError(
                    f"{where}: model {number} was trained with other black and white levels of 16-bit images "
                    f"({spec.preprocess.levels.black} and {spec.preprocess.levels.white}) than the first one "
                    f"({self.levels.black} and {self.levels.white}): train them with the same data.white_level"
                )

    def to_json(self) -> str:
        """The manifest as indented JSON, its schema version first."""
        values = {"schema": SCHEMA_VERSION} | _plain(self)
        return to_json(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "manifest.json") -> Manifest:
        """Read and check a manifest; raises :class:`BundleError` that names the key and what it should be."""
        try:
            values = parse_json(text)
        except ValueError as error:
            raise BundleError(f"{where} is not JSON ({error}): copy the bundle again") from None
        if not isinstance(values, dict):
            raise BundleError(f"{where} holds a {type(values).__name__}, expected an object")
        schema = values.pop("schema", None)
        if isinstance(schema, int) and schema > SCHEMA_VERSION:
            raise BundleError(
                f"{where} has schema {schema}, this edgerec reads up to {SCHEMA_VERSION}: "
                "upgrade it with pip install -U edgerec"
            )
        if schema != SCHEMA_VERSION:
            raise BundleError(f"{where} has schema {schema!r}, expected {SCHEMA_VERSION}")
        return cls._from_values(values, where)

    @classmethod
    def _from_values(cls, values: dict[str, Any], where: str) -> Manifest:
        known = {item.name for item in fields(cls)}
        if wrong := sorted(values.keys() - known):
            raise BundleError(f"{where} has an unknown key {wrong[0]!r}")
        for key, read in _READERS.items():
            if key in values:
                try:
                    values[key] = read(values[key])
                except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
                    raise BundleError(f"{where}: {key}: {error}") from None
        for key in ("name", "target", "variant", "delegate", "combine"):
            if key in values and not isinstance(values[key], str):
                raise BundleError(f"{where}: {key} is {values[key]!r}, expected text")
        try:
            check_structure(values, _DESCRIPTION)
        except ValueError as error:
            raise BundleError(f"{where}: {error}") from None
        try:
            manifest = cls(**values)
        except TypeError as error:
            raise BundleError(f"{where}: {str(error).rpartition('() ')[2]}") from None
        manifest.check(where)
        return manifest

    def check(self, where: str) -> None:
        """Raise :class:`BundleError` when the parts do not fit each other."""
        texts = {"name": self.name, "target": self.target, "variant": self.variant}
        for what, text in (*texts.items(), *((f"label {number}", label) for number, label in enumerate(self.labels))):
            if not is_printable(text):
                raise BundleError(
                    f"{where}: {what} is {text!a}, which cannot be displayed: expected text without line breaks, "
                    "control characters, bidi controls and unpaired surrogates"
                )
        if len(set(self.labels)) != len(self.labels):
            raise BundleError(f"{where} has the same label twice")
        if self.combine not in COMBINATIONS:
            raise BundleError(f"{where}: {unknown('combine', self.combine, COMBINATIONS)}")
        if self.delegate not in DELEGATES:
            raise BundleError(
                f"{where} names the delegate {self.delegate!r}, which is not loaded, because a library that a bundle "
                "chooses could contain any code: export the bundle again, and name this library with --delegate"
            )
        if re.search(r"[/\\]|\.toml$", self.target):
            raise BundleError(
                f"{where} names the target {self.target!r}, expected a name without a folder or .toml: export the "
                "bundle again"
            )
        for number, model in enumerate(self.models):
            model.check(f"{where}: members[{number - 1}]" if number else where, self.labels, self.files)
        if self.novelty is not None:
            self.novelty.check(f"{where}: novelty", self.labels, self.files)
        self._check_levels(where)


def origins(manifest: Manifest) -> list[Mapping[str, Any]]:
    """Return the provenance of each model of a bundle."""
    members = manifest.provenance.get("members")
    found = members if isinstance(members, list) and members else [manifest.provenance]
    return [origin for origin in found if isinstance(origin, dict)] or [{}]


def _labels(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(label, str) for label in value):
        raise ValueError("expected a list of texts, one per class")
    return tuple(value)


def _threads(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1024:
        raise ValueError(f"expected 0 (the runtime chooses) to 1024, got {value!r}")
    return value


def _files(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("expected an object of file name to SHA-256")
    for name, digest in value.items():
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ValueError(f"{name!r} has no SHA-256: {digest!r}")
    return value


def _members(value: Any) -> tuple[ModelSpec, ...]:
    if not isinstance(value, list):
        raise ValueError("expected a list of models")
    if len(value) > MAX_MEMBERS:
        raise ValueError(f"expected at most {MAX_MEMBERS} models, got {len(value):,}")
    return tuple(ModelSpec.from_dict(dict(member)) for member in value)


def _novelty(value: Any) -> NoveltySpec | None:
    return None if value is None else NoveltySpec.from_dict(dict(value))


_READERS: dict[str, Callable[[Any], Any]] = {
    "input": TensorSpec.from_dict,
    "output": TensorSpec.from_dict,
    "preprocess": PreprocessSpec.from_dict,
    "normalise": lambda value: Normalise(float(value["mean"]), float(value["std"])),
    "decision": DecisionSpec.from_dict,
    "labels": _labels,
    "files": _files,
    "threads": _threads,
    "members": _members,
    "novelty": _novelty,
}


def _plain(value: Any) -> Any:
    """``value`` as what JSON can say."""
    if isinstance(value, TensorSpec | PreprocessSpec | DecisionSpec):
        return value.to_dict()
    if isinstance(value, Normalise):
        return {"mean": value.mean, "std": value.std}
    if isinstance(value, Manifest | ModelSpec):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
