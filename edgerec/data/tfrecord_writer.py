"""Write a data set as a pack of TFRecord shards, for data that does not fit into memory."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from edgerec.contract.preprocess import Image, PreprocessSpec
from edgerec.data.cache import DIGEST_CHARS, Digests, arrays_digest, content_digests
from edgerec.data.dataset import Dataset, list_images, read_fitted
from edgerec.data.raw_dataset import Arrays, Files, Merged, RawDataset
from edgerec.data.split import split_dataset
from edgerec.data.tfrecord_reader import (
    CONTENTS,
    ENTRY,
    INDEX,
    MANIFEST,
    SCHEMA,
    SPLITS,
    Indices,
    Packed,
    Shard,
    manifest_digest,
    parse_npy,
)
from edgerec.errors import DataError
from edgerec.recipe import DataSection, Recipe
from edgerec.utils.atomic import (
    checked_output,
    real_path,
    refuse_existing,
    replacing,
    replacing_folder,
    system_error,
    write_file,
)
from edgerec.utils.bounded_parsing import read_json
from edgerec.utils.json_types import check_type
from edgerec.utils.lock import Lock
from edgerec.utils.optional import require
from edgerec.utils.parallel import map_in_threads
from edgerec.utils.progress import Listener, ignore, track

log = logging.getLogger(__name__)

# Maximum size of a shard in bytes, which is large enough for the full bandwidth of object stores.
SHARD_BYTES = 64 << 20
# Minimum number of shards per split, so that training can shuffle the shards.
MIN_SHARDS = 16
# Minimum number of images per shard, which takes precedence over MIN_SHARDS.
MIN_IMAGES = 64


def pack_data(
    recipe: Recipe,
    out: str | Path,
    *,
    least_size_px: int = 8,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> Packed:
    """Preprocess and split a recipe's images, and write them as TFRecord shards.

    A shard is a TFRecord file of ``tf.train.Example`` records with the features ``image`` (uncompressed pixels),
    ``label`` (index of the class) and ``name`` (name of the original image). The images of a split are shuffled once.

    Args:
        recipe: the recipe. Only its ``data`` section and ``seed`` are used.
        out: folder of the pack. To train on the pack, set ``data.source`` to this folder.
        least_size_px: minimum input width and height that the network supports, in pixels.
        resume: reuse the complete shards of an interrupted pack of the same data.
        overwrite: replace an existing pack.
        listener: called with the progress.

    Raises:
        EdgerecError: the data cannot be packed, or ``out`` exists and is not a pack.
        InUseError: another process is writing this pack.
    """
    out = checked_output(out, data=recipe.data.source, folder=True)
    out = real_path(out) if str(out) in (".", "..") else out
    refuse_existing(out, overwrite, replaceable=(out / MANIFEST).is_file())
    with Lock(out):
        return _write_pack(recipe, out, least_size_px, resume, overwrite, listener)


def _write_pack(
    recipe: Recipe, out: Path, least_size_px: int, resume: bool, overwrite: bool, listener: Listener
) -> Packed:
    source, section = list_images(recipe.data, least_size_px=least_size_px, listener=listener)
    if not source.labels:
        raise DataError(
            f"{section.title} has no class folders, so its images have no labels: move the images of each class into a "
            "folder"
        )
    dataset = Dataset.of(source, section)
    unfinished = out.with_name(f".{out.name}.packing")
    settings = {"source": section.source, "data": asdict(section), "seed": recipe.seed, "images": _fingerprint(source)}
    _begin(unfinished, settings, resume)
    dataset = replace(dataset, contents=_load_or_compute_digests(source, unfinished / CONTENTS, listener))
    parts = split_dataset(dataset, section, recipe.seed)
    parts.report()
    image_bytes = int(np.prod(section.preprocess.shape))
    plan = [shard for split in SPLITS for shard in _plan_shards(split, parts.part(split), image_bytes, recipe.seed)]
    writer = _ShardWriter(source, dataset, section.preprocess, unfinished)
    written = (None for name, positions in plan for _ in writer.shard(name, positions, section.strict))
    for _ in track(written, "packing", len(dataset.names), listener):
        pass
    return _finish(writer, plan, section, out, overwrite)


def _load_or_compute_digests(source: RawDataset, path: Path, listener: Listener) -> Digests:
    if path.is_file():
        with _damage_explained(path.parent):
            stored: Digests = parse_npy(path.read_bytes(), np.dtype(f"S{DIGEST_CHARS}"), len(source.classes))
        return stored
    parts = source.parts if isinstance(source, Merged) else (source,)
    contents = np.concatenate([_part_contents(part, listener) for part in parts])
    _write_array(path, contents)
    return contents


@contextmanager
def _damage_explained(unfinished: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{unfinished} is damaged ({error}). Pack the data again without --resume") from None


def _part_contents(source: Arrays | Files, listener: Listener) -> Digests:
    if isinstance(source, Arrays):
        return content_digests(source.images)
    digests = []
    for path in track(source.paths, "identifying images", len(source.paths), listener):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_CHARS])
    return np.array(digests, f"S{DIGEST_CHARS}")


def _write_array(path: Path, array: npt.NDArray[Any]) -> None:
    write_file(path, _npy(array))


def _npy(array: npt.NDArray[Any]) -> bytes:
    # The array is serialized in memory first, because NumPy's error for a full disk does not state the cause.
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _plan_shards(split: str, positions: Indices, image_bytes: int, seed: int) -> list[tuple[str, Indices]]:
    shuffled = np.random.default_rng([seed, SPLITS.index(split)]).permutation(positions)
    count_by_size = -(-len(positions) * image_bytes // SHARD_BYTES)
    count = max(count_by_size, min(MIN_SHARDS, len(positions) // MIN_IMAGES), 1)
    names = (f"{split}-{number:05d}-of-{count:05d}.tfrecord" for number in range(count))
    return list(zip(names, np.array_split(shuffled, count), strict=True))


def _begin(unfinished: Path, settings: dict[str, Any], resume: bool) -> None:
    plan = unfinished / "plan.json"
    text = json.dumps(settings)
    if unfinished.exists():
        same = plan.is_file() and plan.read_text(encoding="utf-8") == text
        if resume and same:
            log.info("resuming the interrupted pack")
            return
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    write_file(plan, text)


class _FinishedShard(TypedDict):
    size_bytes: int
    sha256: str
    skipped: list[str]


class _ShardWriter:
    """Write each shard atomically, together with a file that describes its contents.

    ``dataset`` has the names, classes and digests of the images of ``source``, but not their pixels.
    """

    def __init__(self, source: RawDataset, dataset: Dataset, spec: PreprocessSpec, folder: Path) -> None:
        self.source, self.dataset, self.spec, self.folder = source, dataset, spec, folder

    def shard(self, name: str, positions: Indices, strict: bool) -> Iterator[None]:
        """Write a shard unless it already exists, and yield once per image to report the progress."""
        about = self.folder / f"{name}.json"
        if about.is_file() and (self.folder / name).is_file() and (self.folder / f"{name}.{CONTENTS}").is_file():
            yield from (None for _ in positions)
            return
        tf = require("tensorflow")
        entries, contents, skipped, end = [], [], [], 0
        with replacing(self.folder / name) as partial:
            with _disk_errors(tf, partial), tf.io.TFRecordWriter(str(partial)) as file:
                for position, image in zip(positions, self._images(positions), strict=True):
                    yield
                    if image is None:
                        skipped.append(self.dataset.names[position])
                        if strict:
                            raise DataError(
                                f"{skipped[0]} is not a readable image: remove it, or pack without --strict"
                            )
                        continue
                    pixels = image.tobytes()
                    label = int(self.source.classes[position])
                    record = _example(tf, pixels, label, self.dataset.names[position])
                    file.write(record)
                    # A TFRecord consists of an 8-byte length, a 4-byte CRC, the data and another 4-byte CRC.
                    entries.append((end + 12 + record.index(pixels), label, zlib.crc32(pixels)))
                    contents.append(b"" if self.dataset.contents is None else self.dataset.contents[position])
                    end += 16 + len(record)
            with partial.open("rb") as written:
                digest = hashlib.file_digest(written, "sha256").hexdigest()
        _write_array(self.folder / f"{name}.npy", np.array(entries, ENTRY))
        _write_array(self.folder / f"{name}.{CONTENTS}", np.array(contents, f"S{DIGEST_CHARS}"))
        write_file(about, json.dumps({"size_bytes": end, "sha256": digest, "skipped": skipped}))

    def _images(self, positions: Indices) -> Iterator[Image | None]:
        return map_in_threads(lambda position: read_fitted(self.source, int(position), self.spec), positions.tolist())


@contextmanager
def _disk_errors(tf: Any, path: Path) -> Iterator[None]:
    """Convert TensorFlow's errors for a full or damaged disk to :class:`OSError`."""
    try:
        yield
    except tf.errors.OpError as error:
        system = system_error(error)
        if system is None:
            raise DataError(f"{path} cannot be written: {error.message}") from None
        raise OSError(system.errno, system.strerror, str(path)) from None


