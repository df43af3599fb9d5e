"""Implement the ``edgerec quantize`` command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgerec.cli.output import (
    JsonOption,
    parity_table,
    progress,
    repeat_command,
    report_worker,
    say,
    show_json,
    suggest,
    table,
)
from edgerec.compression_methods import AUTO, METHODS
from edgerec.utils.command_line import data_options

if TYPE_CHECKING:
    from edgerec.compress import QuantizeReport
    from edgerec.compress.compare import MethodComparison
    from edgerec.recipe import DataSource


_METHODS, _TUNING, _MODEL = "Settings of the methods", "Fine-tuning", "For a model that edgerec did not train"


def quantize(
    context: typer.Context,
    run: Path = typer.Argument(
        ..., metavar="RUN|MODEL", help="A finished run, or a model: .keras, .h5 or a SavedModel folder."
    ),
    method: str | None = typer.Option(
        None,
        metavar="NAME",
        help=f"{', '.join((AUTO, *METHODS))}. auto uses post-training quantization (ptq), or quantization-aware "
        "training (qat) if ptq loses more than half of --max-drop on the validation images. [default: auto]",
    ),
    compare: bool = typer.Option(
        False,
        "--compare",
        help="Compare all methods, or those in --method (comma-separated, e.g. ptq,qat).",
    ),
    max_drop: float | None = typer.Option(
        None, metavar="POINTS", help="Maximum accuracy loss due to compression, in percentage points. [default: 1]"
    ),
    data: list[str] | None = typer.Option(
        None,
        metavar="DATA",
        help="Images for compressing a model, with or without class folders, or the new location of a run's images if "
        "they were moved.",
    ),
    resume: bool = typer.Option(False, "--resume", help="Resume an interrupted quantization with the same options."),
    overwrite: bool = typer.Option(
        False,
        "--overwrite",
        help="Replace an existing variant, and discard any interrupted fine-tuning unless --resume is given.",
    ),
    json: bool = JsonOption,
    channels: float | None = typer.Option(
        None,
        metavar="FRACTION",
        help="Fraction of the inference time to save with method 'channels' (channel pruning). [default: 0.4]",
        rich_help_panel=_METHODS,
    ),
    sparsity: float | None = typer.Option(
        None,
        metavar="FRACTION",
        help="Fraction of the weights set to zero by method 'prune'. [default: 0.5]",
        rich_help_panel=_METHODS,
    ),
    clusters: int | None = typer.Option(
        None,
        metavar="N",
        help="Number of distinct weights per layer with method 'cluster'. [default: 16]",
        rich_help_panel=_METHODS,
    ),
    weight_bits: int | None = typer.Option(
        None,
        metavar="N",
        help="Number of bits per weight with method 'qat', from 5 to 8. Fewer bits make the gzipped file smaller. "
        "[default: 8]",
        rich_help_panel=_METHODS,
    ),
    skip: str | None = typer.Option(
        None,
        metavar="NAMES",
        help="Names or patterns of layers to exclude from pruning and clustering, such as 'logits, conv2d*'.",
        rich_help_panel=_METHODS,
    ),
    float_layers: str | None = typer.Option(
        None,
        metavar="NAMES",
        help="Names or patterns of layers to keep in float with method 'mixed'.",
        rich_help_panel=_METHODS,
    ),
    calibration: str | None = typer.Option(
        None,
        metavar="NAME|SET",
        help="Calibration recipe, or calibration set created by 'edgerec calibration make'. Not used by methods with "
        "'qat'. [default: stratified]",
        rich_help_panel=_METHODS,
    ),
    epochs: int | None = typer.Option(
        None, metavar="N", help="Number of epochs per fine-tuning stage. [default: 3]", rich_help_panel=_TUNING
    ),
    learning_rate: float | None = typer.Option(
        None,
        metavar="RATE",
        help="Initial learning rate of each fine-tuning stage. [default: the training learning rate times a factor of "
        "0.01 to 1, depending on the method]",
        rich_help_panel=_TUNING,
    ),
    teacher_weight: float | None = typer.Option(
        None,
        metavar="FRACTION",
        help="Weight of the distillation loss in fine-tuning, from 0 to 1. The loss on the true labels is weighted "
        "with 1 - FRACTION. [default: 1]",
        rich_help_panel=_TUNING,
    ),
    out: Path | None = typer.Option(
        None,
        "--out",
        "-o",
        metavar="FOLDER",
        help="Output folder for the run created from the model. [default: next to the model]",
        rich_help_panel=_MODEL,
    ),
    normalize: str | None = typer.Option(
        None,
        metavar="NAME|NUMBERS",
        help="Normalization that the model expects: unit, signed, pixels, tf, torch, caffe, MEAN,STD or R,G,B/R,G,B. "
        "[default: the normalization that yields the best accuracy on the images]",
        rich_help_panel=_MODEL,
    ),
    labels: Path | None = typer.Option(
        None,
        metavar="FILE|folders",
        help="File with the labels in the order of the model's outputs, or 'folders' to use the sorted class folder "
        "names. [default: the class folder names, if this order matches the predictions]",
        rich_help_panel=_MODEL,
    ),
) -> None:
    """Quantize a model to int8 or compress it with another method.

    The command fails if the accuracy on the test images decreases by more than --max-drop.
    """
    from edgerec.errors import GateError

    options: dict[str, Any] = {
        "channels": channels,
        "sparsity": sparsity,
        "clusters": clusters,
        "weight_bits": weight_bits,
        "skip": skip,
        "float_layers": float_layers,
        "calibration": calibration,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "teacher_weight": teacher_weight,
        "max_drop": max_drop,
    }
    with progress() as listener, _resume_hint(context):
        from edgerec.importing.adopt import is_model, open_or_adopt

        model = is_model(run)
        if model:
            run = open_or_adopt(
                run, data or None, out, normalize=normalize, labels=labels, overwrite=overwrite, listener=listener
            ).path
        elif out or normalize or labels:
            raise typer.BadParameter(
                f"--out, --normalize and --labels require a model file, but {run} is not one: omit these options"
            )
        if compare:
            from edgerec.compress.compare import compare as compare_all

            methods = method.split(",") if method else None
            comparison = compare_all(run, methods, data=data or None, overwrite=overwrite, listener=listener, **options)
            if not report_worker(json):
                _show_comparison(comparison, json)
            return
        from edgerec.compress import quantize as compress

        try:
            report = compress(
                run, method, data=data or None, resume=resume, overwrite=overwrite, listener=listener, **options
            )
        except GateError as error:
            if error.report is not None and not report_worker(json):
                show_report(error.report, json)
            raise
    if not report_worker(json):
        show_report(report, json)
        if not json:
            # A run that was created from a model records the location of its images.
            _suggest_next(run, report, None if model else data)


@contextmanager
def _resume_hint(context: typer.Context) -> Iterator[None]:
    """Context manager that tells the user how to resume if Ctrl-C interrupts compression."""
    try:
        yield
    except KeyboardInterrupt:
        resume_command = repeat_command(context, "--resume")
        say(f"interrupted; completed fine-tuning epochs are saved; resume with: {resume_command}", err=True)
        raise typer.Exit(130) from None


def _suggest_next(run: Path, report: QuantizeReport, data: DataSource | None) -> None:
    from edgerec.train import baseline
    from edgerec.train.run import Run, best_int8

    if report.forms[-1].error is not None:
        suggest("export", "CLASSIFIER_RUN", "--novelty", run, "--target", "rpi")
        return
    if problem := baseline.warning(report.figures.to_dict()):
        say(f"warning  {problem}")
        say(f"next     {baseline.ADVICE}")
        return
    # Suggest --variant only if `edgerec export` would select a different variant.
    options = [] if best_int8(Run.open(run).variants()) == report.variant else ["--variant", report.variant]
    suggest("export", run, "--target", "rpi", *options, *data_options(data))


def show_report(report: QuantizeReport, json: bool) -> None:
    """Print a compressed variant's results, compared with the float model."""
    if json:
        show_json(report.to_dict())
        return
    parity_table([row.to_dict() for row in report.forms])
    metric = "top-1" if report.forms[-1].error is None else "known images"
    points = f"{round(-report.drop_points, 2) + 0:+.2f} points of {metric}"
    change = f"{points} compared with float, on {report.images} test images"
    say(f"variant  {report.path}  ({change})")
    if report.why:
        say(f"why      {report.why}")
    if report.agreements and report.forms[-1].error is None:
        agreements = (f"{agreement:.2%} with {name}" for name, agreement in report.agreements.items())
        say(f"agrees   same predicted label on the test images: {', '.join(agreements)}")
    if report.sparsity > 0.05:
        say(f"sparsity {report.sparsity:.1%} of the weights are zero")


