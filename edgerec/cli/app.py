"""Root of the command line: loads the commands, and prints user errors as one-line messages."""

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

# Command names and summaries for each section of --help. The command NAME is in the module edgerec.cli.NAME. The
# summaries are repeated here, because importing all commands would make --help slow.
COMMANDS = {
    "Train": {
        "build": "Train, quantize, export, verify and write a report.",
        "train": "Train a model on a folder of images.",
        "evaluate": "Measure the accuracy, and precision and recall per class.",
        "data": "Show, check and pack data sets.",
        "models": "List the architectures, their int8 size and their targets.",
    },
    "Compress": {
        "quantize": "Compress a model, by default to full int8.",
        "parity": "Compare a compressed model with the float model layer by layer.",
    },
    "Ship": {
        "export": "Write the bundle that runs on a device, and verify it.",
        "verify": "Verify the files of a bundle and its scores on this machine.",
        "targets": "List the targets, or describe one of them.",
    },
    "Run": {
        "camera": "Classify frames of cameras, videos or folders.",
        "predict": "Classify image files.",
        "benchmark": "Measure the latency and memory use of a bundle on this machine.",
    },
    "Inspect": {
        "runs": "List the runs in a folder with their accuracy.",
        "diff": "Compare the settings and the results of two runs.",
        "report": "Write a self-contained HTML report about a run.",
        "inspect": "Show the operators, multiply-adds, memory and supported targets of a model.",
        "doctor": "Check this machine, and print how to fix problems.",
        "cache": "Show the cache of preprocessed images, or delete cached images.",
    },
    "Advanced": {
        "recipe": "Print a complete recipe with a comment on every key.",
        "tune": "Search for the best recipe within the limits of a device.",
        "distill": "Train a small network from larger ones by distillation.",
        "calibration": "Make, check and show calibration sets for quantization.",
        "import": "Create a bundle from a .tflite file that another tool made.",
        "ensemble": "Combine several models into one bundle.",
    },
}


class Commands(GroupedCommands):
    """Root command group. User errors are printed in one line without a traceback, and set the exit code to 1.

    The module of a command is imported only when the command is used, because importing all modules is slow.
    """

    def sections(self, ctx: Any) -> Mapping[str, Mapping[str, str]]:
        return COMMANDS

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for names in COMMANDS.values() for name in names]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        names = self.list_commands(ctx)
        # For an unknown name, load all commands, because Typer suggests a similar name from self.commands.
        for name in [cmd_name] if cmd_name in names else names:
            if name not in self.commands:
                self.commands[name] = load_command(name)
        return self.commands.get(cmd_name)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The program that reads stdout, such as head, has exited. Redirect stdout so that the final flush succeeds.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            message = explain(error)
            if message is None:
                raise
        say(f"error: {message}", err=True)
        raise typer.Exit(1)


def load_command(name: str) -> Any:
    """Import the module of a command and return its Click command.

    The module contains either a Typer application ``app`` with subcommands, or a function with the name of the module.
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
    """Define the options of the program ``edgerec`` itself."""


def main() -> None:
    """Run the command line as the program ``edgerec``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may contain any bytes
    try:
        app()
    except SystemExit as end:
        # A normal exit aborts or waits forever if a camera or sink thread hangs in native code or while writing to
        # stdout. Do not flush stdout here: a hanging thread may hold its lock, and all output has already been flushed.
        if any(thread.daemon and thread.name.startswith("edgerec-") for thread in threading.enumerate()):
            os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
