"""Record a training run's split and image digests in ``split.json`` and in bundles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.data import Dataset, Split
from edgerec.errors import RunError


def split_record(dataset: Dataset, parts: Split, inherited: npt.NDArray[np.bytes_] | None = None) -> dict[str, Any]:
    """Return the content of ``split.json``, which records the split and the digest of the data.

    The record lists image names for readability. Packed data has no names, because its shards define the split. Digests
    of the image contents identify images that are moved or renamed later; see :func:`joined_digests`.

    Args:
        dataset: the images.
        parts: the split of the images.
        inherited: digests of other images used to train the initial weights.
    """
    listed = dataset.packed is None

    def names(positions: npt.NDArray[np.int64]) -> list[str]:
        return [dataset.names[i] for i in positions] if listed else []

    contents = None
    if dataset.contents is not None:
        contents = {name: joined_digests(dataset.contents[parts.part(name)]) for name in ("train", "val", "test")}
        contents["of"] = dataset.contents_of
        contents["moved"] = joined_digests(dataset.contents[parts.moved])
        contents["inherited"] = "" if inherited is None else joined_digests(inherited)
    return {
        "digest": dataset.digest,
        "train_images": len(parts.train),
        "val_images": len(parts.val),
        "test_images": len(parts.test),
        "held_out_here": parts.held_out,
        "split_by": "content" if parts.held_out and listed else "data",
        "skipped": list(dataset.skipped),
        "val": names(parts.val),
        "test": names(parts.test),
        "moved": names(parts.moved),
        "excluded": names(parts.excluded),
        "contents": contents,
    }


# Maximum number of training images whose digests are stored in a bundle.
SKETCH = 512


def split_summary(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a bundle's summary of ``split.json``, or None if ``split.json`` was written by an older version.

    ``sketch`` contains the smallest digests of the training images (a bottom-k sketch), for detecting data sets that
    overlap with the training images. ``moved`` contains the digests of images that are not in the split that their hash
    determines.
    """
    contents = record.get("contents")
    if not contents:
        return None
    trained = np.unique(np.concatenate([separated_digests(contents[name]) for name in ("train", "val", "inherited")]))
    return {
        "by": record["split_by"],
        "of": contents["of"],
        "moved": contents["moved"],
        "trained": len(trained),
        "sketch": joined_digests(trained[:SKETCH]),
    }


def joined_digests(contents: npt.NDArray[np.bytes_]) -> str:
    """Truncate each digest to 16 hexadecimal digits, and join the digests into one string."""
    return b"".join(shortened(contents).tolist()).decode()


def separated_digests(text: str) -> npt.NDArray[np.bytes_]:
    """Split the string returned by :func:`joined_digests` into an array of digests with 16 hexadecimal digits."""
    if len(text) % 16 or re.fullmatch("[0-9a-f]*", text) is None:
        raise RunError("the image digests in split.json are damaged: restore this file, or train again")
    return np.frombuffer(text.encode(), "S16") if text else np.empty(0, "S16")


def shortened(contents: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bytes_]:
    """Truncate each digest to its first 16 hexadecimal digits, as stored in runs."""
    return contents.astype("S16")
