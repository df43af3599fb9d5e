"""Load the preprocessed images of a data set, with their classes, splits and names."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgerec.contract.image_decoding import Levels, decode, memory_for, read_image_file, why_unreadable
from edgerec.contract.preprocess import PREPROCESS_VERSION, Image, PreprocessSpec, apply
from edgerec.data import readers
from edgerec.data.bit_depth import determine_levels
from edgerec.data.cache import DIGEST_CHARS, Digests, Pixels, pixels
from edgerec.data.merged import MergedImages, merged_pixels
from edgerec.data.raw_dataset import Arrays, Files, Merged, RawDataset
from edgerec.data.tfrecord_reader import Packed, PackedImages, is_pack
from edgerec.errors import DataError, RecipeError
from edgerec.recipe import DataSection
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)

# Minimum and maximum input size in pixels that edgerec chooses automatically.
AUTO_SIZE_PX = (28, 96)
_READ_BATCH = 256


Images = npt.NDArray[np.uint8] | PackedImages | MergedImages


class SelectedImages:
    """Lazily loaded subset of a data set's images that supports ``len``, slicing and iteration."""

    def __init__(self, images: Images, positions: npt.NDArray[np.int64]) -> None:
        self._images, self._positions = images, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, selection: slice) -> npt.NDArray[np.uint8]:
        """Return a slice of the images as a uint8 array of shape ``(n, height, width, channels)``."""
        return self._images[self._positions[selection]]

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        for start in range(0, len(self), _READ_BATCH):
            yield from self[start : start + _READ_BATCH]


@dataclass(frozen=True)
class Dataset:
    """Preprocessed images with their classes and splits.

    Attributes:
        images: uint8 ``(N, height, width, channels)``, already preprocessed.
        classes: ``(N,)``, index into ``labels``. All 0 if the data has no labels.
        splits: ``(N,)``, the data's own split of each image (``train``, ``val`` or ``test``), or empty strings if the
            data has no splits.
        names: name of each image, such as its path relative to the image folder.
        digest: SHA-256 over the names and contents of all images.
        labels: name of each class, or an empty tuple if the data has no labels.
        skipped: names of the files that are not readable images.
        contents: ``(N,)``, digest of each image's content, computed from the bytes of its file or from its pixels in
            an array. The digest identifies an image even if its file is moved or renamed. None for packs of older
            versions, which have no digests.
    """

    images: Images
    classes: npt.NDArray[np.int64]
    splits: npt.NDArray[np.str_]
    labels: tuple[str, ...]
    names: Sequence[str]
    digest: str
    skipped: tuple[str, ...]
    _originals: RawDataset | Packed
    _positions: npt.NDArray[np.int64]
    contents: Digests | None = None
    _levels: Levels | None = None

    @classmethod
    def of(cls, source: RawDataset, section: DataSection, stored: Pixels | None = None) -> Dataset:
        """Create a data set from raw images and their preprocessed pixels.

        Args:
            source: the images before preprocessing.
            section: preprocessing of the images.
            stored: preprocessed pixels of ``source``. None creates a data set that has names and classes, but no
                images and no digests.
        """
        names = source.names
        if stored is None:
            no_images = np.empty((0, *section.preprocess.shape), np.uint8)
            no_digests = np.empty(0, f"S{DIGEST_CHARS}")
            stored = Pixels(no_images, np.ones(len(source.classes), bool), "", no_digests)
        positions = np.flatnonzero(stored.valid)
        return cls(
            stored.images,
            source.classes[positions],
            source.splits[positions],
            source.labels,
            tuple(names[i] for i in positions),
            stored.digest,
            tuple(names[i] for i in np.flatnonzero(~stored.valid)),
            source,
            positions,
            stored.contents if len(stored.contents) == len(positions) else None,
            section.levels,
        )

    def below_class_folder(self, index: int) -> str:
        """Return the path of an image relative to its class folder, such as ``anna/1.jpg``.

        If the image is not a file, return its name.
        """
        if isinstance(self._originals, Packed):
            return self.names[index]
        part, position = self._originals.locate(int(self._positions[index]))
        return part.below_class_folder(position) if isinstance(part, Files) else self.names[index]

    @property
    def contents_of(self) -> str:
        """Source of the content digests: ``files`` (bytes), ``arrays`` (pixels) or ``arrays+files``."""
        if isinstance(self._originals, Packed):
            return self._originals.contents_of
        parts = self._originals.parts if isinstance(self._originals, Merged) else (self._originals,)
        return "+".join(sorted({"arrays" if isinstance(part, Arrays) else "files" for part in parts}))

    def identifies(self, contents_of: str) -> bool:
        """Return whether the content digests of two data sets can be compared.

        Args:
            contents_of: :attr:`contents_of` of the other data set.
        """
        return self.contents is not None and not set(contents_of.split("+")).isdisjoint(self.contents_of.split("+"))

    @property
    def packed(self) -> Packed | None:
        """Pack of TFRecord shards that contains the data set, or None if the data set is not packed."""
        return self._originals if isinstance(self._originals, Packed) else None

    def select(self, positions: npt.NDArray[np.int64]) -> SelectedImages:
        """Return the images at ``positions``, which are loaded lazily to save memory."""
        return SelectedImages(self.images, positions)

    def original(self, index: int) -> Image:
        """Return an image before preprocessing.

        Packs contain only preprocessed images, which are returned unchanged.

        Returns:
            uint8 ``(H, W, 3)`` RGB, or ``(H, W)`` or ``(H, W, 1)`` gray.
        """
        position = self._positions[index]
        if isinstance(self._originals, Packed):
            return self.images[index]
        image = read_original(self._originals, int(position), self._levels)
        if image is None:
            raise DataError(
                f"{self.names[index]} was readable when the data was listed, but no longer is: restore the file"
            )
        return image

    def relabeled(self, labels: Sequence[str], true_labels: Mapping[str, str] | None = None) -> Dataset:
        """Return a copy of the data set that uses the labels of a model.

        The model may have classes that are not in the data set.

        Args:
            labels: labels of the model.
            true_labels: dictionary that maps the name of each image to its true label, for data without labels.

        Raises:
            DataError: a class of the data, or a label in ``true_labels``, is not among ``labels``.
        """
        own = list(self.labels) if true_labels is None else [true_labels.get(name, "") for name in self.names]
        index = {label: i for i, label in enumerate(labels)}
        if missing := [label for label in own if label not in index]:
            known = ", ".join(labels[:10])
            raise DataError(
                f"the data has the class {missing[0]!r}, but the model does not ({known}): remove or rename this class"
            )
        indices = np.array([index[label] for label in own], np.int64)
        return replace(self, labels=tuple(labels), classes=indices[self.classes] if true_labels is None else indices)


