"""Implement the ``edgerec tune`` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import (
    JsonOption,
    parse_duration_s,
    progress,
    say,
    show_json,
    suggest,
    table,
)
from edgerec.cli.recipe_options import SET_HELP, SUBJECT_HELP, compose_recipe
from edgerec.utils.command_line import command
from edgerec.utils.secret_references import warn_about_secrets

if TYPE_CHECKING:
    from edgerec.tuning import TuneReport


_LIMITS, _SEARCH, _STUDY = "Limits of the int8 model", "Search", "Study"


def tune(
    subject: str | None = typer.Argument(None, metavar="DATA|RECIPE.toml", help=SUBJECT_HELP),
    out: Path = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Output folder for the study."),
    data: list[str] | None = typer.Option(
        None, metavar="DATA", help="Data set, as for 'edgerec train'. May be repeated."
    ),
    trials: int | None = typer.Option(
        None, metavar="N", help="Number of trained models after which the study ends. [default: 30]"
    ),
    max_time: str | None = typer.Option(
        None,
        metavar="TIME",
        help="Maximum time, such as 90m, 8h or 2d, after which the running trial is discarded. [default: no limit]",
    ),
    epochs: int | None = typer.Option(
        None, metavar="N", min=1, help="Number of training epochs per trial. [default: the recipe's number of epochs]"
    ),
    resume: bool = typer.Option(False, "--resume", help="Resume the study in --out."),
    json: bool = JsonOption,
    objective: str | None = typer.Option(
        None,
        metavar="NAMES",
        help="Comma-separated objectives: accuracy and, optionally, the int8 model's ms (latency), bytes (file size) "
        "and memory. [default: accuracy]",
        rich_help_panel=_SEARCH,
    ),
    search: Path | None = typer.Option(
        None,
        metavar="FILE.toml",
        help="File with the recipe keys to tune and their bounds. [default: tune learning rate, batch size, "
        "augmentation, width, input size and architecture]",
        rich_help_panel=_SEARCH,
    ),
    pruner: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Pruner that stops unpromising trials early: median, hyperband or none. "
        "[default: median for a single objective, otherwise none]",
        rich_help_panel=_SEARCH,
    ),
    assignments: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help=SET_HELP, rich_help_panel=_SEARCH),
    limit_ms: float | None = typer.Option(
        None,
        metavar="MS",
        help="Maximum latency per image, in milliseconds. Slower models are not trained. [default: no limit]",
        rich_help_panel=_LIMITS,
    ),
    limit_bytes: int | None = typer.Option(
        None,
        metavar="BYTES",
        help="Maximum size of the .tflite file. Larger models are not trained. [default: no limit]",
        rich_help_panel=_LIMITS,
    ),
    limit_memory: int | None = typer.Option(
        None,
        metavar="BYTES",
        help="Maximum memory for the model's tensors. Larger models are not trained. [default: no limit]",
        rich_help_panel=_LIMITS,
    ),
    on: str | None = typer.Option(
        None,
        metavar="this|rpi",
        help="Device for the latency: this (measured on this machine) or rpi (estimated for a Raspberry Pi 4). "
        "[default: this]",
        rich_help_panel=_LIMITS,
    ),
    storage: str = typer.Option(
        "",
        envvar="EDGEREC_STORAGE",
        show_envvar=True,
        metavar="URL",
        help="Database for a study that runs on several machines: postgresql://USER@HOST/DATABASE. [default: a file in "
        "--out]",
        rich_help_panel=_STUDY,
    ),
    study: str = typer.Option(
        "",
        metavar="NAME",
        help="Name of the study in the database. [default: the folder name of --out]",
        rich_help_panel=_STUDY,
    ),
    keep: str = typer.Option(
        "best", metavar="WHICH", help="Trained models to keep: best, all or none.", rich_help_panel=_STUDY
    ),
) -> None:
    """Search for the best recipe within a device's limits."""
    options = {"data.source": data or None, "train.epochs": epochs}
    goals = {
        "objectives": objective.split(",") if objective else None,
        "limit_ms": limit_ms,
        "limit_bytes": limit_bytes,
        "limit_memory": limit_memory,
        "on": on,
        "search": search,
        "pruner": pruner,
    }
    goals = {key: value for key, value in goals.items() if value is not None}
    continues = (
        resume and subject is None and not (assignments or goals) and all(value is None for value in options.values())
    )
    warn_about_secrets([storage])
    with progress() as listener:
        from edgerec.tuning import tune as search_best

        recipe = None if continues else compose_recipe(subject, options, assignments)
        try:
            report = search_best(
                recipe,
                out,
                trials=trials,
                max_time_s=None if max_time is None else parse_duration_s(max_time, "--max-time"),
                storage=storage,
                study=study,
                keep=keep,
                resume=resume,
                listener=listener,
                **goals,  # type: ignore[arg-type]
            )
        except KeyboardInterrupt:
            resumable = (out / "study.json").is_file()
            hint = f"the running trial is lost; resume with: {command('tune', '--resume', '--out', out)}"
            say(f"interrupted; {hint if resumable else 'nothing was written'}", err=True)
            raise typer.Exit(130) from None
    _show(report, json)


def _show(report: TuneReport, json: bool) -> None:
    if json:
        show_json(report.to_dict())
        return
    counts = ", ".join(f"{count} {state}" for state, count in sorted(report.counts.items()))
    if not report.best:
        say(f"no trial was completed ({counts}): see {report.folder}/trials.csv")
        return
    table(
        ("trial", "accuracy", "ms", "bytes", "memory", "parameters"),
        [
            (
                str(row.number),
                f"{row.accuracy:.2%}",
                f"{row.ms:.3g}",
                f"{row.bytes:,}",
                f"{row.memory:,}",
                f"{row.parameters:,}",
            )
            for row in report.best
        ],
        optional=("parameters", "memory"),
    )
    say(f"accuracy on the validation images; ms ({report.on}), bytes and memory (without the file) of the int8 model")
    say(f"trials   {counts}  ({report.folder}/trials.csv)")
    pareto_front = f" and {report.folder}/pareto/" if len(report.objectives) > 1 else ""
    say(f"recipe   {report.folder}/best.toml{pareto_front}")
    say(f"plot     {report.plot}")
    if report.kept:
        suggest("train", "--resume", "--out", report.kept[0], note="evaluates it on the test images")
    else:
        suggest("train", Path(report.folder) / "best.toml", "--out", "RUN")
