"""Parse a run's files and check their structure, so that damaged files are reported clearly."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NotRequired, Required, TypedDict, TypeVar, cast

from edgerec.contract.provenance import AdoptedModel, VariantForm
from edgerec.utils.bounded_parsing import parse_json
from edgerec.utils.json_types import MinItems, check_type

T = TypeVar("T")

# Columns of history.csv.
HISTORY = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds", "stage")


class PerClassMetrics(TypedDict):
    """A classifier's metrics for one class."""

    precision: float
    recall: float
    f1: float
    support: int


class PerClassError(TypedDict):
    """An autoencoder's mean reconstruction error for one class."""

    error: float
    support: int


class ImportedModel(AdoptedModel):
    """Information about an imported model."""

    normalize: str
    input_layer: NotRequired[str | None]


class RunMetrics(TypedDict, total=False):
    """A model's test metrics and training statistics, as stored in ``metrics.json``.

    Classifiers have ``accuracy`` and ``val_accuracy``. Autoencoders have ``error``, ``threshold`` and ``known``.
    """

    images: Required[int]
    parameters: Required[int]
    accuracy: float
    val_accuracy: float
    error: float
    threshold: float
    known: float
    loss: float
    per_class: dict[str, PerClassMetrics] | dict[str, PerClassError]
    confusion: list[list[int]]
    labels: list[str]
    split: str
    best_epoch: int
    epochs: int
    seconds: float
    train_images: int
    val_images: int
    data_digest: str
    versions: dict[str, str]
    adopted: ImportedModel


class SplitDigests(TypedDict):
    """Image digests for each subset of a split, in the format of :func:`~edgerec.train.split_record.joined_digests`."""

    of: str
    train: str
    val: str
    test: str
    moved: str
    inherited: str


class SplitRecord(TypedDict, total=False):
    """A run's split, as stored in ``split.json``. Older versions did not store all keys."""

    digest: Required[str]
    train_images: int
    val_images: int
    test_images: int
    held_out_here: bool
    split_by: str
    skipped: list[str]
    val: list[str]
    test: list[str]
    moved: list[str]
    excluded: list[str]
    contents: SplitDigests | None


class EvaluationRecord(TypedDict):
    """A variant's metrics on the test images; see :class:`~edgerec.train.metrics.EvaluationReport`."""

    accuracy: float
    loss: float
    per_class: dict[str, PerClassMetrics] | dict[str, PerClassError]
    confusion: list[list[int]]
    labels: list[str]
    images: int
    split: str
    training_images: NotRequired[int | None]


class VariantRecord(TypedDict):
    """A variant's quantization report, as stored in ``report.json``."""

    variant: str
    method: str
    precision: str
    model_sha256: str
    val_top1: float
    val_drop_points: float
    drop_points: float
    max_drop: float
    sparsity: float
    forms: Annotated[list[VariantForm], MinItems(2)]
    figures: EvaluationRecord
    calibration: dict[str, Any]
    images: int
    versions: dict[str, Any]
    compress: NotRequired[dict[str, Any]]
    adapted: NotRequired[list[dict[str, Any]]]
    agreements: NotRequired[dict[str, float]]
    why: NotRequired[str]


class ComparisonRow(TypedDict):
    """A variant's size and latency."""

    variant: str
    size_bytes: int
    gzip_bytes: int
    method: NotRequired[str]
    median_ms: NotRequired[float | None]
    p95_ms: NotRequired[float | None]


class ComparisonRecord(TypedDict):
    """A comparison of a run's variants, as stored in ``compare.json``."""

    rows: list[ComparisonRow]
    machine: str
    threads: int
    notes: list[str]


class ExportRecord(TypedDict):
    """An exported bundle, as listed in ``exports.json``."""

    variant: str
    target: str
    bundle: str
    model_sha256: str


class ExportRecords(TypedDict):
    """A run's exports, as stored in ``exports.json``."""

    exports: list[ExportRecord]


class ExtensionRecord(TypedDict):
    """Content of ``extensions.json``."""

    after_epochs: list[int]


# Maximum size of a run's text files in bytes.
MAX_FILE_BYTES = 256 << 20


def parse_object(expected: type[T], required: Sequence[str] = ()) -> Callable[[str], T]:
    """Return a function that parses a JSON object and checks its type.

    Args:
        expected: a TypedDict, or another type that :func:`check_type` supports.
        required: keys to require in addition to those of ``expected``.
    """

    def parse(text: str) -> T:
        value: Any = parse_json(text, max_bytes=MAX_FILE_BYTES)
        check_type(value, expected)
        for key in required:
            if key not in value:
                raise ValueError(f"{key} is missing")
        return cast(T, value)

    return parse


def parse_labels(text: str) -> tuple[str, ...]:
    labels = tuple(text.splitlines())
    # Autoencoder runs may have no labels.
    if len(set(labels)) < len(labels):
        raise ValueError("a label occurs twice")
    return labels


def parse_history(text: str) -> list[dict[str, float]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    # Autoencoders have no accuracy, and older versions did not record the stage.
    optional = ("accuracy", "val_accuracy", "stage")
    values = [{key: float(row[key]) for key in HISTORY if key not in optional or row.get(key)} for row in rows]
    check_type(values, list[dict[str, float]])
    return values
