"""From scores to an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

UNKNOWN = "unknown"


@dataclass(frozen=True)
class DecisionSpec:
    """How scores become an answer.

    Attributes:
        threshold: below this score the answer is ``unknown`` with index −1; 0 answers always.
        top_k: how many categories a result lists.
    """

    threshold: float = 0.0
    top_k: int = 5

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"decision.threshold is {self.threshold!r}; expected 0 to 1")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1:
            raise ValueError(f"decision.top_k is {self.top_k!r}; expected 1 or more")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DecisionSpec:
        """The inverse of :meth:`to_dict`; raises TypeError or ValueError on anything else."""
        return cls(**fields)


@dataclass(frozen=True)
class Category:
    """One class with its score in [0, 1]."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class Classification:
    """The answer for one image.

    Attributes:
        label, index, score: the best class, or ``unknown``, −1 and the best score below the threshold.
        categories: the ``top_k`` classes, best first.
        scores: float32 ``(classes,)``, all of them, in [0, 1].
    """

    label: str
    index: int
    score: float
    categories: tuple[Category, ...]
    scores: npt.NDArray[np.float32]


def decide(scores: npt.NDArray[np.float32], labels: Sequence[str], spec: DecisionSpec) -> Classification:
    """Answer for ``scores``, float32 ``(classes,)``; of equal scores the lower index comes first."""
    order = np.argsort(-scores, kind="stable")[: spec.top_k]
    categories = tuple(Category(labels[i], int(i), float(scores[i])) for i in order)
    best = categories[0]
    if best.score < spec.threshold:
        return Classification(UNKNOWN, -1, best.score, categories, scores)
    return Classification(best.label, best.index, best.score, categories, scores)
