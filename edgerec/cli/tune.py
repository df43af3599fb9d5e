"""``edgerec tune``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, progress, say, seconds, show_json, suggest, table, warn_about_secrets
from edgerec.cli.recipe_options import SUBJECT_HELP, compose_recipe
from edgerec.utils.command_line import command

if TYPE_CHECKING:
    from edgerec.tuning import TuneReport


def tune(
    subject: str | None = typer.Argument(None, metavar="RECIPE.toml|DATA", help=SUBJECT_HELP),
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the study."),
    data: list[str] | None = typer.Option(None, help="Data, as for train --data."),
    epochs: int | None = typer.Option(None, help="Passes over the training pictures, each trial."),
    assignments: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Any other key: augment.flip=true."),
    trials: int | None = typer.Option(None, help="End with so many in the study that were trained. [default: 30]"),
    max_time: str | None = typer.Option(
        None, metavar="TIME", help="End after that, as 90m, 8h or 2d; the running trial is lost."
    ),
    objective: str | None = typer.Option(
        None, help="accuracy, or several: accuracy,ms,bytes,memory (of the int8 model). [default: accuracy]"
    ),
    limit_ms: float | None = typer.Option(None, help="Refuse a slower int8 model before it is trained."),
    limit_bytes: int | None = typer.Option(None, help="Refuse a larger int8 file before it is trained."),
    limit_memory: int | None = typer.Option(None, help="Refuse what needs more bytes beside its file."),
    on: str | None = typer.Option(
        None, help="Milliseconds of this machine (measured) or rpi (estimated for a Pi 4). [default: this]"
    ),
    search: Path | None = typer.Option(None, help="TOML file with the keys to search and their bounds."),
    pruner: str | None = typer.Option(None, help="Stop trials that lag behind: median, hyperband or none."),
    storage: str = typer.Option(
        "",
        envvar="EDGEREC_STORAGE",
        show_envvar=True,
        help="postgresql://USER@HOST/DATABASE, for many machines. [default: a file in --out]",
    ),
    study: str = typer.Option("", help="The study's name in the database. [default: the folder's]"),
    keep: str = typer.Option("best", help="Keep the runs of which trials: best, all or none."),
    resume: bool = typer.Option(False, "--resume", help="Go on with the study in --out."),
    json: bool = JsonOption,
) -> None:
    """Search for the best recipe, inside the limits of a device."""
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
                max_time_s=None if max_time is None else seconds(max_time),
                storage=storage,
                study=study,
                keep=keep,
                resume=resume,
                listener=listener,
                **goals,  # type: ignore[arg-type]
            )
        except KeyboardInterrupt:
            begun = (out / "study.json").is_file()
            resume_with = f"the running trial is lost; resume with: {command('tune', '--resume', '--out', out)}"
            say(f"interrupted; {resume_with if begun else 'nothing was written'}", err=True)
            raise typer.Exit(130) from None
    _show(report, json)


def _show(report: TuneReport, json: bool) -> None:
    if json:
        show_json(report.to_dict())
        return
    counts = ", ".join(f"{count} {state}" for state, count in sorted(report.counts.items()))
    if not report.best:
        say(f"no trial came to its end ({counts}): see {report.folder}/trials.csv")
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
    say(f"accuracy on the validation pictures; of the int8 model: ms {report.on}; memory beside its file")
    say(f"trials   {counts}  ({report.folder}/trials.csv)")
    several = f" and {report.folder}/pareto/" if len(report.objectives) > 1 else ""
    say(f"recipe   {report.folder}/best.toml{several}")
    say(f"picture  {report.picture}")
    if report.kept:
        suggest("train", "--resume", "--out", report.kept[0], note="measures it on the held-out test images")
    else:
        suggest("train", Path(report.folder) / "best.toml", "--out", "RUN")