def load(
    section: DataSection,
    *,
    least_size_px: int = 8,
    flat: bool = False,
    least_classes: int = 2,
    listener: Listener = ignore,
) -> tuple[Dataset, DataSection]:
    """Load a data set, using cached pixels if they exist.

    Args:
        section: source and preprocessing of the images.
        least_size_px: smallest input size of the architecture, in pixels.
        flat: accept an image folder without class folders.
        least_classes: minimum number of classes, if the data has labels.
        listener: called with the progress.

    Returns:
        The data set, and the section with ``input_size`` and ``channels`` filled in.

    Raises:
        DataError: the data set does not exist, has too few classes, or has unreadable images with ``strict``.
    """
    if isinstance(section.source, str) and is_pack(section.source):
        dataset, section = _load_pack(Packed.open(section.source), section, least_size_px)
        _check_classes(dataset, section.title, least_classes, "")
        return dataset, section
    source, section = list_images(section, least_size_px=least_size_px, flat=flat, listener=listener)
    spec = section.preprocess
    stored = merged_pixels(source, spec, listener) if isinstance(source, Merged) else pixels(source, spec, listener)
    dataset = Dataset.of(source, section, stored)
    reason = _reason_of_first_skip(source, dataset)
    _report_skipped(dataset.skipped, section, reason)
    _check_classes(dataset, section.title, least_classes, reason)
    return dataset, section


def list_images(
    section: DataSection, *, least_size_px: int = 8, flat: bool = False, listener: Listener = ignore
) -> tuple[RawDataset, DataSection]:
    """List the images of a data set, and infer missing settings such as the input size.

    Warnings about an unusual folder structure are logged.

    Returns:
        The listed images, and the section with the input size, the channels and the levels filled in.
    """
    source = readers.find(section.source, flat=flat, levels=section.levels)
    if not isinstance(source, Arrays):
        for text in source.warnings:
            log.warning("%s", text)
    if section.levels is None:
        levels = determine_levels(source, section.title, listener)
        section = replace(section, black_level=levels.black, white_level=levels.white)
    return source, _resolve(section, source, least_size_px)


def read_original(source: RawDataset, position: int, levels: Levels | None) -> Image | None:
    """Return an image at its original size.

    Returns:
        uint8 ``(H, W, 3)`` RGB, or the row of the array. None if the file is not a readable image.
    """
    part, index = source.locate(position)
    return part.images[index] if isinstance(part, Arrays) else decode(read_image_file(part.paths[index]), levels)


