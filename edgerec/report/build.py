"""Making a run's report: gathering what is known, and writing the page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgerec.compress.methods import FLOAT32, METHODS
from edgerec.data import Dataset, Split
from edgerec.data.readers import NAMED
from edgerec.errors import EdgerecError, OutputExistsError, RunError
from edgerec.recipe import DataSource, Recipe
from edgerec.report.advice import advice
from edgerec.report.html import render
from edgerec.report.images import Pictures, take
from edgerec.report.model import ClassFacts, Made, RunReport, Top1, VariantFacts
from edgerec.report.scoring import FLOAT, Looked, look
from edgerec.train.confidence_calibration import wilson_interval
from edgerec.train.run import PSEUDO_LABELS, Run
from edgerec.utils.atomic import checked_output, refuse_existing, user_path, write_file
from edgerec.utils.command_line import command
from edgerec.utils.optional import require
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)

PAGE = "report.html"
MOST_CONFUSED = 10

T = TypeVar("T")


def write_report(
    run: Run | str | Path,
    out: str | Path | None = None,
    *,
    data: DataSource | None = None,
    pictures: bool = True,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> RunReport:
    """Write a run's report: one HTML page that needs no network, no other file and no script.

    The scores behind calibration and mistakes are computed anew. What cannot be had, as pictures that were moved, is
    left out, and the page says so.

    Args:
        run: a run, finished or not, or its path.
        out: the page; None is ``report.html`` in the run.
        data: where the run's pictures are now, if they were moved.
        pictures: False leaves out pictures, their names and the folders where they lie.
        overwrite: replace a page that is there.
        listener: told of the progress.

    Raises:
        EdgerecError: no run, a damaged one, or ``data`` that is not what it was trained on.
    """
    run = run if isinstance(run, Run) else Run.at(run)
    if not run.begun:
        raise EdgerecError(f"{run.path} is not a run: make one with {command('train', 'DATA', '--out', run.path)}")
    if run.reconstructs:
        raise RunError(
            f"{run.path} is an autoencoder, which a page of answers and mistakes says nothing of: "
            f"look at {run.path / 'plots'} and metrics.json"
        )
    page = run.path / PAGE if out is None else user_path(out)
    if page.is_dir():
        raise OutputExistsError(f"{page} is a folder: give a file's name, as {page / PAGE}")
    checked_output(page, [data or run.recipe.data.source], suffixes=(".html", ".htm"))
    refuse_existing(page, overwrite)
    require("jinja2")  # before anything is computed
    require("matplotlib")
    found, missing = _data(run, data, listener)
    facts, shown = _gather(run, found, missing, data, pictures, listener)
    text = render(replace(facts, page=str(page)), shown)
    write_file(page, text)
    return replace(facts, page=str(page), page_bytes=page.stat().st_size)


def _data(run: Run, data: DataSource | None, listener: Listener) -> tuple[tuple[Dataset, Split] | None, list[str]]:
    """The run's pictures, or why there are none."""
    missing = [place for place in run.recipe.data.sources if place not in NAMED and not Path(place).exists()]
    lost = "no pictures, no counts by class, no mistakes and no calibration"
    if data is None and missing:
        return None, [f"{lost}: {missing[0]} does not exist any more; if the images were moved, add --data"]
    try:
        return run.data(data, listener), []
    except EdgerecError as error:
        if data is not None:
            raise
        return None, [f"{lost}: {error}"]


