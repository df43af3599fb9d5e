"""Type definitions for the manifest fields ``metrics`` and ``provenance``."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from edgerec.utils.json_types import MinItems


class VariantForm(TypedDict):
    """Accuracy and size of a model in one format, such as float Keras or int8 TFLite."""

    name: str
    top1: float
    agreement: float
    size_bytes: int
    gzip_bytes: int
    error: NotRequired[float | None]


class MemberMetrics(TypedDict, total=False):
    """Metrics of a model in several formats, from the float model (first) to the exported model (last)."""

    forms: Annotated[list[VariantForm], MinItems(1)]


class Member(TypedDict):
    """A model of an ensemble."""

    name: str
    variant: str
    metrics: MemberMetrics


class Metrics(MemberMetrics, total=False):
    """Metrics of the models in a bundle."""

    members: list[Member]
    novelty: dict[str, Any]


class SourceFile(TypedDict):
    """Name and SHA-256 digest of the file from which a model was imported."""

    file: str
    sha256: str


class AdoptedModel(SourceFile):
    """Keras model from which a training run was imported."""

    truth: str


class RecipeSections(TypedDict, total=False):
    """Recipe sections that are stored in a manifest."""

    data: dict[str, Any]
    model: dict[str, Any]


class Origin(TypedDict, total=False):
    """Recipe, data and source files from which a model was created."""

    recipe: RecipeSections
    data_digest: str
    split: dict[str, Any] | None
    adopted: AdoptedModel
    imported: SourceFile


class Provenance(Origin, total=False):
    """Provenance of the models in a bundle."""

    members: list[Origin]


class Description(TypedDict, total=False):
    """The manifest fields that describe the model. The runtime does not use them."""

    metrics: Metrics
    provenance: Provenance
