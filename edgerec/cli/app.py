"""The command line's root: registers the commands and turns errors into one line."""

from __future__ import annotations

import io
import os
import sys
import threading
from typing import Any

import typer
from typer.core import TyperGroup

from edgerec.cli import (
    benchmark,
    build,
    cache,
    calibration,
    camera,
    data,
    diff,
    distill,
    doctor,
    ensemble,
    evaluate,
    export,
    import_,
    inspect,
    models,
    parity,
    predict,
    quantize,
    recipe,
    report,
    runs,
    targets,
    train,
    tune,
    verify,
)
from edgerec.cli.failures import explain
from edgerec.cli.output import say
from edgerec.cli.sinks import CameraCommand
from edgerec.cli.user_paths import expand_user_paths


class Commands(TyperGroup):
    """Root command group. Errors that a user can cause are printed in one line, and the exit code is 1."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        expand_user_paths(self)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read our output has enough of it, as head does.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            message = explain(error)
            if message is None:
                raise
        say(f"error: {message}", err=True)
        raise typer.Exit(1)


app = typer.Typer(
    name="edgerec",
    help="From a folder of pictures to a live classifier on a small device.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    build.build,
    recipe.recipe,
    models.models,
    train.train,
    distill.distill,
    tune.tune,
    evaluate.evaluate,
    quantize.quantize,
    parity.parity,
    runs.runs,
    diff.diff,
    report.report,
    export.export,
    import_.import_,
    ensemble.ensemble,
    inspect.inspect,
    targets.targets,
    verify.verify,
    predict.predict,
    benchmark.benchmark,
    doctor.doctor,
    cache.cache,
):
    app.command(command.__name__.rstrip("_"))(command)
app.command("camera", cls=CameraCommand)(camera.camera)
app.add_typer(calibration.app, name="calibration")
app.add_typer(data.app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        from edgerec._version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Applies to all commands."""


def main() -> None:
    """The ``edgerec`` program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may be any bytes
    try:
        app()
    except SystemExit as end:
        # A thread of a camera or sink may hang in native code or in a write to stdout. A normal exit would then abort
        # or wait forever. All output was flushed before. Do not flush stdout here: the thread may hold its lock.
        if any(thread.daemon and thread.name.startswith("edgerec-") for thread in threading.enumerate()):
            os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
