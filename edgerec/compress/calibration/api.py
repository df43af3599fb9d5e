"""Create, save and display calibration sets."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerec.compress.calibration import calibration_set
from edgerec.compress.calibration.calibration_set import CalibrationRecipe, CalibrationSet, digest_of, is_set
from edgerec.compress.calibration.check import examine, first_error, sample_positions
from edgerec.compress.calibration.loading import candidate_from_set, open_candidate
from edgerec.compress.calibration.sampling import SAMPLING_METHODS
from edgerec.compress.compression_plots import contact_sheet
from edgerec.contract.toml_settings import from_settings, read_settings
from edgerec.data import Dataset, Split, load, split_dataset
from edgerec.errors import DataError, RecipeError, unknown
from edgerec.models import least_size_px
from edgerec.recipe import DataSection, DataSource, Recipe, one_or_tuple
from edgerec.train.run import Run
from edgerec.utils.atomic import checked_output, refuse_existing, user_path
from edgerec.utils.command_line import command
from edgerec.utils.package_data import find_shipped, shipped, shipped_names
from edgerec.utils.progress import Listener, ignore

__all__ = ["CalibrationRecipe", "CalibrationSet", "draw", "make", "pin_range", "read_recipe", "show"]

log = logging.getLogger(__name__)

FOLDER = "calibration"


def draw(name: str, dataset: Dataset, split: Split) -> CalibrationSet:
    """Sample a calibration set as described by a calibration recipe, or load an existing set.

    Args:
        name: name of a recipe in ``calibration/``, path of a .toml recipe, or folder of a calibration set. Recipes
            sample from the training images. An existing set is checked against the data.
        dataset: the data set the model was trained on.
        split: the data set's training, validation and test images.

    Raises:
        RecipeError: there is no such recipe or set, or the recipe has an unknown key.
        DataError: the set is damaged or unsuitable for a model trained on this data.
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
    """Sample a calibration set from the training images, and save it to a folder.

    Args:
        subject: a finished run, the .toml file of a training recipe, or None to use ``data`` with the default recipe.
        out: output folder for the calibration set.
        recipe: name of a calibration recipe in ``calibration/``, or path of a .toml file.
        images: number of images, or None for the number in the calibration recipe.
        seed: seed of the random selection, or None for the seed in the calibration recipe.
        data: location of the images, or None for the images of ``subject``.
        overwrite: replace an existing set.
        listener: receives the progress.

    Raises:
        EdgerecError: there is no such run, recipe or data, or ``out`` exists and is not a calibration set.
    """
    out = checked_output(out, [None if isinstance(subject, Run) else subject], data=data, folder=True)
    refuse_existing(out, overwrite, replaceable=is_set(out))
    settings = read_recipe(recipe)
    settings = replace(settings, images=images or settings.images, seed=settings.seed if seed is None else seed)
    dataset, split, section = _open(subject, data, listener)
    drawn = _drawn(settings, dataset, split)
    complete = replace(drawn, source=section.without_folders.title, preprocess=section.preprocess)
    calibration_set.write(complete, out, overwrite=overwrite)
    return complete


def show(
    path: str | Path,
    out: str | Path,
    *,
    run: Run | str | Path | None = None,
    data: DataSource | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> int:
    """Write a PNG file with a contact sheet of the labeled images and a histogram of their pixel values.

    Args:
        path: a calibration set. With ``run``, it can also be an image folder or an .npz or .npy file.
        out: output path for the PNG file.
        run: a run whose training images' histogram is shown in the background.
        data: current location of the run's images, if they were moved.
        overwrite: replace ``out``.
        listener: receives the progress.

    Returns:
        The number of images in the set.
    """
    path = user_path(path)
    out = checked_output(out, [path, data], suffixes=(".png",))
    refuse_existing(out, overwrite)
    reference = None
    if run is None:
        candidate = candidate_from_set(calibration_set.read(path), str(path))
    else:
        run = run if isinstance(run, Run) else Run.open(run)
        candidate = open_candidate(path, run.recipe.preprocess, run.labels)
        dataset, split = run.data(data, listener)
        reference = dataset.images[sample_positions(dataset, split)]
    if not len(candidate.images):
        raise DataError(str(candidate.findings[0]))
    contact_sheet(candidate.images, candidate.labels or candidate.names, reference, path.name, out)
    return len(candidate.images)


def pin_range(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return a copy of the uint8 images with the values 0 and 255 in a corner of the first image.

    The converter derives the input range from the calibration images. If these contain both extreme values, the input's
    scale matches the normalization, and the quantized input is the pixel value itself. Two values hardly affect the
    ranges of other activations.
    """
    pinned = images.copy()
    pinned[0].reshape(-1)[:2] = (0, 255)
    return pinned


def read_recipe(name: str) -> CalibrationRecipe:
    """Load a calibration recipe, given the name of a built-in recipe or the path of a .toml file.

    Raises:
        RecipeError: the recipe does not exist, or has keys other than ``method``, ``images`` and ``seed``.
    """
    path = find_shipped(FOLDER, name)
    if path is None:
        problem = unknown("calibration recipe", name, shipped_names(FOLDER))
        raise RecipeError(f"{problem}, and there is no calibration set with this path")
    values = read_settings(path, RecipeError, "check its path")
    return from_settings(CalibrationRecipe, values, str(path), "calibration", RecipeError, name=Path(name).name)


def _set_folder(name: str) -> Path | None:
    """Return the folder of a calibration set, or None if ``name`` is the name of a recipe."""
    if name.endswith(".toml") or name in shipped_names(FOLDER):
        return None
    return next((path for path in (Path(name), shipped(FOLDER) / name) if is_set(path)), None)


def _drawn(recipe: CalibrationRecipe, dataset: Dataset, split: Split) -> CalibrationSet:
    if recipe.images > len(split.train):
        log.warning(
            "the calibration recipe asks for %d images, but there are only %d training images",
            recipe.images,
            len(split.train),
        )
    rng = np.random.default_rng(recipe.seed)
    chosen = SAMPLING_METHODS[recipe.method](dataset, split.train, recipe.images, rng)
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
    checked_set = calibration_set.read(folder)
    findings = list(examine(candidate_from_set(checked_set, str(folder)), dataset, split))
    if error := first_error(findings):
        more = sum(finding.severity == "error" for finding in findings) - 1
        others = f" ({more} more: {command('calibration', 'check', folder, '--run', 'RUN')})" if more else ""
        raise DataError(f"cannot use the calibration set {folder}: {error}{others}")
    for finding in findings:
        if finding.severity == "warning":
            log.warning("calibration set %s: %s", folder, finding)
    return checked_set


def _open(
    subject: Run | str | Path | None, data: DataSource | None, listener: Listener
) -> tuple[Dataset, Split, DataSection]:
    """Return the data set, the split and the ``data`` section of a run or a training recipe."""
    if subject is not None and not str(subject).endswith(".toml"):
        run = subject if isinstance(subject, Run) else Run.open(subject)
        section = run.recipe.data
        return *run.data(data, listener), section if data is None else replace(section, source=one_or_tuple(data))
    recipe = Recipe() if subject is None else Recipe.from_toml(str(subject))
    if data is not None:
        recipe = recipe.override({"data.source": data}, "--data")
    dataset, section = load(recipe.data, least_size_px=least_size_px(recipe.model.arch), listener=listener)
    return dataset, split_dataset(dataset, section, recipe.seed), section
