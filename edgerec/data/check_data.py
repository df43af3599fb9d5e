"""Check a data set, and write a report about its problems."""

from __future__ import annotations

from pathlib import Path

from edgerec.data.checks import DataReport, examine
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
    """Look for broken files, copies, imbalance, odd sizes and likely wrong labels in the data of a recipe.

    Args:
        recipe: which data, and how it is split: ``data.group_by`` keeps together what belongs together.
        out: a .png for a picture of the suspects, or a folder for it with all findings.
        labels: also look for wrong labels, which takes longest.
        overwrite: replace what is at ``out``.
        listener: told of the progress.

    Raises:
        EdgerecError: nothing there, nothing that is a picture, or ``out`` exists.
    """
    if out is not None:
        out = checked_output(out, data=recipe.data.source, suffixes=(".png",), folder=True)
        refuse_output(out, overwrite)
        require("matplotlib")
    report, looked = examine(recipe, labels=labels, listener=listener)
    if out is not None:
        write_report(report, looked, Path(out), overwrite=overwrite)
    return report
