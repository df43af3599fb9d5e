"""The bundle manifest, a JSON file that contains a model's labels, preprocessing, tensor formats and provenance."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from edgerec.contract.decision import COMBINATIONS, DecisionSpec
from edgerec.contract.image_decoding import Levels
from edgerec.contract.preprocess import PreprocessSpec
from edgerec.contract.provenance import Description
from edgerec.contract.reduced_decoding import Region, largest_reduction
from edgerec.contract.tensors import ACTIVATIONS, BINARY, Normalize, TensorSpec
from edgerec.errors import BundleError, unknown
from edgerec.utils.bounded_parsing import parse_json
from edgerec.utils.json_types import check_type
from edgerec.utils.text import is_printable, to_json

SCHEMA_VERSION = 1
MAX_MEMBERS = 64
MAX_SERIAL = 10**18
# Manifests can name only these delegates, because loading an arbitrary library would execute its code.
DELEGATES = ("", "gpu", "libedgetpu.so.1", "libedgetpu.1.dylib", "edgetpu.dll")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelSpec:
    """A model in a bundle, with its preprocessing and postprocessing.

    Attributes:
        model: name of the .tflite file.
        input, output: dtype, shape and quantization of the model's input and output tensors.
        preprocess: settings for converting an image to the model's input pixels.
        normalize: pixel normalization.
        activation: function that converts the output to scores, a key of ``ACTIVATIONS``.
        delegate_model: name of the file compiled for the bundle's delegate, or an empty string.
    """

    model: str
    input: TensorSpec
    output: TensorSpec
    preprocess: PreprocessSpec
    normalize: Normalize
    activation: str = "none"
    delegate_model: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Create a spec from a manifest's JSON object.

        Raises:
            TypeError, ValueError, KeyError: a field is missing or unknown, or a value is not valid.
        """
        parsed = {key: _FIELD_PARSERS[key](value) if key in _FIELD_PARSERS else value for key, value in values.items()}
        return cls(**parsed)

    def check(self, where: str, labels: tuple[str, ...], files: Mapping[str, str]) -> None:
        """Raise :class:`BundleError` if the fields are inconsistent with each other, the labels or the files.

        Args:
            where: name of the manifest for error messages.
            labels: labels of the bundle.
            files: digest of each file in the bundle.
        """
        self._check_strings(where)
        self._check_output(where, labels)
        if self.input.shape != (1, *self.preprocess.shape):
            raise BundleError(
                f"{where}: the input shape is {list(self.input.shape)}, but preprocessing produces images of shape "
                f"{list(self.preprocess.shape)}; export the bundle again"
            )
        if not 0 < self.normalize.std < math.inf or not math.isfinite(self.normalize.mean):
            raise BundleError(f"{where}: normalize is {self.normalize}, expected a finite mean and a positive std")
        for name in (self.model, *filter(None, [self.delegate_model])):
            if name not in files:
                raise BundleError(
                    f"{where} refers to the file {name!r}, but 'files' has no digest for it; export the bundle again"
                )

    def _check_strings(self, where: str) -> None:
        for key in ("model", "activation", "delegate_model"):
            if not isinstance(getattr(self, key), str):
                raise BundleError(f"{where}: the field {key} is {getattr(self, key)!r}, expected a string")
        if self.activation not in ACTIVATIONS:
            raise BundleError(f"{where}: {unknown('activation', self.activation, ACTIVATIONS)}")

    def _check_output(self, where: str, labels: tuple[str, ...]) -> None:
        if self.output.size != (1 if self.activation in BINARY else len(labels)):
            raise BundleError(
                f"{where} has {len(labels)} labels, but the model's output has shape {list(self.output.shape)}; "
                "export the bundle with one label per output"
            )
        if self.activation in BINARY and len(labels) != 2:
            raise BundleError(f"{where} has {len(labels)} labels, but a binary classifier requires 2")


@dataclass(frozen=True)
class NoveltySpec(ModelSpec):
    """A bundle's autoencoder, which detects unknown images by their reconstruction error.

    Attributes:
        threshold: reconstruction error above which an image is an anomaly. The error is the mean squared difference
            between the autoencoder's output and the normalized pixels.
    """

    threshold: float = 0.0

    def _check_output(self, where: str, labels: tuple[str, ...]) -> None:
        if self.output.shape != self.input.shape:
            raise BundleError(
                f"{where}: the output shape is {list(self.output.shape)}, but it must equal the input shape, "
                f"{list(self.input.shape)}"
            )
        threshold: Any = self.threshold
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < math.inf:
            raise BundleError(f"{where}: threshold is {threshold!r}, expected a positive number")


