"""Dataclasses with the content of a run's report page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgerec.train.confidence_calibration import Reliability


@dataclass(frozen=True)
class TrainingFacts:
    """Description of the trained model, its data and its recipe.

    Attributes:
        model: the architecture, or the name of the file of an adopted model.
        adopted: whether the model was trained with another tool and adopted.
        input: size and color of the input, such as ``28×28 grayscale``.
        parameters: number of parameters of the float model; None until the training is finished.
        epochs: number of training epochs; 0 for an adopted model.
        best_epoch: epoch whose weights were kept; 0 for an adopted model.
        seconds: duration of the training.
        source: location of the images, or only its name if private paths are left out.
        digest: digest of the data.
        recipe: resolved recipe, as TOML.
        versions: versions of the packages that were used for the training.
        truth: what predictions are compared with: ``labels``, or ``predictions of the adopted model``.
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
class ClassFacts:
    """Number of images and metrics of one class. Unknown values are None.

    Attributes:
        train, val, test: number of images in each subset.
        precision, recall, f1: metrics of the model ``figures_of`` on the test images, in [0, 1].
        variant_f1: F1 of the variant to ship.
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
    """A wrong prediction of the model ``mistakes_of``.

    Attributes:
        position: position of the image in the dataset.
        name: file name of the image; empty if names are left out.
        truth: true label.
        answer: predicted label.
        score: score of the predicted label, 0 to 1.
        float_answer: prediction of the float model; empty if it is the same or was not measured.
    """

    position: int
    name: str
    truth: str
    answer: str
    score: float
    float_answer: str = ""


@dataclass(frozen=True)
class Calibration:
    """Calibration of one form of the model, measured on the test images.

    Attributes:
        form: name of the variant, or ``float Keras``.
        temperature: temperature that was fitted on the validation images, as export does.
        before, after: calibration without and with the temperature.
    """

    form: str
    temperature: float
    before: Reliability
    after: Reliability


@dataclass(frozen=True)
class VariantFacts:
    """A variant of the run.

    Attributes:
        top1, top1_low, top1_high: accuracy on the test images, and its 95 % confidence interval (Wilson).
        median_ms, p95_ms: time for one image; None if ``compare`` did not measure this variant.
        chosen: whether this is the variant to ship: the one that was exported last, or the default of export if none
            was exported.
        exported: targets that this variant was exported for.
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
    """A recommended next step: the reason, and a command, which may be empty."""

    command: str
    why: str


@dataclass(frozen=True)
class RunReport:
    """Content of a run's report page.

    Attributes:
        run, name: path of the run, and its folder name.
        page, page_bytes: path and size of the HTML file.
        finished: whether training is finished.
        made: description of the trained model.
        top1: accuracy of the float model on the test images; None until the training is finished.
        loss: mean cross-entropy on the test images, in nats; None until the training is finished.
        splits: number of images in ``train``, ``val`` and ``test``.
        skipped: files in the data that are not images.
        classes: figures of each class.
        figures_of: the model that ``classes`` and ``confusion`` were measured on. This is float Keras, or the variant
            to ship if the predictions of the float model serve as labels; empty if there are no figures.
        confusion: ``confusion[true][predicted]``, counts on the test images, in the order of ``classes``.
        confused: true label, predicted label and count of the most frequent mistakes, at most ten.
        history: metrics of each epoch.
        mistakes_of: model whose mistakes are shown: the variant to ship, or float Keras if there is no variant; empty
            if no mistakes were measured.
        mistakes, mistakes_total: the wrong predictions with the highest scores, and the number of all of them.
        calibration: calibration of each model whose scores were measured.
        variants: the variants in the order of the run, float32 first.
        timed_on: description of the machine on which times were measured; empty if there are none.
        notes: notes from ``compare``.
        missing: what the page lacks, why, and how to add it.
        next: recommended next steps.
    """

    run: str
    name: str
    page: str
    page_bytes: int
    finished: bool
    made: TrainingFacts
    top1: Top1 | None
    loss: float | None
    splits: dict[str, int]
    skipped: int
    classes: tuple[ClassFacts, ...]
    figures_of: str
    confusion: tuple[tuple[int, ...], ...]
    confused: tuple[tuple[str, str, int], ...]
    history: tuple[dict[str, float], ...]
    mistakes_of: str
    mistakes: tuple[Mistake, ...]
    mistakes_total: int
    calibration: tuple[Calibration, ...]
    variants: tuple[VariantFacts, ...]
    timed_on: str
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    next: tuple[Step, ...]

    @property
    def chosen(self) -> VariantFacts | None:
        """Return the variant to ship: the one that was exported last, or the default of export if none was."""
        return next((row for row in self.variants if row.chosen), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-compatible dict."""
        return asdict(self)
