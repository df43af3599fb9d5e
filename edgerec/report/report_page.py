"""Write a run's HTML report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgerec.data import Dataset, Split
from edgerec.data.readers import NAMED
from edgerec.errors import EdgerecError, OutputExistsError, RunError
from edgerec.recipe import DataSource
from edgerec.report.collect_content import collect_content
from edgerec.report.content import ReportContent
from edgerec.report.html import render
from edgerec.train.run import Run
from edgerec.utils.atomic import checked_output, refuse_existing, user_path, write_file
from edgerec.utils.command_line import command
from edgerec.utils.optional import require
from edgerec.utils.progress import Listener, ignore

PAGE = "report.html"


def write_report(
    run: Run | str | Path,
    out: str | Path | None = None,
    *,
    data: DataSource | None = None,
    images: bool = True,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> ReportContent:
    """Write an HTML report for a run. The page works offline and without JavaScript or other files.

    The models are run on the images to measure calibration and find misclassified images. If a part of the report is
    not available, e.g. because the images were moved, the page states which part is missing and why.

    Args:
        run: a finished or unfinished run, or its path.
        out: path of the HTML file. If None, ``report.html`` in the run folder is used.
        data: current location of the run's images if they were moved.
        images: whether to include images. False omits images, their names and all private paths.
        overwrite: replace an existing file.
        listener: receives progress updates.

    Raises:
        EdgerecError: the run does not exist or is damaged, or ``data`` differs from the training data.
    """
    run = run if isinstance(run, Run) else Run.at(run)
    if not run.begun:
        raise EdgerecError(f"{run.path} is not a run: create one with {command('train', 'DATA', '--out', run.path)}")
    if run.reconstructs:
        raise RunError(
            f"reports support only classifiers, but {run.path} is an autoencoder run: see {run.path / 'plots'} and "
            f"{run.path / 'metrics.json'} instead"
        )
    page = run.path / PAGE if out is None else user_path(out)
    if page.is_dir():
        raise OutputExistsError(f"{page} is a folder: choose a file name, such as {page / PAGE}")
    checked_output(page, [data or run.recipe.data.source], suffixes=(".html", ".htm"))
    refuse_existing(page, overwrite)
    require("jinja2")  # a missing package is reported before the expensive measurements
    require("matplotlib")
    loaded, missing = _load(run, data, listener)
    content, embedded = collect_content(run, loaded, missing, data, images, listener)
    text = render(replace(content, page=str(page)), embedded)
    write_file(page, text)
    return replace(content, page=str(page), page_bytes=page.stat().st_size)


def _load(run: Run, data: DataSource | None, listener: Listener) -> tuple[tuple[Dataset, Split] | None, list[str]]:
    """Load the run's images and split. If they cannot be loaded, return None and the reasons."""
    missing = [source for source in run.recipe.data.sources if source not in NAMED and not Path(source).exists()]
    lost = "images, image counts per class, misclassified images and calibration are missing"
    if data is None and missing:
        return None, [f"{lost}: {missing[0]} does not exist. If the images were moved, add --data"]
    try:
        return run.data(data, listener), []
    except EdgerecError as error:
        if data is not None:
            raise
        return None, [f"{lost}: {error}"]
