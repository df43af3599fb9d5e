"""Calibration sets: the training pictures that set activation ranges in post-training quantization."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerec.compress.calibration import calibration_set
from edgerec.compress.calibration.calibration_set import CalibrationRecipe, CalibrationSet, digest_of, is_set
from edgerec.compress.calibration.check import examine, first_error, sample_of
from edgerec.compress.calibration.loading import of_set, open_offered
from edgerec.compress.calibration.sampling import METHODS
from edgerec.compress.compression_plots import contact_sheet
from edgerec.contract.content import reason
from edgerec.data import Dataset, Split, load, split_dataset
from edgerec.errors import DataError, RecipeError, unknown
from edgerec.models import least_size_px
from edgerec.recipe import DataSection, DataSource, Recipe, one_or_tuple
from edgerec.train.run import Run
from edgerec.utils.atomic import checked_output, refuse_existing, user_path
from edgerec.utils.bounded import read_toml
from edgerec.utils.command_line import command
from edgerec.utils.package_data import find_shipped, shipped, shipped_names
from edgerec.utils.progress import Listener, ignore

__all__ = ["CalibrationRecipe", "CalibrationSet", "draw", "make", "pin_range", "read_recipe", "show"]

log = logging.getLogger(__name__)

FOLDER = "calibration"


def draw(name: str, dataset: Dataset, split: Split) -> CalibrationSet:
    """The calibration set of that name.

    Args:
        name: a recipe of ``calibration/`` or a person's own .toml, by which pictures are drawn from the training
            part; or the folder of a set, which is checked against the data.
        dataset: what the model was trained on.
        split: its parts.

    Raises:
        RecipeError: no such recipe or set, or a recipe with a wrong key.
        DataError: a set that is damaged, or unfit for a model of this data, with the first reason.
    """
    folder = _set_folder(name)
    return _drawn(read_recipe(name), dataset, split) if folder is None else _checked(folder, dataset, split)


def make(
    subject: Run | str | Path | None,
    out: str | Path,
    *,
    recipe: str = "stratified",
    images: int | None = None,
    seed: int | None = None,
    data: DataSource | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> CalibrationSet:
    """Draw a calibration set from the training part and write its folder.

    Args:
        subject: a finished run, a training recipe's .toml, or None for ``data`` as ``edgerec train`` takes it.
        out: the set's folder.
        recipe: a recipe of ``calibration/``, or a .toml.
        images: how many pictures, in place of the recipe's.
        seed: which ones, in place of the recipe's.
        data: where the pictures are, in place of what ``subject`` says.
        overwrite: replace a set that is there.
        listener: told of the reading.

    Raises:
        EdgerecError: no such run, recipe or data, or something else stands at ``out``.
    """
    out = checked_output(out, [None if isinstance(subject, Run) else subject], data=data, folder=True)
    refuse_existing(out, overwrite, ours=is_set(out))
    wanted = read_recipe(recipe)
    wanted = replace(wanted, images=images or wanted.images, seed=wanted.seed if seed is None else seed)
    dataset, split, section = _open(subject, data, listener)
    drawn = _drawn(wanted, dataset, split)
    made = replace(drawn, source=section.without_folders.title, preprocess=section.preprocess)
    calibration_set.write(made, out, overwrite=overwrite)
    return made


def show(
    path: str | Path,
    out: str | Path,
    *,
    run: Run | str | Path | None = None,
    data: DataSource | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> int:
    """Draw a contact sheet with labels and the histogram of the pixel values, as a PNG.

    Args:
        path: a set; with ``run``, anything that can be checked.
        out: the PNG.
        run: whose training pictures' histogram is drawn beside it.
        data: where the run's pictures are now, if they were moved.
        overwrite: replace ``out``.
        listener: told of the reading.

    Returns:
        How many pictures the set has.
    """
    path = user_path(path)
    out = checked_output(out, [path, data], suffixes=(".png",))
    refuse_existing(out, overwrite)
    reference = None
    if run is None:
        shown = of_set(calibration_set.read(path), str(path))
    else:
        run = run if isinstance(run, Run) else Run.open(run)
        shown = open_offered(path, run.recipe.preprocess, run.labels)
        dataset, split = run.data(data, listener)
        reference = dataset.images[sample_of(dataset, split)]
    if not len(shown.images):
        raise DataError(str(shown.findings[0]))
    contact_sheet(shown.images, shown.labels or shown.names, reference, path.name, out)
    return len(shown.images)


def pin_range(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A copy whose first picture has one black and one white value in its corner.

    The converter takes the input's range from what it sees. With both ends seen, the input's scale is the
    normalisation's own, so that pixels pass through; other activations hardly notice two values.
    """
    pinned = images.copy()
    pinned[0].reshape(-1)[:2] = (0, 255)
    return pinned