def read_fitted(source: RawDataset, position: int, spec: PreprocessSpec) -> Image | None:
    """Read and preprocess one image.

    Returns:
        uint8 of shape ``spec.shape``, or None if the file is not a readable image.
    """
    part, index = source.locate(position)
    if isinstance(part, Arrays):
        return apply(part.images[index], spec)
    content = read_image_file(part.paths[index])
    with memory_for(content):
        image = decode(content, spec.levels)
        return None if image is None else apply(image, spec)


def _load_pack(pack: Packed, section: DataSection, least_size_px: int) -> tuple[Dataset, DataSection]:
    spec, default = pack.preprocess, DataSection()
    for key, value in pack.data_settings.items():
        requested = getattr(section, key)
        if requested not in (getattr(default, key), value):
            raise RecipeError(
                f"data.{key} is {requested!r}, but {pack.location} was packed with {value!r}: remove data.{key}, or "
                "pack the data again with this value"
            )
    if spec.width < least_size_px:
        raise RecipeError(
            f"{pack.location} has images of {spec.width}×{spec.width} pixels, but this architecture needs at least "
            f"{least_size_px}×{least_size_px}: pack the data again with data.input_size={least_size_px}"
        )
    positions = np.arange(len(pack.index))
    classes = pack.index["class"].astype(np.int64)
    dataset = Dataset(
        pack.images,
        classes,
        pack.splits,
        pack.labels,
        pack.names,
        pack.digest,
        pack.skipped,
        pack,
        positions,
        pack.contents,
    )
    return dataset, replace(section, **pack.data_settings)


def _resolve(section: DataSection, source: RawDataset, least_size_px: int) -> DataSection:
    if isinstance(source, Merged):
        parts = [_resolve(section, part, least_size_px) for part in source.parts]
        size, channels = (max(getattr(part, key) for part in parts) for key in ("input_size", "channels"))
        return replace(parts[0], input_size=size, channels=channels)
    size, channels = section.input_size, section.channels
    if size and size < least_size_px:
        raise RecipeError(f"data.input_size is {size}, but this architecture needs at least {least_size_px} pixels")
    if isinstance(source, Arrays):
        height, width, own_channels = source.shape
        own_size = min(height, width)
    else:
        own_size, own_channels = (size or typical_side_px(source)), 3
    low, high = AUTO_SIZE_PX
    size = size or int(np.clip(own_size, max(low, least_size_px), high))
    version = section.preprocess_version or PREPROCESS_VERSION
    return replace(section, input_size=size, channels=channels or own_channels, preprocess_version=version)


def typical_side_px(files: Files) -> int:
    """Estimate the median length of the images' shorter side in pixels from a sample of the images."""
    sample = np.linspace(0, len(files.paths) - 1, num=min(25, len(files.paths)), dtype=int)
    images = (decode(read_image_file(files.paths[i])) for i in sample)
    sides = [min(image.shape[:2]) for image in images if image is not None]
    return int(np.median(sides)) if sides else 0


def _reason_of_first_skip(source: RawDataset, dataset: Dataset) -> str:
    if not dataset.skipped:
        return ""
    position = source.names.index(dataset.skipped[0])
    part, index = source.locate(position)
    try:
        return why_unreadable(read_image_file(part.paths[index])) if isinstance(part, Files) else ""
    except OSError as error:
        return str(error.strerror)


def _report_skipped(skipped: tuple[str, ...], section: DataSection, reason: str) -> None:
    if not skipped:
        return
    examples = ", ".join(skipped[:5]) + (" …" if len(skipped) > 5 else "")
    text = f"{len(skipped)} files that are not readable images: {examples} ({skipped[0]}: {reason})"
    if section.strict:
        raise DataError(f"{section.title} contains {text}. Remove these files, or set data.strict=false")
    log.warning("%s: skipped %s", section.title, text)


def _check_classes(dataset: Dataset, source: str, least: int, reason: str) -> None:
    if not dataset.labels:
        if len(dataset.classes) < 3:
            raise DataError(
                f"{source} has {len(dataset.classes)} images, but needs at least 3 (for training, validation and test)"
                ": add images"
            )
        return
    counts = np.bincount(dataset.classes, minlength=len(dataset.labels))
    if empty := [label for label, count in zip(dataset.labels, counts, strict=True) if not count]:
        because = f" ({reason})" if reason else ""
        raise DataError(
            f"{source}: class {empty[0]!r} has no readable image{because}: add images, or remove the class folder"
        )
    if len(dataset.labels) < least:
        raise DataError(
            f"{source} has only one class ({dataset.labels[0]!r}), but a classifier needs at least two: add a class"
        )
