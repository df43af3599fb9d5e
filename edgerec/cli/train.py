"""Implement the ``edgerec train`` command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, parse_duration_s, progress, report_worker, say, show_json, suggest
from edgerec.cli.recipe_options import GROUP_BY_HELP, SET_HELP, STRICT_HELP, SUBJECT_HELP, compose_recipe
from edgerec.utils.command_line import command

if TYPE_CHECKING:
    from edgerec.recipe import DataSource
    from edgerec.train.run import Run


_MODEL, _DATA, _TRAINING = "Model", "Data and split", "Training"


def train(
    subject: str | None = typer.Argument(None, metavar="DATA|RECIPE.toml", help=SUBJECT_HELP),
    out: Path = typer.Option(
        ..., "--out", "-o", metavar="FOLDER", help="Output folder for the run (model, plots and metrics)."
    ),
    data: list[str] | None = typer.Option(
        None,
        metavar="DATA",
        help="Data set: an image folder, an .npz file, digits, mnist, fashion_mnist, cifar10 or cifar100. May be "
        "repeated to merge several data sets.",
    ),
    arch: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Architecture: a name listed by 'edgerec models', a function in your own file, such as my_net.py:build "
        "(the file is executed), or auto (chosen to suit the images and the target). [default: auto]",
    ),
    target: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Target for which --arch auto chooses an architecture (see 'edgerec targets'). [default: any target]",
    ),
    epochs: str | None = typer.Option(
        None,
        metavar="[+]N",
        help="Number of training epochs. With --resume, +N adds N epochs to a finished run. "
        "[default: 15 to 60, depending on the number of images]",
    ),
    resume: bool = typer.Option(
        False,
        "--resume",
        help="Resume from the last checkpoint in --out or, if there is none, start training with the other options.",
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing run in --out."),
    json: bool = JsonOption,
    input_size: int | None = typer.Option(
        None,
        metavar="PIXELS",
        help="Width and height of the model's input, in pixels. [default: chosen by --arch auto, otherwise the images' "
        "size, but at most 96]",
        rich_help_panel=_MODEL,
    ),
    width: float | None = typer.Option(
        None,
        metavar="FACTOR",
        help="Width multiplier for the number of channels. [default: chosen by --arch auto, otherwise 1]",
        rich_help_panel=_MODEL,
    ),
    weights: str | None = typer.Option(
        None,
        metavar="NAME|RUN|FILE",
        help="Initial weights: none (random), imagenet, a run, or a .keras or .h5 file. [default: imagenet if --arch "
        "auto chooses a network with ImageNet weights in Keras, otherwise none]",
        rich_help_panel=_MODEL,
    ),
    group_by: str | None = typer.Option(None, metavar="REGEX", help=GROUP_BY_HELP, rich_help_panel=_DATA),
    strict: bool | None = typer.Option(None, "--strict", help=STRICT_HELP, rich_help_panel=_DATA),
    seed: int | None = typer.Option(
        None,
        metavar="N",
        help="Seed for the split, the initial weights, the image order and the augmentation. [default: 0]",
        rich_help_panel=_DATA,
    ),
    batch_size: int | None = typer.Option(
        None,
        metavar="N",
        help="Training batch size. [default: 16 to 128, depending on the number of images]",
        rich_help_panel=_TRAINING,
    ),
    learning_rate: float | None = typer.Option(
        None, metavar="RATE", help="Peak learning rate. [default: 0.002]", rich_help_panel=_TRAINING
    ),
    max_time: str | None = typer.Option(
        None,
        metavar="TIME",
        help="Maximum training time, such as 90m, 8h or 2d. The best epoch so far is kept. [default: no limit]",
        rich_help_panel=_TRAINING,
    ),
    device: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Device to train on: auto (a GPU if TensorFlow finds one), cpu or gpu. [default: auto]",
        rich_help_panel=_TRAINING,
    ),
    mixed_precision: bool | None = typer.Option(
        None,
        help="Use mixed precision: float16 on GPUs, bfloat16 on CPUs that support it. [default: no]",
        rich_help_panel=_TRAINING,
    ),
    tensorboard: bool | None = typer.Option(
        None, "--tensorboard", help="Write a TensorBoard log to the run folder.", rich_help_panel=_TRAINING
    ),
    assignments: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help=SET_HELP, rich_help_panel=_TRAINING),
) -> None:
    """Train a model on a folder of images."""
    total_epochs, more_epochs = _parse_epochs(epochs, resume)
    options = {
        "data.source": data or None,
        "model.arch": arch,
        "model.target": target,
        "train.epochs": None if more_epochs else total_epochs,
        "data.group_by": group_by,
        "data.input_size": input_size,
        "model.width": width,
        "model.weights": weights,
        "train.batch_size": batch_size,
        "train.learning_rate": learning_rate,
        "train.device": device,
        "train.mixed_precision": mixed_precision,
        "train.max_hours": None if max_time is None else parse_duration_s(max_time, "--max-time") / 3600,
        "train.tensorboard": tensorboard,
        "seed": seed,
        "data.strict": strict,
    }
    if resume and overwrite:
        raise typer.BadParameter(
            "--resume cannot be combined with --overwrite, which would delete the run to resume: use only one of them",
            param_hint="--resume",
        )
    with progress() as listener:
        from edgerec.recipe import Recipe
        from edgerec.train.fit import fit, was_begun
        from edgerec.train.run import Run

        changes = [subject, *(value for key, value in options.items() if key != "data.source"), *assignments]
        continues = resume and all(value is None for value in changes)
        if more_epochs and not continues:
            raise typer.BadParameter(
                "--epochs +N continues training with the run's own recipe: omit DATA and all other training options",
                param_hint="--epochs",
            )
        source: DataSource | None = None
        if continues and (data is None or more_epochs or Run.at(out).begun):
            # fit() uses the recipe that is saved in the run.
            recipe, source = Recipe(), data
        else:
            recipe = compose_recipe(subject, options, assignments)
            resume = resume and was_begun(recipe, out)
            source = recipe.data.source if resume else None
        with resume_hint(out):
            run = fit(
                recipe,
                out,
                resume=resume,
                overwrite=overwrite,
                listener=listener,
                more_epochs=more_epochs,
                data=source,
            )
    if not report_worker(json):
        show_run(run, json)


def _parse_epochs(text: str | None, resume: bool) -> tuple[int | None, int]:
    """Parse ``--epochs``, and return the total number of epochs (or None) and the number of epochs to add."""
    if text is None:
        return None, 0
    if not re.fullmatch(r"[+-]?\d{1,9}", text):
        raise typer.BadParameter(
            f"expected a number such as 20, or +20 with --resume, got {text!r}", param_hint="--epochs"
        )
    if not text.startswith("+"):
        if int(text) < 1:  # In a recipe, 0 selects the number of epochs automatically.
            raise typer.BadParameter(f"must be at least 1, got {text}", param_hint="--epochs")
        return int(text), 0
    if not resume or int(text) < 1:
        raise typer.BadParameter(
            f"to add epochs to a finished run, use --resume --epochs +N with N at least 1 (got {text!r})",
            param_hint="--epochs",
        )
    return None, int(text)


@contextmanager
def resume_hint(out: Path) -> Iterator[None]:
    """Context manager that tells the user how to resume if Ctrl-C interrupts training."""
    try:
        yield
    except KeyboardInterrupt:
        resumable = (out / "recipe.toml").is_file()
        what_next = f"resume with: {command('train', '--resume', '--out', out)}" if resumable else "nothing was written"
        say(f"interrupted; {what_next}", err=True)
        raise typer.Exit(130) from None


def show_run(run: Run, json: bool) -> None:
    """Print a training run's results and suggest the next command."""
    from edgerec.train import baseline

    metrics = run.metrics
    if json:
        show_json({"run": str(run.path)} | metrics | {"warning": baseline.warning(metrics)})
        return
    images, parameters = metrics["images"], metrics["parameters"]
    if run.reconstructs:
        say(f"error    {metrics['error']:.5f} on {images} test images, {parameters:,} parameters")
        say(
            f"known    {metrics['known']:.2%} of the test images have an error below {metrics['threshold']:.5f}, the "
            "threshold fitted on the validation images"
        )
    else:
        say(f"accuracy {metrics['accuracy']:.2%} on {images} test images, {parameters:,} parameters")
    say(f"run      {run.path}  (plots/, metrics.json, split.json)")
    if not run.reconstructs and baseline.warning(metrics):
        say(f"next     {baseline.ADVICE}")
        return
    suggest("quantize", run.path)
