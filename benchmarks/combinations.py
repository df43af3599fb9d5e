"""Do recipe keys take effect in combination? Trains a pairwise table of them on digits for a few steps each.

    python benchmarks/combinations.py [--rows 3,7] [--out combinations.json]

Every value of every key meets every value of every other key in at least one row. A row passes if each of its settings
can be observed in the training or in the variant, e.g. as the batch size that the layers see or as unchanged batch
normalization. Prints a table and exits with 1 if a row fails. Two devices are two logical CPUs. Takes 10 to 15 minutes
on two CPU cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]

FACTORS: dict[str, tuple[Any, ...]] = {
    "devices": (1, 2),
    "class_weights": ("none", "balanced"),
    "mix": ("none", "mixup", "cutmix"),
    "accumulate": (1, 2),
    "mixed_precision": (False, True),
    "stages": ("one", "transfer"),
    "early_stopping": (0, 1),
    "freeze_bn": (True, False),
    "compress": ("none", "ptq", "qat", "prune", "cluster", "channels", "prune+qat"),
    "resume": (False, True),
}
BATCH, SIZE = 32, 8
BASE = {
    "model.arch": "vgg_small",
    "model.width": 0.5,
    "data.source": "digits",
    "data.input_size": SIZE,
    "data.test_fraction": 0.4,
    "train.epochs": 6,
    "train.batch_size": BATCH,
    "train.learning_rate": 0.005,
    "transfer.frozen": 0.34,
    "transfer.unfreeze": 0.0,
    "compress.epochs": 2,
    "compress.max_drop": 100.0,
    "compress.sparsity": 0.5,
    "compress.clusters": 16,
    "compress.channels": 0.3,
}


def pairwise(factors: dict[str, tuple[Any, ...]]) -> list[Row]:
    """Return few rows in which all pairs of values of different factors occur (greedy)."""
    names = list(factors)
    missing = {
        ((one, a), (two, b))
        for one, two in itertools.combinations(names, 2)
        for a in factors[one]
        for b in factors[two]
    }
    rows = []
    while missing:
        row = dict(min(missing, key=repr))
        for name in sorted(names, key=lambda name: -len(factors[name])):
            if name not in row:
                row[name] = max(factors[name], key=lambda value: len(_pairs(row | {name: value}, names) & missing))
        rows.append({name: row[name] for name in names})
        missing -= _pairs(row, names)
    return rows


def _pairs(row: Row, names: list[str]) -> set[Any]:
    return set(itertools.combinations([(name, row[name]) for name in names if name in row], 2))


def recipe_of(row: Row, weights: Path) -> Any:
    """Return the recipe of a row; ``weights`` are what transfer starts from."""
    from edgerec import Recipe

    changes = BASE | {
        "train.class_weights": row["class_weights"],
        "train.accumulate": row["accumulate"],
        "train.mixed_precision": row["mixed_precision"],
        "train.early_stopping": row["early_stopping"],
        "transfer.freeze_bn": row["freeze_bn"],
        "model.weights": str(weights) if row["stages"] == "transfer" else "none",
    }
    if row["mix"] != "none":
        changes[f"augment.{row['mix']}"] = 1.0
    if row["compress"] != "none":
        changes["compress.method"] = row["compress"]
    return Recipe().override(changes)


@contextmanager
def observed() -> Iterator[dict[str, Any]]:
    """Record what layers and ``Model.fit`` see in the block."""
    from edgerec.train.keras import keras

    seen: dict[str, Any] = {"batches": set(), "feeds": []}
    convolution, model = keras().layers.Conv2D, keras().Model
    call, fit = convolution.call, model.fit

    def watched_call(self: Any, inputs: Any) -> Any:
        seen["batches"].add(inputs.shape[0])
        return call(self, inputs)

    def watched_fit(self: Any, x: Any, **options: Any) -> Any:
        seen["feeds"].append(x.element_spec)
        return fit(self, x, **options)

    convolution.call, model.fit = watched_call, watched_fit
    try:
        yield seen
    finally:
        convolution.call, model.fit = call, fit


class Interrupted(Exception):
    """Raised after the epoch that a row with ``resume`` is interrupted at."""


def check(row: Row, folder: Path, weights: Path) -> list[str]:
    """Train and compress a row; return what did not take effect."""
    from edgerec import Run, fit, quantize
    from edgerec.train.feed import steps_per_epoch

    recipe, out, epochs = recipe_of(row, weights), folder / "run", []

    def on_epoch(number: int, model: Any) -> None:
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        norm = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
        epochs.append(
            {
                "number": number,
                "copies": len(getattr(model.weights[0], "values", [0])) if row["devices"] > 1 else 1,
                "learning": sum(bool(layer.trainable_weights) for layer in model.layers),
                "weighted": sum(bool(layer.weights) for layer in model.layers),
                "updates": int(optimizer.iterations.numpy()),
                "dtypes": {layer.compute_dtype for layer in model.layers},
                "statistics": [value.numpy() for layer in norm for value in (layer.moving_mean, layer.moving_variance)],
            }
        )
        if row["resume"] and number == len(epochs) == 2:
            raise Interrupted

    with observed() as seen:
        if row["resume"]:
            with suppress(Interrupted):
                fit(recipe, out, on_epoch=on_epoch)
            before = Run.at(out).history()
        run = fit(recipe, out, on_epoch=on_epoch, resume=row["resume"])
    failures, history = [], run.history()

    def expect(what: str, condition: Any) -> None:
        if not condition:
            failures.append(what)

    dataset, parts = run.data()
    steps = steps_per_epoch(parts.train, run.recipe)
    each = BATCH // row["devices"] // row["accumulate"]
    expect(f"devices: {epochs[0]['copies']} copies of each weight", epochs[0]["copies"] == row["devices"])
    expect(f"accumulate: layers see batches of {seen['batches']}, expected {each}", each in seen["batches"])
    if row["devices"] * row["accumulate"] > 1:
        expect("accumulate: layers see whole batches", BATCH not in seen["batches"])
    by_stage: dict[float, int] = {}
    for line, epoch in zip(history, epochs, strict=True):
        by_stage[line["stage"]] = by_stage.get(line["stage"], 0) + 1
        expected = steps * by_stage[line["stage"]]
        expect(
            f"updates: {epoch['updates']} in epoch {epoch['number']}, expected {expected}", epoch["updates"] == expected
        )
    _pixels, classes, *weight = seen["feeds"][0]
    expect(
        "class_weights: batches have weights" if weight else "class_weights: batches have no weights",
        bool(weight) == (row["class_weights"] == "balanced"),
    )
    expect(f"mix: classes of rank {_rank(classes)}", (_rank(classes) == 2) == (row["mix"] != "none"))
    failures += _wrong_weights(run.recipe, dataset, parts)
    mixed = any(name != "float32" for name in epochs[-1]["dtypes"])
    expect(f"mixed_precision: layers compute in {epochs[-1]['dtypes']}", mixed == row["mixed_precision"])
    if row["stages"] == "transfer":
        norms = len(epochs[0]["statistics"]) // 2
        every = epochs[-1]["weighted"] - norms * row["freeze_bn"]
        expect(f"stages: {epochs[0]['learning']} layers learn at first", epochs[0]["learning"] == 1)
        expect(f"stages: {epochs[-1]['learning']} of {every} layers learn at last", epochs[-1]["learning"] == every)
        kept = _same(epochs[-1]["statistics"], _statistics(weights))
        expect(f"freeze_bn: statistics {'kept' if kept else 'changed'}", kept == row["freeze_bn"])
    failures += _wrong_ends(run)
    if row["resume"]:
        expect("resume: the first epochs were trained again", history[: len(before)] == before)
        expect("resume: epochs are missing", [e["number"] for e in epochs] == [int(r["epoch"]) for r in history])
    if row["compress"] != "none":
        report = quantize(run, row["compress"])
        failures += _wrong_variant(run, report, row["compress"])
    return failures


def _rank(spec: Any) -> int:
    components = getattr(spec, "_component_specs", None) or [spec]
    return len(components[0].shape)


def _statistics(path: Path) -> list[Any]:
    from edgerec.train.keras import load_model

    layers = [layer for layer in load_model(path).layers if type(layer).__name__ == "BatchNormalization"]
    return [value.numpy() for layer in layers for value in (layer.moving_mean, layer.moving_variance)]


def _same(ones: list[Any], others: list[Any]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(ones, others, strict=True))


def _wrong_weights(recipe: Any, dataset: Any, parts: Any) -> list[str]:
    """Compare the weights of two batches with the frequency of the classes."""
    from edgerec.train.feed import training_feed

    if recipe.train.class_weights == "none":
        return []
    counts = np.bincount(dataset.classes[parts.train])
    by_class = counts.sum() / (len(counts) * counts)
    for _, classes, weights in training_feed(dataset, parts.train, recipe, first_epoch=0).take(2):
        expected = classes.numpy() @ by_class if len(classes.shape) == 2 else by_class[classes.numpy()]
        if not np.allclose(weights, expected, rtol=1e-4):
            return ["class_weights: images have other weights than their classes"]
    return []


def _wrong_ends(run: Any) -> list[str]:
    """Check that each stage ended when its epochs or its patience were over."""
    from edgerec.train.run import best_epoch
    from edgerec.train.transfer import stages

    found, patience, history = [], run.recipe.train.early_stopping, run.history()
    for stage in stages(run.recipe):
        rows = [row for row in history if row["stage"] == stage.number]
        waited = int(rows[-1]["epoch"]) - best_epoch(rows) if rows else 0
        stalled = bool(patience) and waited >= patience
        if (len(rows) != stage.last - stage.first and not stalled) or waited > patience > 0:
            found.append(f"early_stopping: stage {stage.number} has {len(rows)} epochs, {waited} after the best")
    return found


def _wrong_variant(run: Any, report: Any, method: str) -> list[str]:
    """Check what a compression method promises."""
    found = []
    if "prune" in method and report.sparsity < 0.4:
        found.append(f"{method}: {report.sparsity:.0%} of the weights are zero")
    if method in ("ptq", "qat", "prune+qat") and report.precision != "int8":
        found.append(f"{method}: precision {report.precision}")
    size = (run.path / report.variant / "model.tflite").stat().st_size
    if method == "channels" and size >= 0.97 * _int8_size(run):
        found.append("channels: the file is not smaller")
    return found


def _int8_size(run: Any) -> int:
    from edgerec import quantize

    report = quantize(run, "ptq")
    return int((run.path / report.variant / "model.tflite").stat().st_size)


def work(numbers: list[int], devices: int, scratch: Path) -> None:
    """Check rows in this process, and print a JSON line for each."""
    import tensorflow as tf

    if devices > 1:
        logical = [tf.config.LogicalDeviceConfiguration()] * devices
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], logical)
    from edgerec import Recipe, fit
    from edgerec.train import keras as backend

    # Mixed precision would be refused on a CPU without bfloat16 units.
    backend.CPU = scratch / "cpuinfo"
    backend.CPU.write_text("flags : amx_bf16\n")
    first = fit(Recipe().override(BASE | {"train.epochs": 2}), scratch / "first")
    for number in numbers:
        row = pairwise(FACTORS)[number]
        try:
            failures = check(row, scratch / str(number), first.path / "model.keras")
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            failures = [f"{type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name}:{place.lineno})"]
        print(json.dumps({"number": number, "failures": failures}), flush=True)


def main() -> int:
    """Check all rows, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="numbers of rows to check [default: all]")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--work", nargs=2, metavar=("DEVICES", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows = pairwise(FACTORS)
    numbers = [int(number) for number in options.rows.split(",")] if options.rows else list(range(len(rows)))
    if options.work:
        work(numbers, int(options.work[0]), Path(options.work[1]))
        return 0
    print(f"{len(rows)} rows;  " + "  ".join(FACTORS), flush=True)
    results = {}
    for devices in FACTORS["devices"]:
        mine = [number for number in numbers if rows[number]["devices"] == devices]
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, __file__, "--rows", ",".join(map(str, mine)), "--work", str(devices), scratch]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if mine else None
            for line in process.stdout or () if process else ():
                result = json.loads(line)
                results[result["number"]] = result["failures"]
                values = "  ".join(str(value) for value in rows[result["number"]].values())
                print(f"{result['number']:2}  {values}  {'; '.join(result['failures']) or 'ok'}", flush=True)
            if process and process.wait():
                print(f"the process for {devices} devices failed", flush=True)
    if options.out:
        options.out.write_text(json.dumps([rows[n] | {"failures": results.get(n)} for n in numbers], indent=1) + "\n")
    failed = [number for number in numbers if results.get(number) != []]
    print(f"{len(numbers) - len(failed)} of {len(numbers)} rows passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