def read_recipe(name: str) -> CalibrationRecipe:
    """Read ``calibration/NAME.toml``, or a person's own .toml.

    Raises:
        RecipeError: no such recipe, or one with other keys than ``method``, ``images`` and ``seed``.
    """
    path = find_shipped(FOLDER, name)
    if path is None:
        problem = unknown("calibration recipe", name, shipped_names(FOLDER))
        raise RecipeError(f"{problem}, and no folder of a calibration set either")
    try:
        values = read_toml(path)
    except ValueError as error:
        raise RecipeError(f"{path} is not TOML: {reason(path, error)}") from None
    for key, value in values.items():
        if key not in ("method", "images", "seed"):
            raise RecipeError(f"{path}: {unknown('calibration key', key, ('method', 'images', 'seed'))}")
        if key == "method":
            if value not in METHODS:
                raise RecipeError(f"{path}: {unknown('calibration method', value, METHODS)}")
        elif type(value) is not int or value < (key == "images"):
            raise RecipeError(f"{path}: {key} is {value!r}, expected a whole number of at least {int(key == 'images')}")
    return CalibrationRecipe(Path(name).name, **values)


def _set_folder(name: str) -> Path | None:
    """The set's folder that ``name`` means: a path, or one that comes with edgerec; a recipe's name goes first."""
    if name.endswith(".toml") or name in shipped_names(FOLDER):
        return None
    return next((path for path in (Path(name), shipped(FOLDER) / name) if is_set(path)), None)


def _drawn(recipe: CalibrationRecipe, dataset: Dataset, split: Split) -> CalibrationSet:
    if recipe.images > len(split.train):
        log.warning("calibration: %d pictures wanted, the training part has %d", recipe.images, len(split.train))
    rng = np.random.default_rng(recipe.seed)
    chosen = METHODS[recipe.method](dataset, split.train, recipe.images, rng)
    images = np.stack([dataset.images[i] for i in chosen])
    return CalibrationSet(
        recipe=recipe.name,
        images=images,
        digest=digest_of(images),
        labels=tuple(dataset.labels[dataset.classes[i]] for i in chosen),
        names=tuple(dataset.names[i] for i in chosen),
        drawn=recipe,
        data_digest=dataset.digest,
    )


def _checked(folder: Path, dataset: Dataset, split: Split) -> CalibrationSet:
    found = calibration_set.read(folder)
    findings = list(examine(of_set(found, str(folder)), dataset, split))
    if error := first_error(findings):
        more = sum(finding.severity == "error" for finding in findings) - 1
        others = f" ({more} more: {command('calibration', 'check', folder, '--run', 'RUN')})" if more else ""
        raise DataError(f"calibration set {folder} is refused: {error}{others}")
    for finding in findings:
        if finding.severity == "warning":
            log.warning("calibration set %s: %s", folder, finding)
    return found


def _open(
    subject: Run | str | Path | None, data: DataSource | None, listener: Listener
) -> tuple[Dataset, Split, DataSection]:
    """The data that ``subject`` trains on, its split, and how pictures become pixels."""
    if subject is not None and not str(subject).endswith(".toml"):
        run = subject if isinstance(subject, Run) else Run.open(subject)
        section = run.recipe.data
        return *run.data(data, listener), section if data is None else replace(section, source=one_or_tuple(data))
    recipe = Recipe() if subject is None else Recipe.from_toml(str(subject))
    if data is not None:
        recipe = recipe.override({"data.source": data}, "--data")
    dataset, section = load(recipe.data, least_size_px=least_size_px(recipe.model.arch), listener=listener)
    return dataset, split_dataset(dataset, section, recipe.seed), section
