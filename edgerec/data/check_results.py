"""Results of a data set check."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgerec.data.dataset import Dataset
from edgerec.data.scan import Scan

Severity = Literal["error", "warning", "note"]
Indices = npt.NDArray[np.int64]

# Kinds of findings, sorted from most to least harmful.
KINDS = (
    "broken",
    "cut-off",
    "layout",
    "split",
    "copy-across-splits",
    "copy-across-classes",
    "near-across-splits",
    "near-across-classes",
    "label",
    "few",
    "balance",
    "blank",
    "small",
    "shape",
    "copy",
    "near",
)


@dataclass(frozen=True)
class DataFinding:
    """A problem of a data set.

    Attributes:
        severity: ``error`` if the problem stops training or makes measured accuracies wrong, ``warning`` if the problem
            can reduce the accuracy, otherwise ``note``.
        kind: one of :data:`KINDS`.
        names: names of the affected images, the image to fix first. Empty for findings about a class or all images.
        what: description of the problem.
        advice: recommended action.
        weight: findings of the same kind are sorted by descending weight.
        like: predicted label, for a likely label error.
        positions: positions of the affected images in the source.
    """

    severity: Severity
    kind: str
    names: tuple[str, ...]
    what: str
    advice: str
    weight: float = 0.0
    like: str = ""
    positions: tuple[int, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields except ``positions`` as a JSON-serializable dictionary."""
        return {key: value for key, value in vars(self).items() if key != "positions"}

    def __str__(self) -> str:
        return f"{self.names[0] if self.names else 'the data'}: {self.what}: {self.advice}"


@dataclass(frozen=True)
class DataReport:
    """Result of a data set check.

    Attributes:
        source: name of the data.
        images: number of readable images.
        counts: dictionary that maps each label to the number of its images in each split. If the data has no split of
            its own, this is the split that training would use.
        findings: problems, the most severe kind first.
        label_accuracy: cross-validated accuracy of the classifier that searched for label errors, 0 to 1, or None if
            the labels were not checked.
    """

    source: str
    images: int
    counts: dict[str, dict[str, int]]
    findings: tuple[DataFinding, ...]
    label_accuracy: float | None

    @property
    def ok(self) -> bool:
        """True if no finding has the severity ``error``."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        findings = [finding.to_dict() for finding in self.findings]
        return {"ok": self.ok} | vars(self) | {"findings": findings}


@dataclass(frozen=True)
class CheckedImages:
    """Readable images of a data set, with their splits and scan results.

    Attributes:
        dataset: the readable images as thumbnails, with their classes and names.
        splits: split of each readable image, ``(N,)``.
        positions: position of each readable image in the source, ``(N,)``, ascending.
        scan: digest, size and fault of each file of the source.
    """

    dataset: Dataset
    splits: npt.NDArray[np.str_]
    positions: Indices
    scan: Scan

    @property
    def thumbnails(self) -> npt.NDArray[np.uint8]:
        """Thumbnails of the readable images, as a uint8 array of shape ``(N, 32, 32, C)``."""
        return np.asarray(self.dataset.images)

    def index(self, position: int) -> int:
        """Convert an image's position in the data set to its index among the readable images."""
        return int(np.searchsorted(self.positions, position))

    def finding(
        self,
        severity: Severity,
        kind: str,
        indices: tuple[int, ...],
        what: str,
        advice: str,
        weight: float,
        like: str = "",
    ) -> DataFinding:
        """Create a finding about one or more readable images."""
        names = tuple(self.dataset.names[i] for i in indices)
        positions = tuple(int(self.positions[i]) for i in indices)
        return DataFinding(severity, kind, names, what, advice, weight, like, positions)
