"""Collect the content for a run's report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgerec.compression_methods import FLOAT32, METHODS
from edgerec.data import Dataset, Split
from edgerec.errors import EdgerecError, RunError
from edgerec.recipe import DataSource, Recipe
from edgerec.report.advice import advice
from edgerec.report.content import ClassMetrics, ReportContent, Top1, TrainingInfo, VariantMetrics
from edgerec.report.images import PageImages, page_images
from edgerec.report.scoring import FLOAT, Measurements, measure
from edgerec.train.confidence_calibration import wilson_interval
from edgerec.train.run import PSEUDO_LABELS, Run
from edgerec.train.run_files import ComparisonRecord, VariantRecord
from edgerec.utils.progress import Listener

MAX_CONFUSED = 10

T = TypeVar("T")


def collect_content(
    run: Run,
    loaded: tuple[Dataset, Split] | None,
    missing: list[str],
    data: DataSource | None,
    images: bool,
    listener: Listener,
) -> tuple[ReportContent, PageImages]:
    """Collect a report's content and images.

    The path and size of the HTML file are not set.
    """
    metrics: Mapping[str, Any] = run.metrics if run.finished else {}
    variants = run.variants() if run.finished else {}
    chosen = run.shipped(variants)
    measured = measure(run, *loaded, variants, chosen, listener) if loaded and run.finished else Measurements()
    rows, timed_on, notes = _checked(run, "a variant's report.json or compare.json", lambda: _variants(run, variants))
    metrics_of, figures = _figures(run, metrics, variants, chosen)
    confusion = _checked(run, "metrics.json", lambda: _confusion(figures, run.labels))
    content = ReportContent(
        run=str(run.path),
        name=run.path.name,
        page="",
        page_bytes=0,
        finished=run.finished,
        training=_training_info(run, metrics, images),
        top1=_top1(metrics),
        loss=_float(metrics.get("loss")),
        splits=_checked(run, "split.json", lambda: _splits(run)),
        skipped=len(run.split_record.get("skipped", [])),
        classes=_classes(run, figures, variants.get(chosen or "", {}), loaded),
        metrics_of=metrics_of,
        confusion=confusion,
        confused=_confused(confusion, run.labels),
        history=tuple(run.history()),
        mistakes_of=measured.mistakes_of,
        mistakes=measured.mistakes if images else tuple(replace(row, name="") for row in measured.mistakes),
        mistakes_total=measured.mistakes_total,
        calibration=measured.calibration,
        variants=rows,
        timed_on=timed_on,
        notes=notes,
        missing=(*missing, *measured.missing, *_changed_accuracy(metrics, measured)),
        next=(),
    )
    if images:
        return replace(content, next=advice(content, data)), page_images(run, loaded, content)
    # Folder names can be private, so paths are reduced to file names.
    names = {source: Path(source).name for source in run.recipe.data.sources} | {content.run: content.name}
    without_paths = tuple(_replace_all(text, names) for text in content.missing)
    return replace(content, missing=without_paths, next=advice(replace(content, run=content.name))), PageImages()


def _replace_all(text: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text


def _checked(run: Run, name: str, build: Callable[[], T]) -> T:
    """Call a function that reads a file, and raise :class:`RunError` if the file is damaged."""
    try:
        return build()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        if isinstance(error, EdgerecError):
            raise
        raise RunError(
            f"{run.path}: {name} is damaged ({type(error).__name__}: {error}): restore the file, or recreate it with "
            "--overwrite"
        ) from None


def _training_info(run: Run, metrics: Mapping[str, Any], paths: bool) -> TrainingInfo:
    """Summarize a run's training, and omit private paths if ``paths`` is False."""
    recipe, adopted = run.recipe, metrics.get("adopted")
    side, color = recipe.data.input_size, "RGB" if recipe.data.channels == 3 else "grayscale"
    shown_recipe = recipe if paths else _without_paths(recipe)
    width = "" if recipe.model.width == 1 else f", width {recipe.model.width:g}"
    return TrainingInfo(
        model=adopted["file"] if adopted else f"{shown_recipe.model.arch}{width}",
        adopted=bool(adopted),
        input=f"{side}×{side} {color}",
        parameters=_int(metrics.get("parameters")),
        epochs=int(metrics.get("epochs", len(run.history()))),
        best_epoch=int(metrics.get("best_epoch", 0)),
        seconds=float(metrics.get("seconds", sum(row["seconds"] for row in run.history()))),
        source=shown_recipe.data.title,
        digest=str(run.split_record["digest"]),
        recipe=shown_recipe.to_toml(),
        versions=dict(metrics.get("versions", {})),
        truth="predictions of the adopted model" if (run.path / PSEUDO_LABELS).is_file() else "labels",
    )


