"""What a run's figures ask for next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgerec.recipe import DataSource
from edgerec.report.model import RunReport, Step
from edgerec.train.baseline import is_near
from edgerec.utils.command_line import command, data_options

# Points between training and validation from which on a model knows its pictures by heart.
OVERFIT_POINTS = 5.0
# How much the F1 of a class may be below the mean of all.
WEAK_F1 = 0.1
# Of what guessing gets right, so many times are hardly better.
GUESSING = 2
# Of the pictures of the most frequent class, what the rarest should have.
BALANCE = 1 / 3
# Held-out pictures of a class that say something about it.
ENOUGH = 20
# Expected calibration error from which on scores mislead.
UNCALIBRATED = 0.05
NAMED = 3


def advice(report: RunReport, data: DataSource | None = None) -> tuple[Step, ...]:
    """Return the next steps, the most urgent first; ``data`` is where the images are now, if they were moved."""
    run, moved = report.run, data_options(data)
    if not report.finished:
        resume = command("train", "--resume", "--out", run)
        return (Step(resume, "the training is unfinished: this resumes it after its last complete epoch"),)
    if _is_near_majority(report):
        return tuple(_better(report))
    return (*_better(report), *_smaller(report, run, moved), *_out(report, run, moved))


def _is_near_majority(report: RunReport) -> bool:
    counts = [row.test or 0 for row in report.classes]
    if report.top1 is None or not sum(counts):
        return False
    return is_near(report.top1.value, max(counts) / sum(counts), report.top1.images)


def _better(report: RunReport) -> Iterator[Step]:
    """What would make the model itself better, or the figures more certain."""
    if _is_near_majority(report) or (report.top1 and report.top1.value < GUESSING / len(report.classes)):
        yield Step(
            command("data", "check", report.made.source),
            "the accuracy is hardly better than guessing or always predicting the most frequent class: check images "
            "and labels, then train with more images, more train.epochs or another train.learning_rate",
        )
    elif report.made.truth == "labels":
        yield from _weak(report)
    best = next((row for row in report.history if row["epoch"] == report.made.best_epoch), None)
    if best and (gap := 100 * (best["accuracy"] - best["val_accuracy"])) > OVERFIT_POINTS:
        yield Step(
            "",
            f"training is {gap:.1f} points better than validation: more pictures, stronger augmentation "
            "(the recipe's augment section) or model.dropout help",
        )
    if best and report.made.best_epoch == report.made.epochs > 1:
        yield Step("", "the last epoch was the best one: more train.epochs may still help")


def _weak(report: RunReport) -> Iterator[Step]:
    known = [(row.f1, row.label) for row in report.classes if row.f1 is not None and row.test]
    if known:
        mean = sum(f1 for f1, _ in known) / len(known)
        if weak := [label for f1, label in sorted(known) if f1 < mean - WEAK_F1]:
            yield Step("", f"{_list(weak)}: clearly weaker than the others; look at their mistakes, add pictures")
    if few := [row.label for row in report.classes if row.test is not None and row.test < ENOUGH]:
        yield Step(
            "", f"{_list(few)}: fewer than {ENOUGH} held-out pictures, so that their figures say little; add pictures"
        )
    trained = [(row.train, row.label) for row in report.classes if row.train is not None]
    if trained and min(trained)[0] < BALANCE * max(trained)[0]:
        yield Step(
            "",
            f"{min(trained)[1]} has {min(trained)[0]:,} pictures to train on, {max(trained)[1]} has "
            f"{max(trained)[0]:,}: add some, or train with train.class_weights=balanced",
        )


def _smaller(report: RunReport, run: str, moved: Sequence[str]) -> Iterator[Step]:
    """What quantization asks for."""
    compressed = [row for row in report.variants if row.variant != "float32"]
    if not compressed:
        yield Step(
            command("quantize", run, *moved), "no variant yet: int8 is smaller, faster, and what most devices run"
        )
        return
    over = [row for row in compressed if row.drop_points > row.max_drop]
    if over:
        worst = max(over, key=lambda row: row.drop_points)
        others = f", as do {len(over) - 1} more" if len(over) > 1 else ""
        yield Step(
            command("parity", run, "--variant", worst.variant, *moved),
            f"{worst.variant} loses {worst.drop_points:.2f} points, more than allowed{others}: which layer costs them",
        )
    if not report.timed_on:
        yield Step(
            command("quantize", run, "--compare", *moved), "all the ways to compress it, with times on this machine"
        )


def _out(report: RunReport, run: str, moved: Sequence[str]) -> Iterator[Step]:
    """What brings it to a device."""
    if report.chosen is None:
        return
    shown = next((row for row in report.calibration if row.form == report.chosen.variant), None)
    if report.chosen.exported:  # which may differ from the default
        moved = ("--variant", report.chosen.variant, *moved)
    fitted = f"; it takes the temperature {shown.temperature:g} along" if shown else ""
    if shown and shown.after.ece > UNCALIBRATED:
        yield Step(
            command("export", run, "--target", "rpi", "--precision", "0.95", *moved),
            f"its scores are {100 * shown.after.ece:.0f} points off even with a temperature: thresholds for each "
            "label answer unknown instead",
        )
        return
    yield Step(
        command("export", run, "--target", "rpi", *moved),
        f"the bundle for a device, of {report.chosen.variant}{fitted}",
    )


def _list(labels: list[str]) -> str:
    more = len(labels) - NAMED
    return ", ".join(labels[:NAMED]) + (f" and {more} more" if more > 0 else "")
