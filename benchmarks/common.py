"""Functions that several benchmarks use to find and prepare data."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def data_folder() -> Path:
    """Return ``$EDGEREC_TEST_DATA``, or ``shared/data`` beside the checkout."""
    return Path(os.environ.get("EDGEREC_TEST_DATA") or REPOSITORY.parent / "shared" / "data")


def unpacked(name: str, work: Path) -> Path:
    """Unpack ``name.tar`` once into ``work``, and return the folder."""
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
    """Return the sign digits with a person number in each file name, for ``--group-by person_([0-9]+)``.

    The images are numbered consecutively. Each person shows the digits 0 to 9 once, in this order with a few
    exceptions. A new person begins where a 9 is followed by a 0. Where the order differs, several persons form one
    group. Such a group is too large, but no person is in two subsets.
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
