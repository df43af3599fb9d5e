"""Save the findings of a data set check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from edgerec.contract.preprocess import Image
from edgerec.data.check_results import KINDS, CheckedImages, DataFinding, DataReport
from edgerec.data.dataset_plots import ImageRow, image_table
from edgerec.utils.atomic import refuse_existing, replacing_folder, write_file
from edgerec.utils.text import to_json

# Number of images per row, and maximum number of rows for each kind of finding.
COLUMNS, MAX_ROWS = 8, 3
# Titles of the kinds of findings that refer to readable images.
TITLES = {
    "cut-off": "truncated files",
    "copy-across-splits": "copies across splits",
    "copy-across-classes": "copies across classes",
    "near-across-splits": "near-duplicates\nacross splits",
    "near-across-classes": "near-duplicates\nacross classes",
    "label": "likely label errors",
    "blank": "blank images",
    "small": "small images",
    "shape": "unusual shapes",
    "copy": "copies",
    "near": "near-duplicates",
}


def write_findings(report: DataReport, images: CheckedImages, path: Path, *, overwrite: bool) -> None:
    """Save a plot of the affected images as a .png file, or save all findings in a folder."""
    if path.suffix.lower() == ".png":
        _draw(report, images, path)
        return
    with replacing_folder(path, overwrite=overwrite) as partial:
        write_file(partial / "report.json", to_json(report.to_dict(), indent=1) + "\n")
        lines = (f"{finding.severity:<8} {finding.kind:<20} {finding}\n" for finding in report.findings)
        write_file(partial / "findings.txt", "".join(lines).encode(errors="backslashreplace"))
        _draw(report, images, partial / "suspects.png")


def refuse_output(path: Path, overwrite: bool) -> None:
    """Raise :class:`OutputExistsError` if ``path`` exists and must not be replaced."""
    if path.suffix.lower() == ".png":
        refuse_existing(path, overwrite, replaceable=not path.is_dir())
    else:
        refuse_existing(path, overwrite, replaceable=(path / "report.json").is_file())


def _draw(report: DataReport, images: CheckedImages, path: Path) -> None:
    rows = []
    for kind in KINDS:
        findings = [finding for finding in report.findings if finding.kind == kind and finding.positions]
        findings = [finding for finding in findings if all(images.scan.valid[p] for p in finding.positions)]
        if findings:
            rows += _rows(kind, findings, images)
    heading = f"{report.source}: {len(report.findings):,} findings in {report.images:,} images"
    caption = "The most important findings of each kind. Pairs are next to each other, the image to fix first."
    image_table(
        rows or [ImageRow("no findings", "", ())], (), heading, caption if rows else "No affected images.", path
    )


def _rows(kind: str, findings: Sequence[DataFinding], images: CheckedImages) -> list[ImageRow]:
    per_row = COLUMNS // len(findings[0].positions)
    rows = []
    for start in range(0, min(len(findings), per_row * MAX_ROWS), per_row):
        in_row = findings[start : start + per_row]
        originals = [_original(images, position) for finding in in_row for position in finding.positions]
        notes = [_caption(images, finding, number) for finding in in_row for number in range(len(finding.positions))]
        title, count = (TITLES[kind], f"{len(findings):,} found") if start == 0 else ("", "")
        rows.append(ImageRow(title, count, originals, notes))
    return rows


def _caption(images: CheckedImages, finding: DataFinding, number: int) -> str:
    name = PurePosixPath(finding.names[number]).name
    name = name if len(name) <= 17 else f"…{name[-16:]}"
    i = images.index(finding.positions[number])
    label = images.dataset.labels[images.dataset.classes[i]] if images.dataset.labels else ""
    if finding.kind == "label":
        return f"{name}\nlabel {label[:13]}\npred. {finding.like[:13]}"
    if finding.kind in ("small", "shape"):
        height, width = images.scan.sizes_px[finding.positions[number]]
        return f"{name}\n{width}×{height}"
    split = images.splits[i] if finding.kind.endswith("splits") else ""
    return f"{name}\n{split} {label[:14]}".rstrip()


def _original(images: CheckedImages, position: int) -> Image:
    return images.dataset.original(images.index(position))
