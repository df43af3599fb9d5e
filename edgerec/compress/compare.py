"""Compare a run's variants by accuracy, size and inference time."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgerec.compress import compression_plots as plots
from edgerec.compress.context import CompressionContext
from edgerec.compress.quantize import check_options, require_float_layers, reuse_or_make, with_options
from edgerec.compress.variant_report import QuantizeReport
from edgerec.compression_methods import FLOAT32, METHODS
from edgerec.errors import ModelError, RecipeError, unknown
from edgerec.recipe import DataSource
from edgerec.runtime.latency_comparison import Timing, time_models
from edgerec.train.confidence_calibration import wilson_interval
from edgerec.train.run import Run
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)

THREADS = 1
# Ignore speedups below 10 %, because repeated latency measurements vary by this much.
FASTER = 0.9


@dataclass(frozen=True)
class VariantRow:
    """A variant's accuracy, size and latency.

    Attributes:
        method, variant: compression method and name of the variant.
        top1: top-1 accuracy on the test images, 0 to 1.
        drop_points: loss of top-1 accuracy compared with the float Keras model, in percentage points.
        agreement: fraction of the test images with the same prediction as the float Keras model.
        size_bytes, gzip_bytes: size of the file, and size after compression with gzip.
        sparsity: fraction of zeros among the int8 weights.
        median_ms, p95_ms: median and 95th percentile of the latency for one image on this machine, in milliseconds.
        error: mean reconstruction error of an autoencoder.
        top1_low, top1_high: 95 % confidence interval of ``top1`` for this number of test images (Wilson).
    """

    method: str
    variant: str
    top1: float
    drop_points: float
    agreement: float
    size_bytes: int
    gzip_bytes: int
    sparsity: float
    median_ms: float
    p95_ms: float
    error: float | None = None
    top1_low: float = 0.0
    top1_high: float = 1.0


@dataclass(frozen=True)
class MethodComparison:
    """Comparison of the accuracy, size and latency of a run's variants.

    Attributes:
        run: the run's folder.
        float_top1: top-1 accuracy of the float Keras model, 0 to 1.
        images: number of test images.
        threads, machine: number of threads and type of machine used to measure the latency.
        rows: one row for each variant that could be created, float32 first.
        notes: notes on the measurements, and the reasons why methods were skipped.
        plot: path of a PNG file with a bar chart of accuracy, size and latency.
    """

    run: str
    float_top1: float
    images: int
    threads: int
    machine: str
    rows: tuple[VariantRow, ...]
    notes: tuple[str, ...]
    plot: str

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as a JSON-serializable dictionary."""
        return asdict(self)


def compare(
    run: Run | str | Path,
    methods: Sequence[str] | None = None,
    *,
    data: DataSource | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
    **options: Any,
) -> MethodComparison:
    """Compress a run's model with several methods, and compare the accuracy, size and latency of the results.

    Write ``compare.json`` and ``plots/compare.png`` to the run's folder.

    Args:
        run: a finished run, or its path.
        methods: keys of :data:`~edgerec.compression_methods.METHODS`. None uses all methods, but ``mixed`` only if
            ``float_layers`` is set.
        data: current location of the run's images, if they were moved.
        overwrite: replace existing variants.
        listener: receives the progress.
        options: as for :func:`~edgerec.compress.quantize.quantize`: ``channels``, ``sparsity``, ``clusters``,
            ``weight_bits``, ``epochs``, ``learning_rate``, ``teacher_weight``, ``max_drop``, ``skip``,
            ``float_layers``, ``calibration``.

    Raises:
        EdgerecError: the run or its data cannot be used. Methods that the model does not support are skipped, and the
            notes contain the reason.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    if methods is None:
        methods = [name for name in METHODS if name != "mixed" or options.get("float_layers")]
    for name in methods:
        if name not in METHODS:
            raise RecipeError(unknown("method", name, METHODS))
    recipe = with_options(run.recipe, options)
    check_options(methods, recipe, options)
    require_float_layers(methods, recipe)
    with CompressionContext.open(run, recipe, data, listener) as context:
        comparison = _compared(context, methods, overwrite)
        plots.comparison_plot(comparison.float_top1, comparison.rows, Path(comparison.plot), context.measure.top1_name)
        context.run.write_json("compare.json", comparison.to_dict())
    return comparison


def _compared(context: CompressionContext, methods: Sequence[str], overwrite: bool) -> MethodComparison:
    run = context.run
    reports, notes = {"none": context.float32()}, []
    for name in methods:
        log.info("%s: %s", name, METHODS[name].variant)
        try:
            reports[name] = reuse_or_make(context.with_method(name), overwrite)
        except ModelError as error:
            notes.append(f"{name} is omitted: {error}")
    times = _times(context, reports)
    rows = tuple(_row(name, report, times[name]) for name, report in reports.items())
    return MethodComparison(
        run=str(run.path),
        float_top1=reports["none"].forms[0].top1,
        images=reports["none"].images,
        threads=THREADS,
        machine=platform.machine(),
        rows=rows,
        notes=(*notes, *speed_notes(rows)),
        plot=str(run.path / "plots" / "compare.png"),
    )


def _times(context: CompressionContext, reports: dict[str, QuantizeReport]) -> dict[str, Timing]:
    pixels = context.dataset.images[context.split.val[0]]
    models = {
        name: (context.measure.model(Path(report.path).read_bytes(), context.recipe.normalize, threads=THREADS), pixels)
        for name, report in reports.items()
    }
    return time_models(models)


def _row(method: str, report: QuantizeReport, timing: Timing) -> VariantRow:
    form = report.forms[-1]
    low, high = wilson_interval(form.top1, report.images)
    return VariantRow(
        method=method,
        variant=report.variant,
        top1=form.top1,
        drop_points=report.drop_points,
        agreement=form.agreement,
        size_bytes=form.size_bytes,
        gzip_bytes=form.gzip_bytes,
        sparsity=report.sparsity,
        median_ms=timing.median_ms,
        p95_ms=timing.p95_ms,
        error=form.error,
        top1_low=low,
        top1_high=high,
    )


def speed_notes(rows: Sequence[VariantRow]) -> list[str]:
    """Return a note if pruning or clustering did not make a variant faster."""
    by_variant = {row.variant: row for row in rows}
    no_faster = []
    for row in rows:
        dense = by_variant.get(METHODS[row.method].like) if row.variant != FLOAT32 else None
        if dense is not None and row.median_ms > FASTER * dense.median_ms:
            time, size = row.median_ms / dense.median_ms, row.gzip_bytes / dense.gzip_bytes
            no_faster.append(
                f"{row.variant} takes {time:.2f} times as long as {dense.variant}, with {size:.2f} times its gzip size"
            )
    if not no_faster:
        return []
    text = "pruning and clustering do not make the model faster on this machine, only the gzipped file smaller"
    return [f"{text}: {'; '.join(no_faster)}"]