@dataclass(frozen=True)
class Manifest:
    """A bundle's manifest.

    Attributes:
        name: display name of the model.
        labels: label of each output, in the order of the outputs.
        input, output, preprocess, normalize, model, activation, delegate_model: fields of :class:`ModelSpec` for the
            first model.
        decision: settings for converting scores to predictions.
        target: name of the target, never a path.
        variant: name of the model variant.
        members: the other models of an ensemble. Empty for a single model.
        combine: function that combines the scores of an ensemble, a key of ``COMBINATIONS``.
        novelty: autoencoder that detects unknown images regardless of their scores, or None.
        threads: number of interpreter threads. 0 lets the runtime choose.
        delegate: delegate that runs the files compiled for it, one of :data:`DELEGATES`. If empty, the CPU is used.
        files: SHA-256 digest of every other file in the bundle, by relative path.
        metrics: metrics at export (top-1 accuracy, agreement, size in bytes).
        provenance: recipe, digests and versions used to build the bundle.
        serial: serial number of a signed bundle, which increases with each release. 0 means none.
        signed_s: Unix time at which the bundle was signed. 0 means unknown.
    """

    name: str
    labels: tuple[str, ...]
    input: TensorSpec
    output: TensorSpec
    preprocess: PreprocessSpec
    normalize: Normalize
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
    serial: int = 0
    signed_s: int = 0

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """The bundle's classifier, or all classifiers of an ensemble."""
        first = ModelSpec(**{item.name: getattr(self, item.name) for item in fields(ModelSpec)})
        return (first, *self.members)

    @property
    def networks(self) -> tuple[ModelSpec, ...]:
        """All models that run on each image: the classifiers and, if present, the autoencoder."""
        return self.models if self.novelty is None else (*self.models, self.novelty)

    @property
    def runtime_files(self) -> frozenset[str]:
        """Names of the files required for inference or verification: models, labels and golden vectors."""
        models = {name for spec in self.networks for name in (spec.model, spec.delegate_model)}
        return frozenset(
            name for name in self.files if name in models or name == "labels.txt" or name.startswith("golden/")
        )

    @property
    def levels(self) -> Levels:
        """Black and white levels of 16-bit images."""
        return self.preprocess.levels

    def largest_reduction(
        self, width: int, height: int, region: Region | None = None, *, sideways: bool = False
    ) -> int:
        """Return by how much an image can be reduced during decoding for all models: 1, 2, 4 or 8.

        The arguments are those of :func:`~edgerec.contract.reduced_decoding.largest_reduction`.
        """
        return min(
            largest_reduction(width, height, spec.preprocess, region, sideways=sideways) for spec in self.networks
        )

    def delegate_for(self, requested: str | None) -> str:
        """Return the delegate that runs the bundle's models, or an empty string for the CPU.

        Args:
            requested: a delegate's shared library, ``gpu``, or ``none`` for the CPU. None uses the bundle's delegate.
        """
        if requested is None:
            return self.delegate
        return "" if requested == "none" else requested

    def _check_levels(self, where: str) -> None:
        for number, spec in enumerate(self.networks[1:], start=2):
            if spec.preprocess.levels != self.levels:
                raise BundleError(
                    f"{where}: for 16-bit images, model {number} was trained with black level "
                    f"{spec.preprocess.levels.black} and white level {spec.preprocess.levels.white}, but model 1 with "
                    f"{self.levels.black} and {self.levels.white}; train both models with the same data.white_level"
                )

    def to_json(self) -> str:
        """Return the manifest as indented JSON, starting with the schema version.

        In the manifest of a signed bundle, the next keys are ``serial`` and ``signed_s``, as
        :func:`~edgerec.contract.signature.signed_header` expects. In other manifests, these keys are missing.
        """
        values = _to_json_value(self)
        signing = {key: values.pop(key) for key in ("serial", "signed_s")}
        values = {"schema": SCHEMA_VERSION} | (signing if any(signing.values()) else {}) | values
        return to_json(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "manifest.json") -> Manifest:
        """Parse and validate a JSON manifest.

        Args:
            text: the JSON text, as a string or as UTF-8.
            where: name of the manifest for error messages.

        Raises:
            BundleError: the text is not a valid manifest. The message names the invalid key and the expected value.
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise BundleError(f"{where} is not valid JSON ({error}): copy the bundle again") from None
        if not isinstance(values, dict):
            raise BundleError(f"{where}: expected a JSON object, got {type(values).__name__}")
        schema = values.pop("schema", None)
        if isinstance(schema, int) and schema > SCHEMA_VERSION:
            raise BundleError(
                f"{where} has schema version {schema}, but this version of edgerec supports only versions up to "
                f"{SCHEMA_VERSION}; upgrade with pip install -U edgerec"
            )
        if schema != SCHEMA_VERSION:
            raise BundleError(f"{where}: schema is {schema!r}, expected {SCHEMA_VERSION}")
        return cls._from_values(values, where)

    @classmethod
    def _from_values(cls, values: dict[str, Any], where: str) -> Manifest:
        known = {item.name for item in fields(cls)}
        if wrong := sorted(values.keys() - known):
            raise BundleError(f"{where} has the unknown key {wrong[0]!r}; remove the key or correct its spelling")
        for key, convert in _FIELD_PARSERS.items():
            if key in values:
                try:
                    values[key] = convert(values[key])
                except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
                    raise BundleError(f"{where}: {key}: {error}") from None
        for key in ("name", "target", "variant", "delegate", "combine"):
            if key in values and not isinstance(values[key], str):
                raise BundleError(f"{where}: the field {key} is {values[key]!r}, expected a string")
        try:
            check_type(values, Description)
        except ValueError as error:
            raise BundleError(f"{where}: {error}") from None
        try:
            manifest = cls(**values)
        except TypeError as error:
            raise BundleError(f"{where}: {str(error).rpartition('() ')[2]}") from None
        manifest.check(where)
        return manifest

    def check(self, where: str) -> None:
        """Raise :class:`BundleError` if a field is invalid or inconsistent with another field.

        Args:
            where: name of the manifest for error messages.
        """
        names = {"name": self.name, "target": self.target, "variant": self.variant}
        for what, text in (*names.items(), *((f"label {number}", label) for number, label in enumerate(self.labels))):
            if not is_printable(text):
                raise BundleError(
                    f"{where}: {what} is {text!a}, which cannot be displayed; remove line breaks, control characters, "
                    "bidi controls and unpaired surrogates"
                )
        if len(set(self.labels)) != len(self.labels):
            raise BundleError(f"{where} contains duplicate labels; give each class a unique label")
        if self.combine not in COMBINATIONS:
            raise BundleError(f"{where}: {unknown('combine', self.combine, COMBINATIONS)}")
        if self.delegate not in DELEGATES:
            raise BundleError(
                f"{where}: the delegate {self.delegate!r} is not loaded, because a library chosen by a bundle may be "
                "malicious; export the bundle again, and pass the library with --delegate"
            )
        if re.search(r"[/\\]|\.toml$", self.target):
            raise BundleError(
                f"{where}: target is {self.target!r}, expected a target name, not a path; export the bundle again"
            )
        for number, model in enumerate(self.models):
            model.check(f"{where}: members[{number - 1}]" if number else where, self.labels, self.files)
        if self.novelty is not None:
            self.novelty.check(f"{where}: novelty", self.labels, self.files)
        self._check_levels(where)


def origins(manifest: Manifest) -> list[Mapping[str, Any]]:
    """Return the provenance of each model in a bundle."""
    members = manifest.provenance.get("members")
    candidates = members if isinstance(members, list) and members else [manifest.provenance]
    return [origin for origin in candidates if isinstance(origin, dict)] or [{}]


def _labels(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(label, str) for label in value):
        raise ValueError("expected a list of strings, one per class")
    return tuple(value)


def _threads(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1024:
        raise ValueError(f"expected an integer from 0 (chosen by the runtime) to 1024, got {value!r}")
    return value


def _signing_number(limit: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
            raise ValueError(f"expected an integer from 0 to {limit - 1}, got {value!r}")
        return value

    return parse


def _files(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("expected an object that maps file names to SHA-256 digests")
    for name, digest in value.items():
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ValueError(f"invalid digest {digest!r} for {name!r}: expected a SHA-256 digest (64 hex digits)")
    return value


def _members(value: Any) -> tuple[ModelSpec, ...]:
    if not isinstance(value, list):
        raise ValueError("expected a list of models")
    if len(value) > MAX_MEMBERS:
        raise ValueError(f"expected at most {MAX_MEMBERS} models, got {len(value):,}")
    return tuple(ModelSpec.from_dict(dict(member)) for member in value)


def _novelty(value: Any) -> NoveltySpec | None:
    return None if value is None else NoveltySpec.from_dict(dict(value))


_FIELD_PARSERS: dict[str, Callable[[Any], Any]] = {
    "input": TensorSpec.from_dict,
    "output": TensorSpec.from_dict,
    "preprocess": PreprocessSpec.from_dict,
    "normalize": lambda value: Normalize(float(value["mean"]), float(value["std"])),
    "decision": lambda value: DecisionSpec(**value),
    "labels": _labels,
    "files": _files,
    "threads": _threads,
    "members": _members,
    "novelty": _novelty,
    "serial": _signing_number(MAX_SERIAL),
    "signed_s": _signing_number(10**10),
}


def _to_json_value(value: Any) -> Any:
    if isinstance(value, TensorSpec | PreprocessSpec | DecisionSpec):
        return value.to_dict()
    if isinstance(value, Normalize):
        return {"mean": value.mean, "std": value.std}
    if isinstance(value, Manifest | ModelSpec):
        return {item.name: _to_json_value(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [_to_json_value(item) for item in value]
    return value
