"""What the benchmarks share: where real data lies, and data prepared from it."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def data_folder() -> Path:
    """``$EDGEREC_TEST_DATA``, or ``shared/data`` beside the checkout."""
    return Path(os.environ.get("EDGEREC_TEST_DATA") or REPOSITORY.parent / "shared" / "data")


def unpacked(name: str, work: Path) -> Path:
    """The folder ``name`` out of ``name.tar``, unpacked once under ``work``."""
    folder = work / name
    if not folder.is_dir():
        partial = work / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(data_folder() / f"{name}.tar") as archive:
            # Python before 3.11.4 knows no filters.
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            archive.extractall(partial)
        (partial / name).rename(folder)
        partial.rmdir()
    return folder


def signs_by_person(work: Path) -> Path:
    """The sign-digits pictures with the person in their file names, for ``--group-by person_([0-9]+)``.

    The pictures are numbered through; each person shows 0 to 9 once, in that order but for slips. A new person
    begins where a 9 is followed by a 0. Where the order slipped, neighbours stay one group: groups may be too
    large, which costs nothing, but nobody is on two sides.
    """
    folder = work / "sign-digits-by-person"
    if folder.is_dir():
        return folder
    numbered = sorted(
        (int(re.search(r"\d{4}", path.name)[0]), path) for path in unpacked("sign-digits", work).glob("*/*.JPG")
    )
    partial = work / ".sign-digits-by-person.partial"
    shutil.rmtree(partial, ignore_errors=True)
    person, before = 0, ""
    for _, path in numbered:
        sign = path.parent.name
        if before == "9" and sign == "0":
            person += 1
        before = sign
        (partial / sign).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial / sign / f"person_{person:03d}_{path.name}")
    partial.rename(folder)
    return folder
