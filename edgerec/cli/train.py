"""``edgerec train``"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgerec.cli.output import JsonOption, helped, progress, say, seconds, show_json, suggest
from edgerec.cli.recipe_options import SUBJECT_HELP, compose_recipe
from edgerec.utils.command_line import command

if TYPE_CHECKING:
    from edgerec.train.run import Run


def train(
    subject: str | None = typer.Argument(None, metavar="RECIPE.toml|DATA", help=SUBJECT_HELP),
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the run: model, plots and metrics."),
    data: list[str] | None = typer.Option(
        None,
        help="Data: digits, mnist, fashion_mnist, cifar10, cifar100, an .npz file or an image folder. May be repeated; "
        "several data sets are merged.",
    ),
    arch: str | None = typer.Option(
        None,
        help="Architecture: auto (chosen by the images and --target), a name from edgerec models, or your "
        "own function, such as my_net.py:build, whose code is executed. [default: auto]",
    ),
    target: str | None = typer.Option(
        None, help="Target for which --arch auto chooses a network; see edgerec targets. [default: any]"
    ),
    epochs: str | None = typer.Option(
        None,
        metavar="[+]N",
        help="Number of training epochs; with --resume, +N adds N epochs to a finished run. "
        "[default: 15 to 60 by the number of training images]",
    ),
    group_by: str | None = typer.Option(
        None,
        help="Regular expression. Images with the same match in their path below the class folder are kept in the same "
        "split (training, validation or test set).",
    ),
    input_size: int | None = typer.Option(
        None,
        help="Width and height of the model's input, in pixels. "
        "[default: the images' own size, at most 96, or chosen by --arch auto]",
    ),
    width: float | None = typer.Option(
        None, help="Factor on the number of channels. [default: chosen by --arch auto, otherwise 1]"
    ),
    weights: str | None = typer.Option(
        None,
        help="Initial weights: none (random), imagenet, a run, or a .keras or .h5 file. "
        "[default: imagenet if --arch auto chooses a network that has them, otherwise none]",
    ),
    batch_size: int | None = typer.Option(None, help="Number of images per training step."),
    learning_rate: float | None = typer.Option(None, help="Peak learning rate of the schedule."),
    device: str | None = typer.Option(None, help="Device to train on: auto, cpu or gpu."),
    mixed_precision: bool | None = typer.Option(
        None, help="Compute in float16 (GPU) or bfloat16 (some CPUs), except where float32 is needed."
    ),
    max_time: str | None = typer.Option(
        None, metavar="TIME", help="Maximum training time, such as 90m, 8h or 2d. The best epoch up to then is kept."
    ),
    tensorboard: bool | None = typer.Option(None, "--tensorboard", help="Write a TensorBoard log into the run."),
    seed: int | None = typer.Option(
        None, help="Seed of the split, the initial weights, the order of the images and the augmentation."
    ),
    strict: bool | None = typer.Option(
        None, "--strict", help="Refuse data with files that are not images instead of skipping them."
    ),
    assignments: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Set any other recipe key, such as augment.flip=true; may be repeated."
    ),
    resume: bool = typer.Option(
        False,
        "--resume",
        help="Continue from the last checkpoint in --out. If there is none, start a new training with the given data, "
        "recipe or options.",
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the run in --out."),
    json: bool = JsonOption,
) -> None:
    """Train a model on a folder of images."""
    count, more_epochs = _epochs(epochs, resume)
    options = {
        "data.source": data or None,
        "model.arch": arch,
        "model.target": target,
        "train.epochs": None if more_epochs else count,
        "data.group_by": group_by,
        "data.input_size": input_size,
        "model.width": width,
        "model.weights": weights,
        "train.batch_size": batch_size,
        "train.learning_rate": learning_rate,
        "train.device": device,
        "train.mixed_precision": mixed_precision,
        "train.max_hours": None if max_time is None else seconds(max_time) / 3600,
        "train.tensorboard": tensorboard,
        "seed": seed,
        "data.strict": strict,
    }
    if resume and overwrite:
        raise typer.BadParameter("--overwrite would start again what it goes on with", param_hint="--resume")
    with progress() as listener:
        from edgerec.train.fit import fit, was_begun

        continues = resume and subject is None and not assignments and all(value is None for value in options.values())
        if more_epochs and not continues:
            raise typer.BadParameter(
                "+N continues with the run's own recipe: leave out the other options", param_hint="--epochs"
            )
        recipe = compose_recipe(subject, options, assignments, needs_data=not continues)
        if resume and not continues:
            resume = was_begun(recipe, out)
        with stopped(out):
            run = fit(recipe, out, resume=resume, overwrite=overwrite, listener=listener, more_epochs=more_epochs)
    if not helped(json):
        show(run, json)


def _epochs(text: str | None, resume: bool) -> tuple[int | None, int]:
    """Return the number of epochs and the number of epochs to add."""
    if text is None:
        return None, 0
    if not re.fullmatch(r"[+-]?\d{1,9}", text):
        raise typer.BadParameter(f"{text!r} is not a number of epochs: 20, or +20 with --resume", param_hint="--epochs")
    if not text.startswith("+"):
        return int(text), 0
    if not resume or int(text) < 1:
        raise typer.BadParameter(
            f"{text!r} adds epochs to a finished run: use --resume --epochs +N with N of at least 1",
            param_hint="--epochs",
        )
    return None, int(text)


@contextmanager
def stopped(out: Path) -> Iterator[None]:
    """Print how to resume a training if Ctrl-C interrupts the block."""
    try:
        yield
    except KeyboardInterrupt:
        begun = (out / "recipe.toml").is_file()
        what_next = f"resume with: {command('train', '--resume', '--out', out)}" if begun else "nothing was written"
        say(f"interrupted; {what_next}", err=True)
        raise typer.Exit(130) from None


def show(run: Run, json: bool) -> None:
    """What a training made."""
    from edgerec.train import baseline

    metrics: dict[str, Any] = run.metrics
    if json:
        show_json({"run": str(run.path)} | metrics | {"warning": baseline.warning(metrics)})
        return
    images, parameters = metrics["images"], metrics["parameters"]
    if run.reconstructs:
        say(f"error    {metrics['error']:.5f} on {images} held-out images, {parameters:,} parameters")
        say(f"known    {metrics['known']:.2%} of them, by the threshold {metrics['threshold']:.5f} from validation")
    else:
        say(f"accuracy {metrics['accuracy']:.2%} on {images} held-out images, {parameters:,} parameters")
    say(f"run      {run.path}  (plots/, metrics.json, split.json)")
    if not run.reconstructs and baseline.warning(metrics):
        say(f"next     {baseline.ADVICE}")
        return
    suggest("quantize", run.path)
