"""Types of the manifest fields that record how a bundle's model was created, and its metrics."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from edgerec.utils.json_types import MinItems


class VariantForm(TypedDict):
    """Accuracy and size of the model in one format, such as float Keras or int8 TFLite."""

    name: str
    top1: float
    agreement: float
    size_bytes: int
    gzip_bytes: int
    error: NotRequired[float | None]


class MemberMetrics(TypedDict, total=False):
    """A model's metrics. The first item of ``forms`` describes the float model, and the last one the exported model."""

    forms: Annotated[list[VariantForm], MinItems(1)]


class Member(TypedDict):
    """A model of an ensemble."""

    name: str
    variant: str
    metrics: MemberMetrics


class Metrics(MemberMetrics, total=False):
    """A manifest's ``metrics`` field."""

    members: list[Member]
    novelty: dict[str, Any]


class SourceFile(TypedDict):
    """The file that a model was imported from."""

    file: str
    sha256: str


class AdoptedModel(SourceFile):
    """The Keras model that a run was imported from."""

    truth: str


class RecipeSections(TypedDict, total=False):
    """Recipe sections that are stored in a manifest."""

    data: dict[str, Any]
    model: dict[str, Any]


class Origin(TypedDict, total=False):
    """Record of how a model was created."""

    recipe: RecipeSections
    data_digest: str
    split: dict[str, Any] | None
    adopted: AdoptedModel
    imported: SourceFile


class Provenance(Origin, total=False):
    """A manifest's ``provenance`` field."""

    members: list[Origin]


class Description(TypedDict, total=False):
    """The manifest fields that describe the model. The runtime does not use them."""

    metrics: Metrics
    provenance: Provenance
