"""List runs, and compare two of them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.errors import EdgerecError, RunError
from edgerec.recipe import Recipe
from edgerec.train.run import Run, best_int8
from edgerec.train.run_files import SplitRecord
from edgerec.train.split_record import separated_digests

log = logging.getLogger(__name__)

# Maximum folder depth when searching for runs.
DEPTH = 3
# Half-width of a 95 % confidence interval, in standard deviations.
DEVIATIONS = 1.96


@dataclass(frozen=True)
class RunSummary:
    """A run's summary, as one row of a table.

    Attributes:
        run: path of the run's folder.
        state: ``finished``, ``epoch 3 of 12`` for an unfinished run, or ``damaged: REASON``.
        architecture: name of the architecture, or an empty string if the run is damaged.
        data: source of the images.
        accuracy: top-1 accuracy of the float model on the test images, 0 to 1, or None for unfinished runs and
            autoencoders.
        images: number of test images.
        variant: name of the int8 variant with the best validation accuracy, or None if there is no int8 variant.
        variant_top1: top-1 accuracy of this variant on the test images, 0 to 1.
        variant_bytes: size of this variant's .tflite file in bytes.
        modified_s: time of the run's last modification, as Unix time in seconds.
    """

    run: str
    state: str
    architecture: str = ""
    data: str = ""
    accuracy: float | None = None
    images: int | None = None
    variant: str | None = None
    variant_top1: float | None = None
    variant_bytes: int | None = None
    modified_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serializable dictionary."""
        return asdict(self)


def list_runs(folder: str | Path = "runs") -> list[RunSummary]:
    """Summarize the runs in ``folder`` and its subfolders (up to three levels), sorted by path.

    Raises:
        EdgerecError: the folder does not exist.
    """
    root = Path(folder)
    if not root.is_dir():
        raise EdgerecError(
            f"{root} is not a folder: pass the folder that contains your runs, as in 'edgerec runs FOLDER'"
        )
    return [summarize(run) for run in _runs(root, DEPTH)]


def summarize(run: Run) -> RunSummary:
    """Summarize a run. If the run is damaged, the summary's ``state`` says why."""
    path, modified_s = str(run.path), run.path.stat().st_mtime
    try:
        recipe, best = run.recipe, None
        state, accuracy, images = f"epoch {len(run.history())} of {recipe.train.epochs}", None, None
        if run.finished:
            metrics, variants = run.metrics, run.variants()
            state, accuracy, images = "finished", metrics.get("accuracy"), metrics["images"]
            name = best_int8(variants)
            best = (name, variants[name]["forms"][-1]) if name else None
        return RunSummary(
            path,
            state,
            recipe.model.arch,
            _source_text(recipe.data.source),
            accuracy,
            images,
            best[0] if best else None,
            best[1]["top1"] if best else None,
            best[1]["size_bytes"] if best else None,
            modified_s,
        )
    except (EdgerecError, KeyError, TypeError) as error:
        return RunSummary(path, f"damaged: {error}", modified_s=modified_s)


@dataclass(frozen=True)
class Setting:
    """The values of a recipe key that differs between two runs."""

    key: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Metric:
    """A metric's values in two runs. The value is None for a run without this metric."""

    name: str
    first: float | None
    second: float | None


