"""Root command that loads subcommands on demand and prints user errors on one line."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
import typer.main

from edgerec.cli.failures import explain
from edgerec.cli.help import GroupedCommand, GroupedCommands
from edgerec.cli.output import say
from edgerec.cli.user_paths import expand_user_paths

# Summaries of the commands, grouped by section of --help.
# The summaries are duplicated here because importing every command would make --help slow.
COMMANDS = {
    "Train": {
        "build": "Train, quantize, export, verify and write a report.",
        "train": "Train a model on a folder of images.",
        "evaluate": "Measure accuracy and per-class precision and recall.",
        "data": "Show, check and pack data sets.",
        "models": "List architectures with their int8 sizes and supported targets.",
    },
    "Compress": {
        "quantize": "Quantize a model to int8 or compress it with another method.",
        "parity": "Compare a compressed model with the float model layer by layer.",
    },
    "Ship": {
        "export": "Export a run as a bundle for a target and verify it.",
        "verify": "Verify a bundle's files and scores on this machine.",
        "deploy": "Install, update or roll back a bundle on devices over SSH.",
    },
    "Run": {
        "camera": "Classify frames from cameras, videos or folders.",
        "predict": "Classify image files.",
        "serve": "Classify images that programs send over HTTP.",
    },
    "Inspect": {
        "devices": "Show the bundle and the state of the camera on each device.",
        "runs": "List the runs in a folder and their accuracy.",
        "diff": "Compare the settings and results of two runs.",
        "report": "Write a self-contained HTML report for a run.",
        "targets": "List the available targets or describe one of them.",
        "inspect": "Show a model's operators, multiply-adds, memory use and targets.",
        "benchmark": "Measure a bundle's latency and memory use on this machine.",
        "doctor": "Check this machine and suggest fixes for any problems.",
        "cache": "Show or clear the cache of preprocessed images.",
    },
    "Advanced": {
        "recipe": "Print a complete recipe with comments that explain every key.",
        "tune": "Search for the best recipe within a device's limits.",
        "distill": "Train a small network by distilling larger ones.",
        "calibration": "Make, check and show calibration sets for quantization.",
        "import": "Create a bundle from a .tflite file made with another tool.",
        "ensemble": "Combine several models into one bundle.",
        "sign": "Sign a bundle with an SSH key.",
    },
}


class Commands(GroupedCommands):
    """Root command group. User errors are printed on one line without a traceback and set the exit code to 1.

    A command's module is imported only when the command is used, because importing all modules is slow.
    """

    def sections(self, ctx: Any) -> Mapping[str, Mapping[str, str]]:
        return COMMANDS

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for names in COMMANDS.values() for name in names]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        names = self.list_commands(ctx)
        # If the command name is unknown, load all commands so that Typer can suggest a similar name.
        for name in [cmd_name] if cmd_name in names else names:
            if name not in self.commands:
                self.commands[name] = load_command(name)
        return self.commands.get(cmd_name)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Redirect stdout so that the final flush does not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            message = explain(error)
            if message is None:
                raise
        say(f"error: {message}", err=True)
        raise typer.Exit(1)


def load_command(name: str) -> Any:
    """Import a command's module and return its Click command.

    The module defines either a Typer application named ``app`` or a function with the same name as the module.
    """
    module = import_module(f"edgerec.cli.{'import_' if name == 'import' else name}")
    application = getattr(module, "app", None)
    if application is None:
        application = typer.Typer(add_completion=False, rich_markup_mode=None)
        command_class = getattr(module, "COMMAND_CLASS", GroupedCommand)
        application.command(name, cls=command_class)(getattr(module, module.__name__.rpartition(".")[2]))
    command = typer.main.get_command(application)
    expand_user_paths(command)
    return command


app = typer.Typer(
    name="edgerec",
    help="Train an image classifier, compress it to int8 and run it on a small device.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(requested: bool) -> None:
    if requested:
        from edgerec._version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Define the global options of ``edgerec``."""


def main() -> None:
    """Run the ``edgerec`` command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # File names may contain bytes that stdout cannot encode.
    try:
        app()
    except SystemExit as end:
        # A normal exit would crash or block if a thread hangs in native code or while writing to stdout.
        # Do not flush stdout, because a hanging thread may hold the lock of the stream.
        if any(thread.daemon and thread.name.startswith("edgerec-") for thread in threading.enumerate()):
            os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
