"""``edgerec quantize``"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgerec.cli.output import JsonOption, helped, parity_table, progress, repeated, say, show_json, suggest, table
from edgerec.utils.command_line import data_options

if TYPE_CHECKING:
    from edgerec.compress import QuantizeReport
    from edgerec.compress.compare import Comparison
    from edgerec.recipe import DataSource


def quantize(
    context: typer.Context,
    run: Path = typer.Argument(..., help="A finished run, or a model: .keras, .h5, or a SavedModel's folder."),
    method: str | None = typer.Option(
        None,
        help="auto, ptq, qat, float16, dynamic, int16x8, mixed, channels, prune, cluster, channels+qat, prune+qat, "
        "cluster+qat or prune+cluster+qat. auto calibrates (ptq), and trains with fake quantization (qat) if ptq loses "
        "more than half of --max-drop on the validation images. [default: auto]",
    ),
    compare: bool = typer.Option(
        False, "--compare", help="Create and compare variants with all methods, or with those in --method ptq,qat."
    ),
    channels: float | None = typer.Option(None, help="Fraction of the time to save with 'channels'. [default: 0.4]"),
    sparsity: float | None = typer.Option(None, help="Fraction of weights to set to zero with 'prune'. [default: 0.5]"),
    clusters: int | None = typer.Option(None, help="Number of distinct weights per layer for 'cluster'. [default: 16]"),
    weight_bits: int | None = typer.Option(
        None, help="Number of bits per weight for 'qat'; with fewer bits, the file compresses better. [default: 8]"
    ),
    skip: str | None = typer.Option(
        None, help="Layers that 'prune' and 'cluster' leave unchanged, such as 'logits, conv2d*'."
    ),
    float_layers: str | None = typer.Option(None, help="Layers to keep in float with 'mixed': names or patterns."),
    calibration: str | None = typer.Option(
        None, help="Calibration images for 'ptq': a calibration recipe or set. [default: stratified]"
    ),
    epochs: int | None = typer.Option(None, help="Number of epochs of each fine-tuning. [default: 3]"),
    learning_rate: float | None = typer.Option(
        None,
        help="Peak learning rate of each fine-tuning. [default: learning rate of the training times a factor: 0.01 for "
        "'qat' alone, 1 (sgd: 0.3) for stages that remove weights, 0.1 (sgd: 0.01) otherwise]",
    ),
    teacher_weight: float | None = typer.Option(
        None,
        help="Weight t, 0 to 1, of the float model's outputs (knowledge distillation) in the loss of fine-tuning; the "
        "labels have the weight 1 - t. [default: 1]",
    ),
    max_drop: float | None = typer.Option(None, help="Maximum loss of accuracy, in percentage points. [default: 1]"),
    data: list[str] | None = typer.Option(
        None,
        help="Images for a model, as for train, with or without class folders; for a run, their new location if moved.",
    ),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="Folder for the run that is created from a model. [default: beside the model]"
    ),
    normalise: str | None = typer.Option(
        None,
        help="Normalization that a model expects, as for edgerec import: unit, signed, pixels, tf, torch, caffe, "
        "MEAN,STD or R,G,B/R,G,B. [default: measured on the images]",
    ),
    labels: Path | None = typer.Option(
        None,
        help="A model's labels in the order of its outputs: a file, or 'folders' for the sorted class folders. "
        "[default: the class folders, if the predictions do not contradict them]",
    ),
    resume: bool = typer.Option(False, "--resume", help="Resume an interrupted quantize with the same options."),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Replace the variant; without --resume, discard an interrupted quantize too."
    ),
    json: bool = JsonOption,
) -> None:
    """Compress a run, or another Keras model, to full int8 by default, and compare it with the float model."""
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
    with progress() as listener, _interruptible(context):
        from edgerec.importing.adopt import adopted, is_model

        model = is_model(run)
        if model:
            run = adopted(
                run, data or None, out, normalise=normalise, labels=labels, overwrite=overwrite, listener=listener
            ).path
        elif out or normalise or labels:
            raise typer.BadParameter(f"{run} is not a model file, and --out, --normalise and --labels are for those")
        if compare:
            from edgerec.compress.compare import compare as compare_all

            chosen = method.split(",") if method else None
            shown = compare_all(run, chosen, data=data or None, overwrite=overwrite, listener=listener, **options)
            if not helped(json):
                _show_comparison(shown, json)
            return
        from edgerec.compress import quantize as compress

        try:
            report = compress(
                run, method, data=data or None, resume=resume, overwrite=overwrite, listener=listener, **options
            )
        except GateError as error:
            if error.report is not None and not helped(json):
                _show(error.report, json)
            raise
    if helped(json):
        return
    _show(report, json)
    if not json:
        from edgerec.train import baseline

        if report.forms[-1].error is None and (problem := baseline.warning(report.figures.to_dict())):
            say(f"warning  {problem}")
            say(f"next     {baseline.ADVICE}")
            return
        # A run that was just created from a model has the current location of the data. For another run, the data may
        # have been moved.
        _suggest_export(run, report, None if model else data)


@contextmanager
def _interruptible(context: typer.Context) -> Iterator[None]:
    """Print how to resume the command if Ctrl-C interrupts the block."""
    try:
        yield
    except KeyboardInterrupt:
        again = repeated(context, "--resume")
        say(f"interrupted; complete epochs of fine-tuning are saved; resume with: {again}", err=True)
        raise typer.Exit(130) from None


def _suggest_export(run: Path, report: QuantizeReport, data: DataSource | None) -> None:
    from edgerec.train.run import Run, best_int8

    if report.forms[-1].error is not None:
        suggest("export", "CLASSIFIER_RUN", "--novelty", run, "--target", "rpi")
        return
    # By default, `edgerec export` uses the best int8 variant.
    chosen = [] if best_int8(Run.open(run).variants()) == report.variant else ["--variant", report.variant]
    suggest("export", run, "--target", "rpi", *chosen, *data_options(data))


def _show(report: QuantizeReport, json: bool) -> None:
    if json:
        show_json(report.to_dict())
        return
    parity_table([row.to_dict() for row in report.forms])
    gained = "top-1" if report.forms[-1].error is None else "known pictures"
    points = f"{round(-report.drop_points, 2) + 0:+.2f} points of {gained}"
    change = f"{points} against float on {report.images} held-out images"
    say(f"variant  {report.path}  ({change})")
    if report.why:
        say(f"why      {report.why}")
    if report.agreements and report.forms[-1].error is None:
        says = (f"{name} does on {agreement:.2%}" for name, agreement in report.agreements.items())
        say(f"int8     answers as {', as '.join(says)} of them")
    if report.sparsity > 0.05:
        say(f"sparsity {report.sparsity:.1%} of the weights are zero")


def _show_comparison(comparison: Comparison, json: bool) -> None:
    if json:
        show_json(comparison.to_dict())
        return
    again = comparison.rows[0].error is not None
    table(
        (
            "variant",
            "method",
            *(("error", "known") if again else ("top-1",)),
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
                *((f"{row.error:.5f}",) if again else ()),
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
        f"float Keras {comparison.float_top1:.2%} on {comparison.images} held-out images; drop in points; ms on this "
        f"machine ({comparison.machine}), threads: {comparison.threads}"
    )
    for note in comparison.notes:
        say(f"note     {note}")
    say(f"picture  {comparison.plot}")