@dataclass(frozen=True)
class RunDifference:
    """The differences between two runs, as returned by :func:`diff_runs`.

    Attributes:
        first, second: paths of the runs.
        same_data: whether both runs were trained on the same images.
        same_test: whether both runs were evaluated on the same test images. Otherwise, their accuracies cannot be
            compared.
        settings: recipe keys with different values.
        figures: accuracy (0 to 1), parameters, training time in seconds, and each variant's top-1 accuracy and size in
            bytes.
        classes: recall of each class on the test images, 0 to 1, sorted by the size of the change, largest first.
        accuracy_change: accuracy of the second run minus accuracy of the first run, in percentage points, or None if
            one of the runs has no accuracy.
        noise_points: half-width of the 95 % confidence interval of ``accuracy_change`` in percentage points, for two
            independent binomial samples. A smaller change may be due to chance.
    """

    first: str
    second: str
    same_data: bool
    same_test: bool
    settings: tuple[Setting, ...]
    figures: tuple[Metric, ...]
    classes: tuple[Metric, ...]
    accuracy_change: float | None
    noise_points: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serializable dictionary."""
        return asdict(self)


def diff_runs(first: str | Path, second: str | Path) -> RunDifference:
    """Compare two finished runs' settings and results.

    Raises:
        EdgerecError: one of the folders is not a finished run, or is damaged.
    """
    runs = Run.open(first), Run.open(second)
    metrics, records = [run.metrics for run in runs], [run.split_record for run in runs]
    for run, record in zip(runs, records, strict=True):
        if "test" not in record:
            raise RunError(f"{run.path}: split.json does not list the test images: train again with --overwrite")
    same_data = records[0]["digest"] == records[1]["digest"]
    accuracies = [values["accuracy"] for values in metrics if "accuracy" in values]
    change = noise = None
    if len(accuracies) == 2:
        change = (accuracies[1] - accuracies[0]) * 100
        variances = [p * (1 - p) / values["images"] for p, values in zip(accuracies, metrics, strict=True)]
        noise = DEVIATIONS * math.sqrt(sum(variances)) * 100
    return RunDifference(
        first=str(runs[0].path),
        second=str(runs[1].path),
        same_data=same_data,
        same_test=_same_test(*records),
        settings=tuple(_settings(runs[0].recipe, runs[1].recipe)),
        figures=tuple(_metrics(runs, metrics)),
        classes=tuple(_classes(metrics)),
        accuracy_change=change,
        noise_points=noise,
    )


def _same_test(first: SplitRecord, second: SplitRecord) -> bool:
    """Compare two runs' test images by content, or by name if an older version wrote one of the runs."""
    contents, others = first.get("contents"), second.get("contents")
    if contents and others and contents["of"] == others["of"]:
        one, other = (np.unique(separated_digests(each["test"])) for each in (contents, others))
        return np.array_equal(one, other)
    # The split record of packed data contains no image names.
    return first["test"] == second["test"] and (first["digest"] == second["digest"] or bool(first["test"]))


def _runs(folder: Path, depth: int) -> Iterator[Run]:
    run = Run(folder)
    if run.begun:
        yield run
        return
    if depth:
        try:
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except PermissionError:
            log.warning("cannot read the folder %s (permission denied): its runs are not listed", folder)
            return
        for name in names:
            if not name.startswith("."):
                yield from _runs(folder / name, depth - 1)


def _settings(first: Recipe, second: Recipe) -> Iterator[Setting]:
    others = second.flattened
    for key, value in first.flattened.items():
        if value != others[key]:
            yield Setting(key, value, others[key])


def _metrics(runs: tuple[Run, Run], metrics: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    for name in ("accuracy", "val_accuracy", "error", "parameters", "best_epoch", "seconds"):
        if any(name in values for values in metrics):
            yield Metric(name, *(values.get(name) for values in metrics))
    variants = [run.variants() for run in runs]
    for name in sorted(variants[0].keys() | variants[1].keys()):
        forms: list[Mapping[str, Any]] = [each[name]["forms"][-1] if name in each else {} for each in variants]
        yield Metric(f"{name} top-1", *(form.get("top1") for form in forms))
        yield Metric(f"{name} bytes", *(form.get("size_bytes") for form in forms))


def _classes(metrics: Sequence[Mapping[str, Any]]) -> list[Metric]:
    tables = [values.get("per_class", {}) for values in metrics]
    shared = [label for label in tables[0] if label in tables[1]]
    recalls = [Metric(label, *(table[label].get("recall") for table in tables)) for label in shared]
    return sorted(recalls, key=lambda row: -abs((row.second or 0) - (row.first or 0)))


def _source_text(source: object) -> str:
    return source if isinstance(source, str) else ", ".join(map(str, source))  # type: ignore[call-overload]
