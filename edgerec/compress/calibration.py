"""Calibration sets: the training pictures that set activation ranges in post-training quantization."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerec.contract.shipped import find_shipped, shipped_names
from edgerec.data import Dataset, Split
from edgerec.errors import RecipeError, unknown


@dataclass(frozen=True)
class CalibrationSet:
    """Pictures uint8 ``(N, H, W, C)``, and the SHA-256 over them that goes into the manifest."""

    recipe: str
    images: npt.NDArray[np.uint8]
    digest: str


def draw(name: str, dataset: Dataset, split: Split) -> CalibrationSet:
    """Draw from the training part as the recipe ``calibration/NAME.toml`` (or a person's own .toml) says.

    As evenly over the classes as they allow, in the recipe's seed.

    Raises:
        RecipeError: no such recipe, or one with other keys than ``images`` and ``seed``.
    """
    count, seed = _read(name)
    rng = np.random.default_rng(seed)
    classes = dataset.classes[split.train]
    members = [rng.permutation(split.train[classes == index]) for index in range(len(dataset.labels))]
    # One of each class, then the second of each …, until there are enough.
    rounds = [m[turn] for turn in range(max(map(len, members))) for m in members if turn < len(m)]
    images = np.stack([dataset.images[i] for i in rounds[:count]])
    return CalibrationSet(name, images, hashlib.sha256(images.tobytes()).hexdigest())


def pin_range(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A copy whose first picture has one black and one white value in its corner.

    The converter takes the input's range from what it sees. With both ends seen, the input's scale is the
    normalisation's own, so that pixels pass through; other activations hardly notice two values.
    """
    pinned = images.copy()
    pinned[0].reshape(-1)[:2] = (0, 255)
    return pinned


def _read(name: str) -> tuple[int, int]:
    path = find_shipped("calibration", name)
    if path is None:
        raise RecipeError(unknown("calibration recipe", name, shipped_names("calibration")))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}") from None
    for key, value in values.items():
        if key not in ("images", "seed"):
            raise RecipeError(f"{path}: {unknown('calibration key', key, ('images', 'seed'))}")
        if type(value) is not int or value < (key == "images"):
            raise RecipeError(f"{path}: {key} is {value!r}, expected a whole number of at least {int(key == 'images')}")
    return values.get("images", 200), values.get("seed", 0)
