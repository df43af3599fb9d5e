"""Findings about pictures as a picture, and as a folder to keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from edgerec.contract.preprocess import Image
from edgerec.data.checks import KINDS, DataReport, Finding, Looked
from edgerec.data.dataset_plots import Row, picture_table
from edgerec.utils.atomic import refuse_existing, replacing_folder, write_file
from edgerec.utils.text import to_json

COLUMNS, MOST_ROWS = 8, 3
TITLES = {
    "cut-off": "cut off",
    "layout": "folders",
    "copy-across-splits": "copies across splits",
    "copy-across-classes": "one picture, two labels",
    "near-across-splits": "near copies\nacross splits",
    "near-across-classes": "near copies\nacross classes",
    "label": "likely wrong labels",
    "blank": "blank",
    "small": "small",
    "shape": "odd shapes",
    "copy": "copies",
    "near": "near copies",
}


def write_report(report: DataReport, looked: Looked, path: Path, *, overwrite: bool) -> None:
    """Write the picture of the suspects where ``path`` ends in .png, else a folder with it and all findings."""
    if path.suffix.lower() == ".png":
        draw(report, looked, path)
        return
    with replacing_folder(path, overwrite=overwrite) as partial:
        write_file(partial / "report.json", to_json(report.to_dict(), indent=1) + "\n")
        lines = (f"{finding.severity:<8} {finding.kind:<20} {finding}\n" for finding in report.findings)
        write_file(partial / "findings.txt", "".join(lines).encode(errors="backslashreplace"))
        draw(report, looked, partial / "suspects.png")


def refuse_output(path: Path, overwrite: bool) -> None:
    """Raise :class:`OutputExistsError` where a report may not be written, before any work is done."""
    if path.suffix.lower() == ".png":
        refuse_existing(path, overwrite, ours=not path.is_dir())
    else:
        refuse_existing(path, overwrite, ours=(path / "report.json").is_file())


def draw(report: DataReport, looked: Looked, path: Path) -> None:
    """The pictures that findings are about, the heaviest of each kind; a pair stands side by side."""
    rows = []
    for kind in KINDS:
        found = [finding for finding in report.findings if finding.kind == kind and finding.positions]
        found = [finding for finding in found if all(looked.scan.valid[p] for p in finding.positions)]
        if found:
            rows += _rows(kind, found, looked)
    heading = f"{report.source}: {len(report.findings):,} findings on {report.pictures:,} pictures"
    shown = "Of each kind the heaviest; pairs stand side by side, the suspect first." if rows else "Nothing to show."
    picture_table(rows or [Row("no suspects", "", ())], (), heading, shown, path)


def _rows(kind: str, found: Sequence[Finding], looked: Looked) -> list[Row]:
    each = COLUMNS // len(found[0].positions)
    rows = []
    for start in range(0, min(len(found), each * MOST_ROWS), each):
        some = found[start : start + each]
        images = [_original(looked, position) for finding in some for position in finding.positions]
        notes = [_note(looked, finding, place) for finding in some for place in range(len(finding.positions))]
        first = start == 0
        rows.append(Row(TITLES[kind] if first else "", f"{len(found):,} found" if first else "", images, notes))
    return rows


def _note(looked: Looked, finding: Finding, place: int) -> str:
    """The end of the name, and the label or what else tells."""
    name = PurePosixPath(finding.names[place]).name
    name = name if len(name) <= 17 else f"…{name[-16:]}"
    i = looked.index(finding.positions[place])
    label = looked.dataset.labels[looked.dataset.classes[i]] if looked.dataset.labels else ""
    if finding.kind == "label":
        return f"{name}\nis {label[:16]}\nlike {finding.like[:14]}"
    if finding.kind in ("small", "shape"):
        height, width = looked.scan.sizes_px[finding.positions[place]]
        return f"{name}\n{width}×{height}"
    split = looked.splits[i] if finding.kind.endswith("splits") else ""
    return f"{name}\n{split} {label[:14]}".rstrip()


def _original(looked: Looked, position: int) -> Image:
    return looked.dataset.original(looked.index(position))
