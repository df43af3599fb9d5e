"""Read and write calibration sets, i.e. the images used to measure activation ranges.

The folder contains the preprocessed images as PNG files, with one subfolder per class, and ``calibration.json`` with
the recipe, the data and the SHA-256 of the pixels. The folder can also be used as an image folder with ``--data``.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.calibration.sampling import SAMPLING_METHODS
from edgerec.contract.image_decoding import decode
from edgerec.contract.preprocess import Image, PreprocessSpec, apply, encode_png
from edgerec.contract.toml_settings import choice, setting
from edgerec.errors import DataError
from edgerec.utils.atomic import real_path, refuse_existing, replacing_folder, sha256, write_file
from edgerec.utils.bounded_parsing import read_json
from edgerec.utils.names import file_names
from edgerec.utils.text import to_json

SCHEMA_VERSION = 1
ABOUT = "calibration.json"
COPY_AGAIN = "copy the calibration set again, or create a new one"


@dataclass(frozen=True)
class CalibrationRecipe:
    """Sampling settings for a calibration set: the method, the number of images and the seed."""

    name: str
    method: str = choice("stratified", "", SAMPLING_METHODS)
    images: int = setting(200, "", "an integer of at least 1", lambda value: value >= 1)
    seed: int = setting(0, "", "an integer of at least 0", lambda value: value >= 0)


@dataclass(frozen=True)
class CalibrationSet:
    """Images for measuring activation ranges, and their origin.

    Attributes:
        recipe: name of the calibration recipe, or of the folder from which the set was read.
        images: preprocessed images, uint8 ``(N, H, W, C)``.
        digest: SHA-256 of ``images``, as stored in the manifest.
        labels, names: label of each image, and its name in the data set.
        drawn: the calibration recipe used to sample the images.
        source, data_digest: name and SHA-256 of the data set that the images were sampled from.
        preprocess: preprocessing of the images.
    """

    recipe: str
    images: npt.NDArray[np.uint8]
    digest: str
    labels: tuple[str, ...]
    names: tuple[str, ...]
    drawn: CalibrationRecipe
    data_digest: str
    source: str = ""
    preprocess: PreprocessSpec | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of ``calibration.json``, i.e. all fields except the pixels."""
        height, width, channels = self.images.shape[1:]
        preprocess = self.preprocess or PreprocessSpec(height, width, channels)
        return {
            "schema": SCHEMA_VERSION,
            "recipe": asdict(self.drawn),
            "source": self.source,
            "split": "train",
            "data_digest": self.data_digest,
            "preprocess": preprocess.to_dict(),
            "digest": self.digest,
            "counts": dict(sorted(Counter(self.labels).items())),
            "images": [
                {"file": file, "label": label, "from": name}
                for file, label, name in zip(_files(self.labels), self.labels, self.names, strict=True)
            ],
        }


def digest_of(images: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256 digest of the images' pixels as a hexadecimal string."""
    return sha256(np.ascontiguousarray(images).tobytes())


def is_set(path: Path) -> bool:
    """Return whether ``path`` is the folder of a calibration set, which may be damaged."""
    return (path / ABOUT).is_file()


def write(calibration_set: CalibrationSet, path: str | Path, *, overwrite: bool = False) -> None:
    """Save a calibration set to a folder atomically.

    An existing folder is replaced only if it is a calibration set.
    """
    path = Path(path)
    refuse_existing(path, overwrite, replaceable=is_set(path))
    about = calibration_set.to_dict()
    with replacing_folder(path, overwrite=overwrite) as partial:
        for entry, image in zip(about["images"], calibration_set.images, strict=True):
            file = partial / entry["file"]
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(encode_png(image))
        write_file(partial / ABOUT, to_json(about, indent=1) + "\n")


def read(path: str | Path, *, verify: bool = True) -> CalibrationSet:
    """Load a calibration set from its folder.

    Args:
        path: the folder.
        verify: raise an error if the SHA-256 of the pixels differs from the recorded one. ``digest`` is always the
            recorded one.

    Raises:
        DataError: ``path`` is not a calibration set, its schema is newer, or an image is missing, damaged, modified or
            has the wrong size.
    """
    path = Path(path)
    try:
        values = read_json(path / ABOUT)
    except FileNotFoundError:
        raise DataError(
            f"{path} is not a calibration set (it has no {ABOUT}): create one with edgerec calibration make"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}/{ABOUT} is not valid JSON ({error}): create the calibration set again") from None
    loaded = _from_values(path, values)
    if verify and digest_of(loaded.images) != loaded.digest:
        raise DataError(
            f"{path}: the images are modified or damaged (their SHA-256 digest does not match {ABOUT}): {COPY_AGAIN}"
        )
    return loaded


def _from_values(path: Path, values: Any) -> CalibrationSet:
    schema = values.get("schema") if isinstance(values, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise DataError(
            f"{path}/{ABOUT} has schema version {schema}, but this version of edgerec only supports up to "
            f"{SCHEMA_VERSION}: upgrade edgerec"
        )
    if schema != SCHEMA_VERSION:
        raise DataError(f"{path}/{ABOUT} has schema version {schema!r}, expected {SCHEMA_VERSION}: {COPY_AGAIN}")
    try:
        spec = PreprocessSpec.from_dict(values["preprocess"])
        entries = [(_string(p["file"]), _string(p["label"]), _string(p["from"])) for p in values["images"]]
        if not entries:
            raise ValueError("it lists no images")
        if len({file for file, _, _ in entries}) < len(entries):
            raise ValueError("it lists an image twice")
        known = {key: _string(values[key]) for key in ("digest", "data_digest", "source")}
        drawn = CalibrationRecipe(**_object(values["recipe"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}/{ABOUT} is damaged ({error!r}): {COPY_AGAIN}") from None
    return CalibrationSet(
        recipe=real_path(path).name,
        images=np.stack([_read_image(path, file, spec) for file, _, _ in entries]),
        labels=tuple(label for _, label, _ in entries),
        names=tuple(name for _, _, name in entries),
        drawn=drawn,
        preprocess=spec,
        **known,
    )


def _read_image(path: Path, name: str, spec: PreprocessSpec) -> Image:
    file = real_path(path / name.replace("\0", ""))
    if not file.is_relative_to(real_path(path)):
        raise DataError(
            f"{path}: the image {name!r} is outside the calibration set's folder: do not use this set unless you trust "
            "its source"
        )
    if not file.is_file():
        raise DataError(f"{path}: {name} is missing: {COPY_AGAIN}")
    with file.open("rb") as stream:
        # Limit the read size, because a valid PNG file is hardly larger than its raw pixels.
        content = stream.read(2 * spec.height * spec.width * spec.channels + 65536)
    # Check the size in the PNG header before decoding, to avoid decompressing a huge image.
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[16:24] != struct.pack(">II", spec.width, spec.height):
        raise DataError(f"{path}: {name} is not a PNG file of {spec.width}×{spec.height} pixels: {COPY_AGAIN}")
    image = decode(content)
    if image is None:
        raise DataError(f"{path}: {name} is a damaged PNG file: {COPY_AGAIN}")
    return apply(image, spec)


def _files(labels: tuple[str, ...]) -> list[str]:
    """Return each image's path within the calibration set's folder, such as ``cat/0003.png``."""
    folders = file_names(labels)
    return [f"{folders[label]}/{number:04d}.png" for number, label in enumerate(labels)]


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")
    return value


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not {"name", "method", "images", "seed"} >= value.keys():
        raise ValueError(f"recipe is {value!r}")
    return value
