"""Recommend the next steps for a run, based on its metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgerec.recipe import DataSource
from edgerec.report.content import Recommendation, ReportContent
from edgerec.train.baseline import is_near
from edgerec.utils.command_line import command, data_options

# A model overfits if training accuracy exceeds validation accuracy by more than this many percentage points.
OVERFIT_POINTS = 5.0
# Classes whose F1 score is lower than the mean by more than this value are reported as weak.
WEAK_F1 = 0.1
# An accuracy below this multiple of the chance level is reported as hardly better than chance.
GUESSING = 2
# Training data is imbalanced if the smallest class has less than this fraction of the largest class's images.
BALANCE = 1 / 3
# Class metrics are unreliable if a class has fewer test images than this.
MIN_TEST_IMAGES = 20
# Models with a higher expected calibration error (ECE) count as poorly calibrated.
UNCALIBRATED = 0.05
MAX_LISTED_LABELS = 3


def advice(report: ReportContent, data: DataSource | None = None) -> tuple[Recommendation, ...]:
    """Return the recommended next steps, most important first.

    Args:
        report: the report's content.
        data: new location of the images if they were moved.
    """
    run, moved = report.run, data_options(data)
    if not report.finished:
        resume = command("train", "--resume", "--out", run)
        return (Recommendation(resume, "training is not finished: resume it after the last completed epoch"),)
    if _is_near_majority(report):
        return tuple(_training_steps(report))
    return (*_training_steps(report), *_quantize_steps(report, run, moved), *_export_steps(report, run, moved))


def _is_near_majority(report: ReportContent) -> bool:
    counts = [row.test or 0 for row in report.classes]
    if report.top1 is None or not sum(counts):
        return False
    return is_near(report.top1.value, max(counts) / sum(counts), report.top1.images)


def _training_steps(report: ReportContent) -> Iterator[Recommendation]:
    """Yield recommendations that improve the float model or make its metrics more reliable."""
    if _is_near_majority(report) or (report.top1 and report.top1.value < GUESSING / len(report.classes)):
        yield Recommendation(
            command("data", "check", report.training.source),
            "the accuracy is hardly better than random guessing or always predicting the most frequent class: check "
            "the images and labels, and train with more images, more train.epochs or a different train.learning_rate",
        )
    elif report.training.truth == "labels":
        yield from _class_steps(report)
    best = next((row for row in report.history if row["epoch"] == report.training.best_epoch), None)
    if best and (gap := 100 * (best["accuracy"] - best["val_accuracy"])) > OVERFIT_POINTS:
        yield Recommendation(
            "",
            f"the model overfits, because the training accuracy is {gap:.1f} points above the validation accuracy: add "
            "images, or use stronger augmentation (the recipe's augment section) or model.dropout",
        )
    if best and report.training.best_epoch == report.training.epochs > 1:
        yield Recommendation(
            "",
            "the last epoch had the best validation accuracy, so training for more train.epochs may improve it further",
        )


def _class_steps(report: ReportContent) -> Iterator[Recommendation]:
    """Yield recommendations for classes with a low F1 score or few images."""
    known = [(row.f1, row.label) for row in report.classes if row.f1 is not None and row.test]
    if known:
        mean = sum(f1 for f1, _ in known) / len(known)
        if weak := [label for f1, label in sorted(known) if f1 < mean - WEAK_F1]:
            yield Recommendation(
                "",
                f"the F1 score of {_list(weak)} is well below the mean: check the misclassified images, and add "
                "more images",
            )
    few = [row.label for row in report.classes if row.test is not None and row.test < MIN_TEST_IMAGES]
    if few:
        verb = "has" if len(few) == 1 else "have"
        yield Recommendation(
            "",
            f"{_list(few)} {verb} fewer than {MIN_TEST_IMAGES} test images, so the metrics are not reliable: "
            "add more images",
        )
    trained = [(row.train, row.label) for row in report.classes if row.train is not None]
    if trained and min(trained)[0] < BALANCE * max(trained)[0]:
        yield Recommendation(
            "",
            f"{min(trained)[1]} has only {min(trained)[0]:,} training images, but {max(trained)[1]} has "
            f"{max(trained)[0]:,}: add more images, or train with train.class_weights=balanced",
        )


def _quantize_steps(report: ReportContent, run: str, moved: Sequence[str]) -> Iterator[Recommendation]:
    compressed = [row for row in report.variants if row.variant != "float32"]
    if not compressed:
        yield Recommendation(
            command("quantize", run, *moved),
            "quantize the model: int8 models are smaller and faster, and most devices support them",
        )
        return
    over = [row for row in compressed if row.drop_points > row.max_drop]
    if over:
        worst = max(over, key=lambda row: row.drop_points)
        others = f" (and so do {len(over) - 1} other variants)" if len(over) > 1 else ""
        yield Recommendation(
            command("parity", run, "--variant", worst.variant, *moved),
            f"{worst.variant} loses more accuracy than allowed ({worst.drop_points:.2f} points){others}: find the "
            "layers that cause the loss",
        )
    if not report.timed_on:
        yield Recommendation(
            command("quantize", run, "--compare", *moved),
            "compare all compression methods and measure their inference times on this machine",
        )


def _export_steps(report: ReportContent, run: str, moved: Sequence[str]) -> Iterator[Recommendation]:
    if report.chosen is None:
        return
    calibration = next((row for row in report.calibration if row.model == report.chosen.variant), None)
    if report.chosen.exported:  # the exported variant may differ from the default variant
        moved = ("--variant", report.chosen.variant, *moved)
    fitted = f" (the bundle will contain the fitted temperature {calibration.temperature:g})" if calibration else ""
    if calibration and calibration.after.ece > UNCALIBRATED:
        yield Recommendation(
            command("export", run, "--target", "rpi", "--precision", "0.95", *moved),
            f"the calibration error is {calibration.after.ece:.0%} even with temperature scaling: fit a threshold for "
            "each label so that uncertain images get the label 'unknown'",
        )
        return
    yield Recommendation(
        command("export", run, "--target", "rpi", *moved),
        f"export {report.chosen.variant} for a device{fitted}",
    )


def _list(labels: list[str]) -> str:
    more = len(labels) - MAX_LISTED_LABELS
    return ", ".join(labels[:MAX_LISTED_LABELS]) + (f" and {more} more" if more > 0 else "")
