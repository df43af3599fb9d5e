"""All the ways to compress a run, side by side."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgerec.compress import compression_plots as plots
from edgerec.compress.context import Bench
from edgerec.compress.methods import FLOAT32, METHODS
from edgerec.compress.quantize import check_used, make_or_take, with_options
from edgerec.compress.variant_report import QuantizeReport
from edgerec.errors import ModelError, RecipeError, unknown
from edgerec.recipe import DataSource
from edgerec.runtime.timing import Timing, time_models
from edgerec.train.confidence_calibration import wilson_interval
from edgerec.train.run import Run
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)

THREADS = 1
# Two medians of the same file differ by so much here and there: a smaller gain is none.
FASTER = 0.9


@dataclass(frozen=True)
class Row:
    """One variant in the comparison.

    Attributes:
        method, variant: how it was made, and its name.
        top1: top-1 accuracy on the test images, 0 to 1.
        drop_points: top-1 lost against the float Keras model, in percentage points.
        agreement: fraction of the test images with the same prediction as the float Keras model.
        size_bytes, gzip_bytes: size of the file, and size after compression with gzip.
        sparsity: fraction of zeros among the int8 weights.
        median_ms, p95_ms: median and 95th percentile of the time for one image on this machine, in milliseconds.
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
class Comparison:
    """The table of all variants.

    Attributes:
        run: the run's folder.
        float_top1: top-1 accuracy of the float Keras model, 0 to 1.
        images: number of test images.
        threads, machine: number of threads and machine with which the times were measured.
        rows: one row for each variant that could be made, float32 first.
        notes: remarks on the figures, and the reasons why methods could not be used.
        plot: path of a PNG with bars of accuracy, bytes and milliseconds.
    """

    run: str
    float_top1: float
    images: int
    threads: int
    machine: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    plot: str

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return asdict(self)


def compare(
    run: Run | str | Path,
    methods: Sequence[str] | None = None,
    *,
    data: DataSource | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
    **options: Any,
) -> Comparison:
    """Make each method's variant of a run where it is not there yet, and compare them all.

    Writes ``compare.json`` and ``plots/compare.png`` into the run.

    Args:
        run: a finished run, or its path.
        methods: of :data:`~edgerec.compress.methods.METHODS`; None: all, but ``mixed`` only with ``float_layers``.
        data: where the run's pictures are now, if they were moved.
        overwrite: make variants anew that are there.
        listener: told of the progress.
        options: as for :func:`~edgerec.compress.quantize.quantize`: ``channels``, ``sparsity``, ``clusters``,
            ``weight_bits``, ``epochs``, ``learning_rate``, ``teacher_weight``, ``max_drop``, ``skip``,
            ``float_layers``, ``calibration``.

    Raises:
        EdgerecError: the run or its data do not allow it. A method that the model does not take is left out, and
            the notes say why.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    if methods is None:
        methods = [name for name in METHODS if name != "mixed" or options.get("float_layers")]
    for name in methods:
        if name not in METHODS:
            raise RecipeError(unknown("method", name, METHODS))
    recipe = with_options(run.recipe, options)
    check_used(methods, recipe, options)
    with Bench.open(run, recipe, data, listener) as bench:
        comparison = _compared(bench, methods, overwrite)
        plots.comparison_plot(comparison.float_top1, comparison.rows, Path(comparison.plot), bench.measure.top1_name)
        bench.run.write_json("compare.json", comparison.to_dict())
    return comparison


def _compared(bench: Bench, methods: Sequence[str], overwrite: bool) -> Comparison:
    run = bench.run
    reports, notes = {"none": bench.float32()}, []
    for name in methods:
        log.info("%s: %s", name, METHODS[name].variant)
        try:
            reports[name] = make_or_take(bench.with_method(name), overwrite)
        except ModelError as error:
            notes.append(f"{name} is left out: {error}")
    times = _times(bench, reports)
    rows = tuple(_row(name, report, times[name]) for name, report in reports.items())
    return Comparison(
        run=str(run.path),
        float_top1=reports["none"].forms[0].top1,
        images=reports["none"].images,
        threads=THREADS,
        machine=platform.machine(),
        rows=rows,
        notes=(*notes, *_speed_notes(rows)),
        plot=str(run.path / "plots" / "compare.png"),
    )


def _times(bench: Bench, reports: dict[str, QuantizeReport]) -> dict[str, Timing]:
    pixels = bench.dataset.images[bench.split.val[0]]
    models = {
        name: (bench.measure.model(Path(report.path).read_bytes(), bench.recipe.normalise, threads=THREADS), pixels)
        for name, report in reports.items()
    }
    return time_models(models)


def _row(method: str, report: QuantizeReport, timing: Timing) -> Row:
    form = report.forms[-1]
    low, high = wilson_interval(form.top1, report.images)
    return Row(
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


def _speed_notes(rows: Sequence[Row]) -> list[str]:
    """Where zeros or shared weights buy no time, in words."""
    by_variant = {row.variant: row for row in rows}
    no_faster = []
    for row in rows:
        dense = by_variant.get(METHODS[row.method].like) if row.variant != FLOAT32 else None
        if dense is not None and row.median_ms > FASTER * dense.median_ms:
            time, size = row.median_ms / dense.median_ms, row.gzip_bytes / dense.gzip_bytes
            no_faster.append(
                f"{row.variant} takes {time:.2f} of {dense.variant}'s time and {size:.2f} of its gzip bytes"
            )
    if not no_faster:
        return []
    return [f"zeros and shared weights buy no speed here, only a smaller download: {'; '.join(no_faster)}"]
