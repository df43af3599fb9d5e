"""Dataclasses with the content of the report about a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgerec.train.confidence_calibration import Reliability


@dataclass(frozen=True)
class TrainingInfo:
    """Summary of the trained model, its training data and its recipe.

    Attributes:
        model: the architecture, or the name of the file of an adopted model.
        adopted: whether the model was trained with another tool and adopted.
        input: size and color of the input, such as ``28×28 grayscale``.
        parameters: number of parameters of the float model, or None until the training is finished.
        epochs: number of training epochs; 0 for an adopted model.
        best_epoch: epoch whose weights were kept; 0 for an adopted model.
        seconds: duration of the training.
        source: location of the images, or only the file name if private paths are omitted.
        digest: digest of the data.
        recipe: resolved recipe, as TOML.
        versions: versions of the packages that were used for the training.
        truth: reference for the predictions: ``labels``, or ``predictions of the adopted model``.
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
    """Top-1 accuracy of the float model.

    Attributes:
        value: fraction of the test images that are predicted correctly, in [0, 1].
        low, high: 95 % confidence interval (Wilson).
        images: number of test images.
    """

    value: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class ClassMetrics:
    """Number of images and metrics of one class. A value is None if it is not known.

    Attributes:
        train, val, test: number of images in each subset.
        precision, recall, f1: metrics of the model :attr:`ReportContent.metrics_of` on the test images, in [0, 1].
        variant_f1: F1 score of the variant :attr:`ReportContent.chosen`.
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
    """A misclassified test image. :attr:`ReportContent.mistakes_of` is the name of the model.

    Attributes:
        position: position of the image in the dataset.
        name: file name of the image; empty if names are omitted.
        truth: true label.
        prediction: predicted label.
        score: score of the predicted label, 0 to 1.
        float_prediction: label that the float model predicts; empty if the label is the same or was not measured.
    """

    position: int
    name: str
    truth: str
    prediction: str
    score: float
    float_prediction: str = ""


@dataclass(frozen=True)
class Calibration:
    """Calibration of the float model or a variant, measured on the test images.

    Attributes:
        model: name of the variant, or ``float Keras``.
        temperature: temperature that was fitted on the validation images, as in ``edgerec export``.
        before, after: calibration without and with the temperature.
    """

    model: str
    temperature: float
    before: Reliability
    after: Reliability


@dataclass(frozen=True)
class VariantMetrics:
    """Metrics of a variant of the run.

    Attributes:
        top1, top1_low, top1_high: accuracy on the test images, and its 95 % confidence interval (Wilson).
        median_ms, p95_ms: inference time for one image in milliseconds, or None if it was not measured by ``compare``.
        chosen: whether this variant was exported last. If no variant was exported, whether ``edgerec export`` chooses
            this variant by default.
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
class Step:
    """A recommended next step.

    Attributes:
        command: shell command, or an empty string if the step is not a command.
        why: the recommendation and its reason.
    """

    command: str
    why: str


@dataclass(frozen=True)
class ReportContent:
    """Content of the report about a run.

    Attributes:
        run, name: path of the run, and its folder name.
        page, page_bytes: path and size of the HTML file.
        finished: whether training is finished.
        training: description of the trained model.
        top1: accuracy of the float model on the test images, or None until the training is finished.
        loss: mean cross-entropy on the test images in nats, or None until the training is finished.
        splits: number of images in ``train``, ``val`` and ``test``.
        skipped: number of files in the data that are not images.
        classes: metrics of each class.
        metrics_of: the model to which ``classes`` and ``confusion`` belong: float Keras, or :attr:`chosen` if the
            predictions of the float model are used as labels; empty if there are no metrics.
        confusion: ``confusion[true][predicted]``, counts on the test images, in the order of ``classes``.
        confused: true label, predicted label and count of the most frequent misclassifications, at most ten.
        history: metrics of each epoch.
        mistakes_of: model whose misclassified images are shown: :attr:`chosen`, or float Keras if there is no variant;
            empty if the model was not run.
        mistakes: misclassified images with the highest scores.
        mistakes_total: number of all misclassified images.
        calibration: calibration of each model that was run.
        variants: the variants in the order of the run, float32 first.
        timed_on: description of the machine on which times were measured; empty if no times were measured.
        notes: notes from ``compare``.
        missing: missing parts of the report, with the reasons and how to add them.
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
    next: tuple[Step, ...]

    @property
    def chosen(self) -> VariantMetrics | None:
        """The variant that was exported last, or the default of ``edgerec export`` if no variant was exported."""
        return next((row for row in self.variants if row.chosen), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        return asdict(self)
