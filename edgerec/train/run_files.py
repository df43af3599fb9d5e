"""Parse a run's files and check their structure, so that damaged files are reported clearly."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

from edgerec.utils.bounded import check_structure, parse_json

# Columns of history.csv.
HISTORY = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds", "stage")
# Expected structure of the run's JSON files, as passed to ``check_structure``.
# Keys ending in "?" are optional, because files written by older versions lack them.
_CLASS = {"precision": float, "recall": float, "f1": float, "support": int}
_MEASURED = {
    "images": int,
    "loss?": float,
    "per_class?": {"*": (_CLASS, {"error": float, "support": int})},
    "confusion?": [[int]],
    "labels?": [str],
}
METRICS = _MEASURED | {
    "parameters": int,
    "best_epoch?": int,
    "epochs?": int,
    "seconds?": float,
    "versions?": {"*": str},
    "adopted?": {
        **dict.fromkeys(("file", "sha256", "truth", "normalise"), str),
        "input_layer?": (str, type(None)),
    },
}
_DIGESTS = dict.fromkeys(("of", "train", "val", "test", "moved", "inherited"), str)
SPLIT = {
    "digest": str,
    **{f"{name}_images?": int for name in ("train", "val", "test")},
    **{f"{name}?": [str] for name in ("skipped", "val", "test", "moved", "excluded")},
    "held_out_here?": bool,
    "split_by?": str,
    "contents?": (_DIGESTS, type(None)),
}
_FORM = {
    "name": str,
    "top1": float,
    "agreement": float,
    "size_bytes": int,
    "gzip_bytes": int,
    "error?": (float, type(None)),
}
REPORT = {
    **dict.fromkeys(("variant", "method", "precision", "model_sha256"), str),
    **dict.fromkeys(("val_top1", "val_drop_points", "drop_points", "max_drop", "sparsity"), float),
    "forms": [_FORM, 2],
    "figures": {
        **{name.removesuffix("?"): structure for name, structure in _MEASURED.items()},
        "accuracy": float,
        "split": str,
        "training_images?": (int, type(None)),
    },
    "calibration": dict,
    "compress?": dict,
    "adapted?": [dict],
    "agreements?": {"*": float},
    "images": int,
    "versions": dict,
}
_ROW = {"method?": str, "variant": str, "size_bytes": int, "gzip_bytes": int, "*": (float, str, type(None))}
COMPARISON = {"rows": [_ROW], "machine": str, "threads": int, "notes": [str]}
# Maximum size of a run's text files. The largest is split.json, which lists all images.
MAX_FILE_BYTES = 256 << 20


def parse_object(structure: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    """Return a function that parses a JSON object and checks its structure."""

    def parse(text: str) -> dict[str, Any]:
        value: dict[str, Any] = parse_json(text, max_bytes=MAX_FILE_BYTES)
        check_structure(value, structure)
        return value

    return parse


def parse_labels(text: str) -> tuple[str, ...]:
    labels = tuple(text.splitlines())
    # Autoencoder runs may have no labels.
    if len(set(labels)) < len(labels):
        raise ValueError("a label occurs twice")
    return labels


def parse_history(text: str) -> list[dict[str, float]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    # Autoencoders have no accuracy, and older versions did not record the stage.
    optional = ("accuracy", "val_accuracy", "stage")
    values = [{key: float(row[key]) for key in HISTORY if key not in optional or row.get(key)} for row in rows]
    check_structure(values, [{"*": float}])
    return values
