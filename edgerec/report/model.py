"""What a run's report says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgerec.train.confidence_calibration import Reliability


@dataclass(frozen=True)
class Made:
    """What was trained, and how.

    Attributes:
        model: the architecture, or the file that a run was made of.
        adopted: whether it was trained elsewhere.
        input: ``width×height`` and colours, in words.
        parameters: of the float model; None until it is trained.
        epochs, best_epoch: trained, and the kept one; 0 where nothing was trained here.
        seconds: of training.
        source: where the pictures are; its name alone where none may be told.
        digest: of the data.
        recipe: resolved, as TOML.
        versions: of the packages that trained.
        truth: what answers are compared with: ``labels``, or ``the model's own answers``.
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
    """Part of ``images`` held-out pictures that the float model gets right, 0 to 1, and where the true value is with
    95 % probability as far as so many pictures can tell (Wilson's interval)."""

    value: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class ClassFacts:
    """One class: its pictures in each split, and figures on the held-out ones, of the report's ``figures_of`` and the
    F1 of the variant to ship; None is unknown."""

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
        position, name: position of the image in the data set, and its file name; empty if names are left out.
        truth, answer: true label, and predicted label.
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
    """How far one form's scores can be believed on held-out pictures, ``before`` and ``after`` the temperature that was
    fitted on the validation pictures, as export does."""

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
    """What to do next: a command, or empty, and why."""

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
    made: Made
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
        """The report as JSON values."""
        return asdict(self)