def _show_comparison(comparison: MethodComparison, json: bool) -> None:
    if json:
        show_json(comparison.to_dict())
        return
    is_autoencoder = comparison.rows[0].error is not None
    table(
        (
            "variant",
            "method",
            *(("error", "known") if is_autoencoder else ("top-1",)),
            "drop",
            "agreement",
            "bytes",
            "gzip bytes",
            "zeros",
            "ms",
            "p95 ms",
        ),
        [
            (
                row.variant,
                row.method,
                *((f"{row.error:.5f}",) if is_autoencoder else ()),
                f"{row.top1:.2%}",
                f"{row.drop_points:+.2f}",
                f"{row.agreement:.2%}",
                f"{row.size_bytes:,}",
                f"{row.gzip_bytes:,}",
                f"{row.sparsity:.0%}",
                f"{row.median_ms:.3f}",
                f"{row.p95_ms:.3f}",
            )
            for row in comparison.rows
        ],
        optional=("p95 ms", "zeros", "method", "agreement"),
    )
    say(
        f"float Keras {comparison.float_top1:.2%} on {comparison.images} test images; drop in percentage points; ms "
        f"per image on this machine ({comparison.machine}), threads: {comparison.threads}"
    )
    for note in comparison.notes:
        say(f"note     {note}")
    say(f"plot     {comparison.plot}")
