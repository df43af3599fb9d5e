"""Dataclasses for the content of a run's report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgerec.train.confidence_calibration import Reliability


@dataclass(frozen=True)
class TrainingInfo:
    """Summary of a run's model, training data and recipe.

    Attributes:
        model: the architecture, or the file name of an adopted model.
        adopted: whether the model was trained with another tool and adopted.
        input: size and color of the input, such as ``28×28 grayscale``.
        parameters: number of parameters in the float model, or None until training is finished.
        epochs: number of training epochs; 0 for an adopted model.
        best_epoch: epoch whose weights were kept; 0 for an adopted model.
        seconds: training duration.
        source: location of the images, or only the file name if private paths are omitted.
        digest: digest of the data.
        recipe: resolved recipe in TOML format.
        versions: versions of the packages used for training.
        truth: what predictions are compared with: ``labels`` or ``predictions of the adopted model``.
    """

    model: str
    adopted: bool
    input: str
    parameters: int | None
    epochs: int
    best_epoch: int
    seconds: float
    source: str
    digest: str
    recipe: str
    versions: dict[str, str]
    truth: str


@dataclass(frozen=True)
class Top1:
    """The float model's top-1 accuracy.

    Attributes:
        value: fraction of test images that are classified correctly, in [0, 1].
        low, high: 95 % confidence interval (Wilson).
        images: number of test images.
    """

    value: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class ClassMetrics:
    """Image counts and metrics for one class. Unknown values are None.

    Attributes:
        train, val, test: number of images in each subset.
        precision, recall, f1: metrics of :attr:`ReportContent.metrics_of` on the test images, in [0, 1].
        variant_f1: F1 score of :attr:`ReportContent.chosen`.
    """

    label: str
    train: int | None = None
    val: int | None = None
    test: int | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    variant_f1: float | None = None


@dataclass(frozen=True)
class Mistake:
    """A misclassified test image and its predicted label.

    Attributes:
        position: the image's index in the dataset.
        name: file name of the image; empty if names are omitted.
        truth: true label.
        prediction: predicted label.
        score: score of the predicted label, in [0, 1].
        float_prediction: the float model's predicted label; empty if it is the same or unknown.
    """

    position: int
    name: str
    truth: str
    prediction: str
    score: float
    float_prediction: str = ""


@dataclass(frozen=True)
class Calibration:
    """Confidence calibration of a model, measured on the test images.

    Attributes:
        model: name of the variant, or ``float Keras``.
        temperature: temperature fitted on the validation images, as in ``edgerec export``.
        before, after: calibration without and with temperature scaling.
    """

    model: str
    temperature: float
    before: Reliability
    after: Reliability


@dataclass(frozen=True)
class VariantMetrics:
    """Metrics for one of the run's variants.

    Attributes:
        top1, top1_low, top1_high: accuracy on the test images and its 95 % confidence interval (Wilson).
        median_ms, p95_ms: inference time per image in milliseconds, or None if it was not measured by ``compare``.
        chosen: whether this variant was exported last or, if none was exported, whether it is the default of
            ``edgerec export``.
        exported: targets for which this variant was exported.
    """

    variant: str
    method: str
    precision: str
    top1: float
    drop_points: float
    max_drop: float
    agreement: float
    size_bytes: int
    gzip_bytes: int
    sparsity: float
    median_ms: float | None
    p95_ms: float | None
    chosen: bool
    top1_low: float = 0.0
    top1_high: float = 1.0
    exported: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recommendation:
    """A recommended next step.

    Attributes:
        command: shell command; empty if the step does not involve a command.
        why: the recommendation and the reason for it.
    """

    command: str
    why: str


@dataclass(frozen=True)
class ReportContent:
    """Content of a run's report.

    Attributes:
        run, name: path and folder name of the run.
        page, page_bytes: path and size of the HTML file.
        finished: whether training is finished.
        training: summary of the training.
        top1: the float model's accuracy on the test images, or None until training is finished.
        loss: mean cross-entropy on the test images in nats, or None until training is finished.
        splits: number of images in ``train``, ``val`` and ``test``.
        skipped: number of files in the data that are not images.
        classes: metrics per class.
        metrics_of: model whose metrics are in ``classes`` and ``confusion``: float Keras, or :attr:`chosen` if the
            float model's predictions are used as labels; empty if there are no metrics.
        confusion: number of test images as ``confusion[true][predicted]``, in the order of ``classes``.
        confused: true label, predicted label and count for up to ten of the most frequent misclassifications.
        history: metrics per epoch.
        mistakes_of: model whose misclassified images are shown: :attr:`chosen`, or float Keras if there is no variant;
            empty if the model was not run.
        mistakes: misclassified images with the highest scores.
        mistakes_total: total number of misclassified images.
        calibration: calibration of each model that was run.
        variants: the run's variants, with float32 first.
        timed_on: description of the machine on which times were measured; empty if no times were measured.
        notes: notes from ``compare``.
        missing: parts missing from the report, with the reasons and how to add them.
        next: recommended next steps.
    """

    run: str
    name: str
    page: str
    page_bytes: int
    finished: bool
    training: TrainingInfo
    top1: Top1 | None
    loss: float | None
    splits: dict[str, int]
    skipped: int
    classes: tuple[ClassMetrics, ...]
    metrics_of: str
    confusion: tuple[tuple[int, ...], ...]
    confused: tuple[tuple[str, str, int], ...]
    history: tuple[dict[str, float], ...]
    mistakes_of: str
    mistakes: tuple[Mistake, ...]
    mistakes_total: int
    calibration: tuple[Calibration, ...]
    variants: tuple[VariantMetrics, ...]
    timed_on: str
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    next: tuple[Recommendation, ...]

    @property
    def chosen(self) -> VariantMetrics | None:
        """The last exported variant or, if none was exported, the default variant of ``edgerec export``."""
        return next((row for row in self.variants if row.chosen), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        return asdict(self)
