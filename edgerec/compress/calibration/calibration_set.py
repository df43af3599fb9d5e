"""A calibration set: pictures that set activation ranges, and the folder in which people look at and copy them.

The folder has the pictures as PNG, exactly as the model sees them, one folder a class, and ``calibration.json``: what
drew them from what, and the SHA-256 over their pixels. It is an image folder too, as ``--data`` takes it.
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

from edgerec.contract.preprocess import Image, PreprocessSpec, apply, decode, encode_png
from edgerec.errors import DataError
from edgerec.utils.atomic import real_path, refuse_existing, replacing_folder, sha256, write_file
from edgerec.utils.bounded import read_json
from edgerec.utils.names import file_names
from edgerec.utils.text import to_json

SCHEMA_VERSION = 1
ABOUT = "calibration.json"


@dataclass(frozen=True)
class CalibrationRecipe:
    """How a set is drawn: by which method, how many pictures, in which seed."""

    name: str
    method: str = "stratified"
    images: int = 200
    seed: int = 0


@dataclass(frozen=True)
class CalibrationSet:
    """Pictures, and where they come from.

    Attributes:
        recipe: name of the recipe that drew them, or of the folder that they were read from.
        images: uint8 ``(N, H, W, C)``, as the model sees them.
        digest: SHA-256 over ``images``, which goes into the manifest.
        labels, names: of each picture its class, and where it lay in the data.
        drawn: the recipe that drew them.
        source, data_digest: name and SHA-256 of the data that they are of.
        preprocess: how the data's pictures became these.
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
        """All but the pixels, as ``calibration.json`` has it."""
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
            "pictures": [
                {"file": file, "label": label, "from": name}
                for file, label, name in zip(_files(self.labels), self.labels, self.names, strict=True)
            ],
        }


def digest_of(images: npt.NDArray[np.uint8]) -> str:
    """Hex SHA-256 over the pixels, picture by picture, row by row."""
    return sha256(np.ascontiguousarray(images).tobytes())


def is_set(path: Path) -> bool:
    """Whether a calibration set, whole or damaged, stands there."""
    return (path / ABOUT).is_file()


def write(chosen: CalibrationSet, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a set's folder whole or not at all; only another set is ever replaced."""
    path = Path(path)
    refuse_existing(path, overwrite, ours=is_set(path))
    about = chosen.to_dict()
    with replacing_folder(path, overwrite=overwrite) as partial:
        for entry, image in zip(about["pictures"], chosen.images, strict=True):
            file = partial / entry["file"]
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(encode_png(image))
        write_file(partial / ABOUT, to_json(about, indent=1) + "\n")


def read(path: str | Path, *, verify: bool = True) -> CalibrationSet:
    """Read a set's folder.

    Args:
        path: the folder.
        verify: refuse pixels whose SHA-256 is not the recorded one; without, ``digest`` is still the recorded one.

    Raises:
        DataError: no set there, a newer schema, or a picture that is missing, damaged, changed or of another size.
    """
    path = Path(path)
    try:
        values = read_json(path / ABOUT)
    except FileNotFoundError:
        raise DataError(
            f"{path} is no calibration set (it has no {ABOUT}): edgerec calibration make writes one"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}/{ABOUT} is not JSON ({error}): make the set again") from None
    found = _from_values(path, values)
    if verify and digest_of(found.images) != found.digest:
        raise DataError(
            f"{path}: pictures were changed or damaged (their SHA-256 is not that of {ABOUT}): "
            "copy or make the set again"
        )
    return found


def _from_values(path: Path, values: Any) -> CalibrationSet:
    schema = values.get("schema") if isinstance(values, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise DataError(f"{path}/{ABOUT} has schema {schema}, this edgerec reads up to {SCHEMA_VERSION}: upgrade it")
    if schema != SCHEMA_VERSION:
        raise DataError(f"{path}/{ABOUT} has schema {schema!r}, expected {SCHEMA_VERSION}: make the set again")
    try:
        spec = PreprocessSpec.from_dict(values["preprocess"])
        pictures = [(_text(p["file"]), _text(p["label"]), _text(p["from"])) for p in values["pictures"]]
        if not pictures:
            raise ValueError("it lists no pictures")
        if len({file for file, _, _ in pictures}) < len(pictures):
            raise ValueError("it lists an image twice")
        known = {key: _text(values[key]) for key in ("digest", "data_digest", "source")}
        drawn = CalibrationRecipe(**_object(values["recipe"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}/{ABOUT} is damaged ({error!r}): copy or make the set again") from None
    return CalibrationSet(
        recipe=real_path(path).name,
        images=np.stack([_picture(path, file, spec) for file, _, _ in pictures]),
        labels=tuple(label for _, label, _ in pictures),
        names=tuple(name for _, _, name in pictures),
        drawn=drawn,
        preprocess=spec,
        **known,
    )


def _picture(path: Path, name: str, spec: PreprocessSpec) -> Image:
    file = real_path(path / name.replace("\0", ""))
    if not file.is_relative_to(real_path(path)):
        raise DataError(f"{path}: the picture {name!r} leads out of the set: do not trust it")
    if not file.is_file():
        raise DataError(f"{path}: {name} is missing: copy or make the set again")
    with file.open("rb") as stream:
        content = stream.read(2 * spec.height * spec.width * spec.channels + 65536)  # a PNG is hardly larger than raw
    # A PNG's header says its size, so that nothing is unpacked to find out that it is enormous.
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[16:24] != struct.pack(">II", spec.width, spec.height):
        raise DataError(f"{path}: {name} is no PNG of {spec.width}×{spec.height} pixels: copy or make the set again")
    image = decode(content)
    if image is None:
        raise DataError(f"{path}: {name} is a damaged PNG: copy or make the set again")
    return apply(image, spec)


def _files(labels: tuple[str, ...]) -> list[str]:
    """Return the path of each image in the set: a folder for each label, and the number of the image."""
    folders = file_names(labels)
    return [f"{folders[label]}/{number:04d}.png" for number, label in enumerate(labels)]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not {"name", "method", "images", "seed"} >= value.keys():
        raise ValueError(f"recipe is {value!r}")
    return value