def _gather(
    run: Run,
    found: tuple[Dataset, Split] | None,
    missing: list[str],
    data: DataSource | None,
    pictures: bool,
    listener: Listener,
) -> tuple[RunReport, Pictures]:
    metrics = run.metrics if run.finished else {}
    variants = run.variants() if run.finished else {}
    chosen = run.shipped(variants)
    looked = look(run, *found, variants, chosen, listener) if found and run.finished else Looked()
    rows, timed_on, notes = _checked(run, "a variant's report.json or compare.json", lambda: _variants(run, variants))
    figures_of, figures = _figures(run, metrics, variants, chosen)
    confusion = _checked(run, "metrics.json", lambda: _confusion(figures, run.labels))
    facts = RunReport(
        run=str(run.path),
        name=run.path.name,
        page="",
        page_bytes=0,
        finished=run.finished,
        made=_checked(run, "metrics.json", lambda: _made(run, metrics, pictures)),
        top1=_checked(run, "metrics.json", lambda: _top1(metrics)),
        loss=_checked(run, "metrics.json", lambda: _real(metrics.get("loss"))),
        splits=_checked(run, "split.json", lambda: _splits(run)),
        skipped=_checked(run, "split.json", lambda: len(run.split_record.get("skipped", []))),
        classes=_checked(run, "metrics.json", lambda: _classes(run, figures, variants.get(chosen or "", {}), found)),
        figures_of=figures_of,
        confusion=confusion,
        confused=_confused(confusion, run.labels),
        history=tuple(run.history()),
        mistakes_of=looked.mistakes_of,
        mistakes=looked.mistakes if pictures else tuple(replace(row, name="") for row in looked.mistakes),
        mistakes_total=looked.mistakes_total,
        calibration=looked.calibration,
        variants=rows,
        timed_on=timed_on,
        notes=notes,
        missing=(*missing, *looked.missing, *_differs(metrics, looked)),
        next=(),
    )
    if pictures:
        return replace(facts, next=advice(facts, data)), take(run, found, facts)
    # Nor does the page say where anything lies here.
    places = {place: Path(place).name for place in run.recipe.data.sources} | {facts.run: facts.name}
    told = tuple(_renamed(text, places) for text in facts.missing)
    return replace(facts, missing=told, next=advice(replace(facts, run=facts.name))), Pictures()


def _renamed(text: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text


def _checked(run: Run, name: str, build: Callable[[], T]) -> T:
    """What ``build`` makes of one of the run's files; raises :class:`RunError` where that is damaged."""
    try:
        return build()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        if isinstance(error, EdgerecError):
            raise
        raise RunError(f"{run.path}: {name} is damaged ({type(error).__name__}: {error})") from None


def _made(run: Run, metrics: Mapping[str, Any], pictures: bool) -> Made:
    recipe, adopted = run.recipe, metrics.get("adopted")
    side, colours = recipe.data.input_size, "RGB" if recipe.data.channels == 3 else "grey"
    told = recipe if pictures else _without_places(recipe)
    width = "" if recipe.model.width == 1 else f", width {recipe.model.width:g}"
    return Made(
        model=adopted["file"] if adopted else f"{told.model.arch}{width}",
        adopted=bool(adopted),
        input=f"{side}×{side} {colours}",
        parameters=_whole(metrics.get("parameters")),
        epochs=int(metrics.get("epochs", len(run.history()))),
        best_epoch=int(metrics.get("best_epoch", 0)),
        seconds=float(metrics.get("seconds", sum(row["seconds"] for row in run.history()))),
        source=told.data.title,
        digest=str(run.split_record["digest"]),
        recipe=told.to_toml(),
        versions=dict(metrics.get("versions", {})),
        truth="the model's own answers" if (run.path / PSEUDO_LABELS).is_file() else "labels",
    )


def _without_places(recipe: Recipe) -> Recipe:
    """The recipe with the names of its files alone, not where they lie."""
    teachers = ",".join(Path(teacher).name for teacher in recipe.distill.teachers.split(","))
    return replace(
        recipe,
        data=recipe.data.without_folders,
        model=replace(recipe.model, arch=Path(recipe.model.arch).name, weights=Path(recipe.model.weights).name),
        distill=replace(recipe.distill, teachers=teachers),
        compress=replace(recipe.compress, calibration=Path(recipe.compress.calibration).name),
    )


def _top1(metrics: Mapping[str, Any]) -> Top1 | None:
    if not metrics:
        return None
    value, count = float(metrics["accuracy"]), int(metrics["images"])
    return Top1(value, *wilson_interval(value, count), count)


def _splits(run: Run) -> dict[str, int]:
    record = run.split_record
    held = {part: int(record.get(f"{part}_images", len(record[part]))) for part in ("val", "test")}
    return {"train": int(record["train_images"])} | held


def _figures(
    run: Run, metrics: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]], chosen: str | None
) -> tuple[str, Mapping[str, Any]]:
    """Whose figures the page shows by class: the float model's, unless its own answers are what is right."""
    if run.pseudo_labels() is None:
        return FLOAT, metrics
    return (chosen, variants[chosen].get("figures", {})) if chosen else ("", {})


