"""Check a data set, and write a report about its problems."""

from __future__ import annotations

from pathlib import Path

from edgerec.data.checks import DataReport, run_checks
from edgerec.data.findings_report import refuse_output, write_report
from edgerec.recipe import Recipe
from edgerec.utils.atomic import checked_output
from edgerec.utils.optional import require
from edgerec.utils.progress import Listener, ignore


def check_data(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    labels: bool = True,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> DataReport:
    """Look for damaged files, duplicates, class imbalance, unusual sizes and likely label errors in a recipe's data.

    Args:
        recipe: names the data, and how it is split. ``data.group_by`` keeps related images in the same set.
        out: a .png file for a plot of the affected images, or a folder for this plot and all findings.
        labels: also look for label errors. This check takes the most time.
        overwrite: replace an existing ``out``.
        listener: called with the progress.

    Raises:
        EdgerecError: the data does not exist, no file is a readable image, or ``out`` exists.
    """
    if out is not None:
        out = checked_output(out, data=recipe.data.source, suffixes=(".png",), folder=True)
        refuse_output(out, overwrite)
        require("matplotlib")
    report, images = run_checks(recipe, labels=labels, listener=listener)
    if out is not None:
        write_report(report, images, Path(out), overwrite=overwrite)
    return report