def _example(tf: Any, pixels: bytes, label: int, name: str) -> bytes:
    feature, text = tf.train.Feature, name.encode(errors="surrogateescape")
    features = {
        "image": feature(bytes_list=tf.train.BytesList(value=[pixels])),
        "label": feature(int64_list=tf.train.Int64List(value=[label])),
        "name": feature(bytes_list=tf.train.BytesList(value=[text])),
    }
    record: bytes = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)
    return record


def _finish(
    writer: _ShardWriter, plan: list[tuple[str, Indices]], section: DataSection, out: Path, overwrite: bool
) -> Packed:
    shards, indices, contents, skipped = [], [], [], []
    for name, positions in plan:
        with _damage_explained(writer.folder):
            about = read_json(writer.folder / f"{name}.json")
            check_type(about, _FinishedShard)
            count = len(positions) - len(about["skipped"])
            indices.append(parse_npy((writer.folder / f"{name}.npy").read_bytes(), ENTRY, count))
            digests = (writer.folder / f"{name}.{CONTENTS}").read_bytes()
            contents.append(parse_npy(digests, np.dtype(f"S{DIGEST_CHARS}"), count))
        skipped += about["skipped"]
        shards.append(Shard(name, name.partition("-")[0], count, about["size_bytes"], about["sha256"]))
    index = np.concatenate(indices)
    train = index["class"][: sum(shard.images for shard in shards if shard.split == "train")]
    if empty := set(range(len(writer.dataset.labels))) - set(np.unique(train).tolist()):
        raise DataError(f"class {writer.dataset.labels[min(empty)]!r} has no training images: add images to this class")
    for split, title in zip(SPLITS, ("training", "validation", "test"), strict=True):
        if not any(shard.images for shard in shards if shard.split == split):
            files = f" (skipped {len(skipped)} files, such as {skipped[0]})" if skipped else ""
            raise DataError(
                f"{section.title} has no readable {title} images{files}: restore the files that are not readable, or "
                "remove them so that other images are chosen"
            )
    if skipped:
        log.warning("skipped %d files that are not readable images: %s", len(skipped), ", ".join(skipped[:5]))
    about = {
        "schema": SCHEMA,
        "labels": list(writer.dataset.labels),
        "preprocess": asdict(section.preprocess),
        "group_by": section.group_by,
        "shards": [asdict(shard) for shard in shards],
        "skipped": skipped,
        "contents_of": writer.dataset.contents_of,
    }
    about["digest"] = manifest_digest(about)
    with replacing_folder(out, overwrite=overwrite) as partial:
        for shard in shards:
            (writer.folder / shard.file).rename(partial / shard.file)
        (partial / INDEX).write_bytes(_npy(index))
        (partial / CONTENTS).write_bytes(_npy(np.concatenate(contents)))
        (partial / MANIFEST).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(writer.folder)
    return Packed.open(str(out))


def _fingerprint(source: RawDataset) -> str:
    digest = hashlib.sha256()
    for part in source.parts if isinstance(source, Merged) else (source,):
        if isinstance(part, Arrays):
            digest.update(arrays_digest(part).encode())
            continue
        for name, path in zip(part.names, part.paths, strict=True):
            status = path.stat()
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