def _classes(
    run: Run, figures: Mapping[str, Any], variant: Mapping[str, Any], found: tuple[Dataset, Split] | None
) -> tuple[ClassFacts, ...]:
    labels = run.labels
    counts: dict[str, list[int]] = {}
    if found is not None:
        dataset, split = found
        counts = {
            part: np.bincount(dataset.classes[split.part(part)], minlength=len(labels)).tolist()
            for part in ("train", "val", "test")
        }
    by_class = figures.get("per_class", {})
    compressed = variant.get("figures", {}).get("per_class", {})
    rows = []
    for i, label in enumerate(labels):
        row = by_class.get(label, {})
        rows.append(
            ClassFacts(
                label,
                train=counts["train"][i] if counts else None,
                val=counts["val"][i] if counts else None,
                test=counts["test"][i] if counts else _whole(row.get("support")),
                precision=_real(row.get("precision")),
                recall=_real(row.get("recall")),
                f1=_real(row.get("f1")),
                variant_f1=_real(compressed.get(label, {}).get("f1")),
            )
        )
    return tuple(rows)


def _confusion(figures: Mapping[str, Any], labels: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    if not figures.get("confusion"):
        return ()
    counts = np.array(figures["confusion"], np.int64)
    if counts.shape != (len(labels), len(labels)):
        raise ValueError(f"confusion is {counts.shape}, for {len(labels)} labels")
    return tuple(tuple(row) for row in counts.tolist())


def _confused(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> tuple[tuple[str, str, int], ...]:
    wrong = [
        (-count, row, column)
        for row, counts in enumerate(confusion)
        for column, count in enumerate(counts)
        if count and row != column
    ]
    return tuple((labels[row], labels[column], -count) for count, row, column in sorted(wrong)[:MOST_CONFUSED])


def _variants(
    run: Run, variants: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[VariantFacts, ...], str, tuple[str, ...]]:
    """A row for each variant, the machine that compare took times on, and what compare found."""
    order = [FLOAT32, *(method.variant for method in METHODS.values())]
    comparison = run.comparison() or {"rows": []}
    # A variant that was made anew since has other bytes, and no time.
    times = {(row["variant"], row["size_bytes"], row["gzip_bytes"]): row for row in comparison["rows"]}
    chosen, rows, exports = run.shipped(variants), [], run.exports(variants)
    for name in sorted(variants, key=lambda name: (order.index(name) if name in order else len(order), name)):
        about = variants[name]
        form = about["forms"][-1]
        low, high = wilson_interval(float(form["top1"]), int(about["images"]))
        timed = times.get((name, form["size_bytes"], form["gzip_bytes"]), {})
        rows.append(
            VariantFacts(
                variant=name,
                method=str(about["method"]),
                precision=str(about["precision"]),
                top1=float(form["top1"]),
                drop_points=float(about["drop_points"]),
                max_drop=float(about["max_drop"]),
                agreement=float(form["agreement"]),
                size_bytes=int(form["size_bytes"]),
                gzip_bytes=int(form["gzip_bytes"]),
                sparsity=float(about["sparsity"]),
                median_ms=_real(timed.get("median_ms")),
                p95_ms=_real(timed.get("p95_ms")),
                chosen=name == chosen,
                top1_low=low,
                top1_high=high,
                exported=tuple(dict.fromkeys(export["target"] for export in exports if export["variant"] == name)),
            )
        )
    if not any(row.median_ms is not None for row in rows):
        return tuple(rows), "", ()
    threads = comparison["threads"]
    machine = f"{comparison['machine']}, {threads} thread{'s' if threads != 1 else ''}"
    return tuple(rows), machine, tuple(comparison["notes"])


def _differs(metrics: Mapping[str, Any], looked: Looked) -> list[str]:
    """Whether the float model answers here as it did when it was measured."""
    if looked.float_top1 is None or abs(looked.float_top1 - metrics["accuracy"]) < 1e-9:
        return []
    text = (
        f"the float model's top-1 is {looked.float_top1:.2%} here and was {metrics['accuracy']:.2%} after training: "
        "other package versions or another processor; mistakes and calibration are of here and now"
    )
    return [text]


def _real(value: Any) -> float | None:
    return None if value is None else float(value)


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
