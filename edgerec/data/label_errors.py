"""Labels that are likely wrong: where a quick classifier that never saw a picture contradicts its label.

The features are those of A. Coates, H. Lee and A. Ng, "An analysis of single-layer networks in unsupervised feature
learning" (AISTATS 2011), with patches of the data itself as filters; the classifier is a ridge regression, trained on
some of the pictures and asked about the others; what it says is weighed as in confident learning (arXiv:1911.00068).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerec.utils.optional import require
from edgerec.utils.progress import Listener, Progress

Reals = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

SIDE_PX, PATCH_PX, STRIDE_PX, FILTERS = 32, 6, 2, 128
# So many pictures are judged together: memory stays bounded, and time grows as their number does.
BLOCK = 20000
CHUNK = 128
FOLDS = 5
PENALTIES = (0.003, 0.03, 0.3)
SHARPNESS = tuple(2.0**power for power in np.arange(-1, 6.01, 0.25))
LEAST_RATIO, RATIO_PER_ERROR = 20.0, 200.0


@dataclass(frozen=True)
class Judgement:
    """What a classifier that did not see the pictures says of them.

    Attributes:
        scores: float32 ``(N, classes)``, calibrated, summing to 1.
        accuracy: how often its best class is the label, 0 to 1.
    """

    scores: Reals
    accuracy: float

    def suspects(self, classes: Indices) -> Indices:
        """Positions whose label is likely wrong, the likeliest first.

        Another class must have so many times the score of the label; the more, the less the classifier knows. With
        5 % of the labels exchanged, benchmarks/data_check.py has what that finds and what it accuses wrongly.
        """
        needed = LEAST_RATIO + RATIO_PER_ERROR * (1 - self.accuracy)
        own = np.maximum(self.scores[np.arange(len(classes)), classes], 1e-9)
        ratio = self.scores.max(axis=1) / own
        order = np.argsort(-ratio, kind="stable")
        return order[ratio[order] > needed]

    def knows(self, classes: Indices) -> bool:
        """Whether it is right clearly more often than by always giving the most frequent label."""
        chance = np.bincount(classes).max() / len(classes)
        return self.accuracy > chance + 0.25 * (1 - chance)


def judge(images: npt.NDArray[np.uint8], classes: Indices, listener: Listener) -> Judgement:
    """Out-of-fold scores of pictures uint8 ``(N, 32, 32, C)``, by chance in blocks of at most 20,000."""
    count = int(classes.max()) + 1
    scores = np.zeros((len(classes), count), np.float32)
    order = np.random.default_rng(0).permutation(len(classes))
    blocks = np.array_split(order, -(-len(order) // BLOCK))
    done = 0
    for block in map(np.sort, blocks):
        parts = []
        for part in _features(images, block):
            parts.append(part)
            done += len(part)
            listener(Progress("looking at labels", done, len(order)))
        # On a busy machine small systems take ten times as long on all processors as on one.
        with require("threadpoolctl").threadpool_limits(1):
            scores[block] = _out_of_fold(np.concatenate(parts), classes[block], count)
    return Judgement(scores, float(np.mean(scores.argmax(axis=1) == classes)))


def _features(images: npt.NDArray[np.uint8], positions: Indices) -> Iterator[Reals]:
    """Chunks of float32 ``(n, features)``."""
    rng = np.random.default_rng(0)
    some = _patches(np.asarray(images[np.sort(rng.permutation(positions)[:500])])).reshape(
        -1, PATCH_PX**2 * images.shape[3]
    )
    some = some[rng.permutation(len(some))[:20000]]
    mean = some.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((some - mean).T) + 0.1 * np.eye(some.shape[1]))
    whiten = (vectors / np.sqrt(values)) @ vectors.T
    filters = (some[rng.permutation(len(some))[:FILTERS]] - mean) @ whiten
    filters /= np.linalg.norm(filters, axis=1, keepdims=True) + 1e-6
    matrix = (whiten @ filters.T).astype(np.float32)
    offset = (mean @ matrix).astype(np.float32)
    for start in range(0, len(positions), CHUNK):
        patches = _patches(images[positions[start : start + CHUNK]])
        answers = patches @ matrix - offset
        half = answers.shape[1] // 2
        quarters = [answers[:, rows, columns] for rows in _halves(half) for columns in _halves(half)]
        pooled = [np.maximum(s * q - 0.25, 0).mean(axis=(1, 2)) for q in quarters for s in (1, -1)]
        yield np.concatenate(pooled, axis=1)


def _halves(middle: int) -> tuple[slice, slice]:
    return slice(None, middle), slice(middle, None)


def _patches(images: npt.NDArray[np.uint8]) -> Reals:
    """float32 ``(n, rows, columns, values)``: patches of the pictures, each of mean 0 and about deviation 1."""
    view = np.lib.stride_tricks.sliding_window_view(images, (PATCH_PX, PATCH_PX), axis=(1, 2))
    view = view[:, ::STRIDE_PX, ::STRIDE_PX]
    patches = view.reshape(*view.shape[:3], -1).astype(np.float32)
    patches -= patches.mean(axis=3, keepdims=True)
    patches /= np.sqrt(patches.var(axis=3, keepdims=True) + 10)
    return patches


def _out_of_fold(features: Reals, classes: Indices, count: int) -> Reals:
    """Scores of each picture by a ridge regression of the other folds, at the best penalty and sharpness."""
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-3)
    features = np.concatenate([features, np.ones((len(features), 1), np.float32)], axis=1)
    targets = np.eye(count, dtype=np.float32)[classes]
    fold = np.random.default_rng(1).permutation(len(classes)) % FOLDS
    solve = _by_pictures if len(features) < features.shape[1] else _by_features
    best: tuple[float, Reals] = (np.inf, targets)
    for raw in solve(features, targets, fold):
        scores, loss = _calibrated(raw, classes)
        best = min(best, (loss, scores), key=lambda one: one[0])
    return best[1]


def _by_features(features: Reals, targets: Reals, fold: Indices) -> Iterator[Reals]:
    """The ridge regressions' answers out of fold, at each penalty."""
    squares = [features[fold == i].T @ features[fold == i] for i in range(FOLDS)]
    products = [features[fold == i].T @ targets[fold == i] for i in range(FOLDS)]
    for penalty in PENALTIES:
        raw = np.empty_like(targets)
        ridge = penalty * len(features) * np.eye(features.shape[1], dtype=np.float32)
        for i in range(FOLDS):
            weights = np.linalg.solve(sum(squares) - squares[i] + ridge, sum(products) - products[i])
            raw[fold == i] = features[fold == i] @ weights
        yield raw


def _by_pictures(features: Reals, targets: Reals, fold: Indices) -> Iterator[Reals]:
    """The same for fewer pictures than features, by the smaller matrix of their products (the dual form)."""
    kernel = features @ features.T
    for penalty in PENALTIES:
        raw = np.empty_like(targets)
        ridge = penalty * len(features) * np.eye(len(features), dtype=np.float32)
        for i in range(FOLDS):
            mine, others = fold == i, fold != i
            among = (kernel + ridge)[np.ix_(others, others)]
            raw[mine] = kernel[np.ix_(mine, others)] @ np.linalg.solve(among, targets[others])
        yield raw


def _calibrated(raw: Reals, classes: Indices) -> tuple[Reals, float]:
    """Softmax at the sharpness that makes the given labels likeliest, and the mean loss there, nats."""
    found = []
    for sharpness in SHARPNESS:
        powers = np.exp(sharpness * (raw - raw.max(axis=1, keepdims=True)))
        scores = powers / powers.sum(axis=1, keepdims=True)
        loss = -np.log(np.maximum(scores[np.arange(len(classes)), classes], 1e-9)).mean()
        found.append((float(loss), scores))
    loss, scores = min(found, key=lambda one: one[0])
    return scores, loss