def _without_paths(recipe: Recipe) -> Recipe:
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
    val, test = (record.get("val_images", len(record["val"])), record.get("test_images", len(record["test"])))
    return {"train": record["train_images"], "val": val, "test": test}


def _figures(
    run: Run, metrics: Mapping[str, Any], variants: Mapping[str, VariantRecord], chosen: str | None
) -> tuple[str, Mapping[str, Any]]:
    """Return the name and metrics of the model whose per-class metrics the report shows.

    This is the float model or, if the float model's predictions are used as labels, the chosen variant.
    """
    if run.pseudo_labels() is None:
        return FLOAT, metrics
    return (chosen, variants[chosen].get("figures", {})) if chosen else ("", {})


def _classes(
    run: Run, figures: Mapping[str, Any], variant: Mapping[str, Any], loaded: tuple[Dataset, Split] | None
) -> tuple[ClassMetrics, ...]:
    labels = run.labels
    counts: dict[str, list[int]] = {}
    if loaded is not None:
        dataset, split = loaded
        counts = {
            subset: np.bincount(dataset.classes[split.part(subset)], minlength=len(labels)).tolist()
            for subset in ("train", "val", "test")
        }
    by_class = figures.get("per_class", {})
    compressed = variant.get("figures", {}).get("per_class", {})
    rows = []
    for i, label in enumerate(labels):
        row = by_class.get(label, {})
        rows.append(
            ClassMetrics(
                label,
                train=counts["train"][i] if counts else None,
                val=counts["val"][i] if counts else None,
                test=counts["test"][i] if counts else _int(row.get("support")),
                precision=_float(row.get("precision")),
                recall=_float(row.get("recall")),
                f1=_float(row.get("f1")),
                variant_f1=_float(compressed.get(label, {}).get("f1")),
            )
        )
    return tuple(rows)


def _confusion(figures: Mapping[str, Any], labels: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    if not figures.get("confusion"):
        return ()
    counts = np.array(figures["confusion"], np.int64)
    if counts.shape != (len(labels), len(labels)):
        raise ValueError(f"'confusion' must have shape {(len(labels), len(labels))}, got {counts.shape}")
    return tuple(tuple(row) for row in counts.tolist())


def _confused(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> tuple[tuple[str, str, int], ...]:
    wrong = [
        (-count, row, column)
        for row, counts in enumerate(confusion)
        for column, count in enumerate(counts)
        if count and row != column
    ]
    return tuple((labels[row], labels[column], -count) for count, row, column in sorted(wrong)[:MAX_CONFUSED])


def _variants(
    run: Run, variants: Mapping[str, VariantRecord]
) -> tuple[tuple[VariantMetrics, ...], str, tuple[str, ...]]:
    """Return the variants' metrics, and the machine and notes recorded by ``edgerec quantize --compare``."""
    order = [FLOAT32, *(method.variant for method in METHODS.values())]
    comparison = run.comparison() or ComparisonRecord(rows=[], machine="", threads=0, notes=[])
    # A variant whose size changed was created again after the comparison, so the measured time is invalid.
    times = {(row["variant"], row["size_bytes"], row["gzip_bytes"]): row for row in comparison["rows"]}
    chosen, rows, exports = run.shipped(variants), [], run.exports(variants)
    for name in sorted(variants, key=lambda name: (order.index(name) if name in order else len(order), name)):
        about = variants[name]
        form = about["forms"][-1]
        low, high = wilson_interval(float(form["top1"]), int(about["images"]))
        timed = times.get((name, form["size_bytes"], form["gzip_bytes"]))
        rows.append(
            VariantMetrics(
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
                median_ms=_float(timed and timed.get("median_ms")),
                p95_ms=_float(timed and timed.get("p95_ms")),
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


def _changed_accuracy(metrics: Mapping[str, Any], measured: Measurements) -> list[str]:
    """Return a note if the float model's accuracy has changed since training, otherwise an empty list."""
    if measured.float_top1 is None or abs(measured.float_top1 - metrics["accuracy"]) < 1e-9:
        return []
    text = (
        f"the float model now has a top-1 accuracy of {measured.float_top1:.2%} instead of {metrics['accuracy']:.2%} "
        "after training, probably due to different package versions or a different CPU. The misclassified images and "
        "the calibration are from the new measurement"
    )
    return [text]


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _int(value: Any) -> int | None:
    return None if value is None else int(value)
