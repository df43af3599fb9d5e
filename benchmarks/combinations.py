"""Train and compress a pairwise table of recipe keys, and check that each setting takes effect in each row.

The table has about 22 rows, in which every pair of values of two different factors occurs. Each row trains for a few
epochs on digits with classes of different sizes, and compresses the result. Each setting is checked by its effect, for
example on the batch sizes of layers, on the losses of single steps, on batch normalization or on the weights of the
.tflite file. A row with resume is interrupted during training and during fine-tuning, and must end with the same
weights as an uninterrupted row. The script prints a table, and exits with 1 if a row fails. Rows with two devices use
two logical CPUs. The script needs about 8 minutes of CPU time and runs two processes at a time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import queue
import subprocess
import sys
import tempfile
import threading
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
BATCH = 32
CLASS_SIZES = (170, 130, 100, 60, 40)
SPARSITY, CLUSTERS = 0.5, 16
BASE = {
    "model.arch": "vgg_small",
    "model.width": 0.5,
    "data.input_size": 8,
    "data.test_fraction": 0.4,
    "train.epochs": 6,
    "train.batch_size": BATCH,
    "train.learning_rate": 0.005,
    "transfer.frozen": 0.34,
    "transfer.unfreeze": 0.0,
    "compress.epochs": 2,
    "compress.max_drop": 100.0,
    "compress.sparsity": SPARSITY,
    "compress.clusters": CLUSTERS,
    "compress.channels": 0.3,
}


def pairwise(factors: dict[str, tuple[Any, ...]]) -> list[Row]:
    """Return a small set of rows that contains all pairs of values of different factors (greedy algorithm)."""
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


def write_data(path: Path) -> None:
    """Write digits with classes of different sizes as an .npz file."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = np.concatenate([np.flatnonzero(digits.target == n)[:size] for n, size in enumerate(CLASS_SIZES)])
    images = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    np.savez(path, x_train=images, y_train=digits.target[chosen])


def recipe_of(row: Row, data: Path, weights: Path) -> Any:
    """Return the recipe of a row; ``weights`` is the path of the pretrained weights for transfer learning."""
    from edgerec import Recipe

    changes = BASE | {
        "data.source": str(data),
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


class Observer:
    """Recorder of training steps and ``Model.fit`` calls of Keras.

    Attributes:
        batches: batch sizes that convolutions received in training steps.
        losses: classes, scores, image weights (or None) and loss of each micro-batch of each training step.
        fits: for each call of ``Model.fit``, the number of copies of each weight, whether fake quantization was used,
            and the statistics, scales and offsets of batch normalization before and after the call.
    """

    def __init__(self) -> None:
        self.batches: set[int] = set()
        self.losses: list[tuple[Any, Any, Any, float]] = []
        self.fits: list[dict[str, Any]] = []

    @classmethod
    @contextmanager
    def watching(cls) -> Iterator[Observer]:
        """Patch Keras while the block runs, and yield an observer that records the training."""
        import tensorflow as tf

        from edgerec.train.backend import keras

        observer, validating = cls(), threading.local()
        convolution, model = keras().layers.Conv2D, keras().Model
        originals = convolution.call, model.fit, model.compute_loss, model.test_step
        fitting = 0

        def call(layer: Any, inputs: Any) -> Any:
            if fitting and inputs.shape[0]:
                observer.batches.add(inputs.shape[0])
            return originals[0](layer, inputs)

        def fit(trained: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal fitting
            before, fitting = _normalization(trained), fitting + 1
            try:
                return originals[1](trained, *arguments, **options)
            finally:
                fitting -= 1
                wrapped = any("Quantize" in type(layer).__name__ for layer in trained.layers)
                values = {"copies": _copies(trained), "qat": wrapped}
                observer.fits.append(values | {"before": before, "after": _normalization(trained)})

        def note(classes: Any, scores: Any, loss: Any, weights: Any) -> Any:
            observer.losses.append((classes, scores, weights if weights.size else None, float(loss)))
            return np.float32(0)

        def compute_loss(
            trained: Any, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None
        ) -> Any:
            loss = originals[2](trained, x, y, y_pred, sample_weight)
            if not fitting or getattr(validating, "now", False):
                return loss
            weight = tf.zeros([0]) if sample_weight is None else sample_weight
            noted = tf.numpy_function(note, [y, tf.cast(y_pred, tf.float32), loss, weight], tf.float32)
            with tf.control_dependencies([noted]):
                return tf.identity(loss)

        def test_step(trained: Any, data: Any) -> Any:
            validating.now = True
            try:
                return originals[3](trained, data)
            finally:
                validating.now = False

        convolution.call, model.fit, model.compute_loss, model.test_step = call, fit, compute_loss, test_step
        try:
            yield observer
        finally:
            convolution.call, model.fit, model.compute_loss, model.test_step = originals


def _copies(model: Any) -> int:
    return len(getattr(model.weights[0], "values", [0]))


def _normalization(model: Any) -> tuple[list[Any], list[Any]]:
    """Return copies of the statistics, and of the scales and offsets, of all batch normalization layers."""
    layers = [layer for layer in model.submodules if type(layer).__name__ == "BatchNormalization"]
    return (
        [value.numpy() for layer in layers for value in (layer.moving_mean, layer.moving_variance)],
        [value.numpy() for layer in layers for value in (layer.gamma, layer.beta)],
    )


def _equal_arrays(first: list[Any], second: list[Any]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


class Interrupted(Exception):
    """Raised to interrupt the training or fine-tuning of a row with ``resume``."""


class Check:
    """Checks of one row.

    Attributes:
        failures: a message for each failed check.
        passed: number of successful checks.
        facts: measured values to print.
    """

    def __init__(self, row: Row, data: Path, folder: Path, weights: Path) -> None:
        self.row, self.folder, self.weights = row, folder, weights
        self.recipe = recipe_of(row, data, weights)
        self.each = BATCH // row["devices"] // row["accumulate"]
        self.failures: list[str] = []
        self.facts: list[str] = []
        self.passed = 0

    def expect(self, description: str, condition: Any) -> None:
        """Count a successful check, or add ``what`` to the failures if ``condition`` is false."""
        if condition:
            self.passed += 1
        elif description not in self.failures:
            self.failures.append(description)

    def run(self) -> None:
        """Train and compress the row, and check the effects of all settings."""
        from edgerec import fit

        trained = self.train()
        unbroken = trained
        if self.row["resume"]:
            unbroken = fit(self.recipe, self.folder / "unbroken")
            weights, others = trained.model().weights, unbroken.model().weights
            for one, other in zip(weights, others, strict=True):
                difference = float(np.abs(one.numpy() - other.numpy()).max())
                self.expect(f"resume: {one.name} differs by {difference:.2g} from uninterrupted", difference == 0)
        if self.row["compress"] != "none":
            self.compress(trained, unbroken)

    def train(self) -> Any:
        """Train, and check the settings of training."""
        from edgerec import Run, fit
        from edgerec.train.input_pipeline import steps_per_epoch

        row, out, epochs = self.row, self.folder / "run", []

        def on_epoch(number: int, model: Any) -> None:
            optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
            epochs.append(
                {
                    "number": number,
                    "learning": sum(bool(layer.trainable_weights) for layer in model.layers),
                    "weighted": sum(bool(layer.weights) for layer in model.layers),
                    "updates": int(optimizer.iterations.numpy()),
                    "dtypes": {layer.compute_dtype for layer in model.layers},
                    "normalization": _normalization(model),
                }
            )
            if row["resume"] and number == len(epochs) == 2:
                raise Interrupted

        with Observer.watching() as observer:
            if row["resume"]:
                with suppress(Interrupted):
                    fit(self.recipe, out, on_epoch=on_epoch)
                before = Run.at(out).history()
            run = fit(self.recipe, out, on_epoch=on_epoch, resume=row["resume"])
        history = run.history()
        dataset, parts = run.data()
        steps = steps_per_epoch(parts.train, run.recipe)
        if row["resume"]:
            self.expect("resume: the first epochs were trained again", history[: len(before)] == before)
            numbers = [int(line["epoch"]) for line in history]
            self.expect("resume: epochs are missing", [epoch["number"] for epoch in epochs] == numbers)
        self.check_steps(observer, steps * len(epochs))
        self.check_losses(observer, np.bincount(dataset.classes[parts.train]), mixed=row["mix"] != "none")
        by_stage: dict[float, int] = {}
        for line, epoch in zip(history, epochs, strict=True):
            by_stage[line["stage"]] = by_stage.get(line["stage"], 0) + 1
            expected = steps * by_stage[line["stage"]]
            self.expect(
                f"updates: {epoch['updates']} by epoch {epoch['number']}, expected {expected}",
                epoch["updates"] == expected,
            )
        reduced = any(name != "float32" for name in epochs[-1]["dtypes"])
        self.expect(f"mixed_precision: layers compute in {epochs[-1]['dtypes']}", reduced == row["mixed_precision"])
        self.facts.append("+".join(str(count) for count in by_stage.values()) + " epochs")
        self.check_stages(epochs)
        self.check_ends(run)
        return run

    def check_steps(self, observer: Observer, steps: int) -> None:
        """Check the devices and the gradient accumulation of a training or fine-tuning with ``steps`` steps."""
        row, copies = self.row, {fit["copies"] for fit in observer.fits}
        self.expect(f"devices: {copies} copies of each weight", copies == {row["devices"]})
        self.expect(
            f"accumulate: layers compute batches of {observer.batches}, expected {self.each}",
            observer.batches == {self.each},
        )
        expected = steps * row["devices"] * row["accumulate"]
        self.expect(f"accumulate: {len(observer.losses)} losses, expected {expected}", len(observer.losses) == expected)

    def check_losses(self, observer: Observer, counts: Any, *, mixed: bool) -> None:
        """Check the image weights against the class sizes, and each loss against its scores, classes and weights."""
        balanced = self.row["class_weights"] == "balanced"
        weight_of_class = counts.sum() / (len(counts) * counts) if balanced else np.ones(len(counts))
        for classes, scores, weights, loss in observer.losses:
            self.expect(f"mix: classes of rank {classes.ndim}", (classes.ndim == 2) == mixed)
            shares = classes if classes.ndim == 2 else np.eye(len(counts))[classes.ravel().astype(int)]
            expected = shares @ weight_of_class
            self.expect("class_weights: images have weights", balanced or weights is None)
            if balanced:
                right = weights is not None and np.allclose(weights.ravel(), expected, rtol=1e-4)
                self.expect("class_weights: images do not have the weights of their classes", right)
            entropy = -(shares * np.log(np.clip(scores, 1e-7, 1))).sum(axis=1)
            mean = float((entropy * expected).mean()) / self.row["devices"]
            self.expect(
                f"class_weights: a loss is {loss:.5f}, expected {mean:.5f}",
                np.isclose(loss, mean, rtol=1e-3, atol=1e-5),
            )
        if mixed:
            blended = [((shares > 0).sum(axis=1) == 2).any() for shares, *_ in observer.losses]
            self.expect(f"mix: {np.mean(blended):.0%} of the batches have mixed images", np.mean(blended) > 0.9)

    def check_stages(self, epochs: list[dict[str, Any]]) -> None:
        """Check which layers are trainable in each stage, and whether batch normalization is frozen."""
        from edgerec.importing.keras_files import load_model

        first, last = epochs[0], epochs[-1]
        statistics, affine = last["normalization"]
        if self.row["stages"] == "one":
            self.expect(f"stages: {first['learning']} layers trainable", first["learning"] == first["weighted"])
            self.expect("freeze_bn: statistics stay at 0 and 1", not _equal_arrays(statistics[:1], [0 * statistics[0]]))
            return
        frozen = self.row["freeze_bn"]
        learning = last["weighted"] - len(statistics) // 2 * frozen
        self.expect(f"stages: {first['learning']} layers trainable", first["learning"] == 1)
        self.expect(f"stages: {last['learning']} of {learning} layers trainable at last", last["learning"] == learning)
        for description, values, start in zip(
            ("statistics", "scales"), (statistics, affine), _normalization(load_model(self.weights)), strict=True
        ):
            kept = _equal_arrays(values, start)
            self.expect(f"freeze_bn: {description} {'kept' if kept else 'changed'} in training", kept == frozen)

    def check_ends(self, run: Any) -> None:
        """Check that each stage ended after its number of epochs or when its patience was exhausted."""
        from edgerec.train.stages import stages

        patience, history = self.row["early_stopping"], run.history()
        for stage in stages(run.recipe):
            rows = [line for line in history if line["stage"] == stage.number]
            ranks = [(-line["val_accuracy"], line["val_loss"]) for line in rows]
            waited = [n - ranks.index(min(ranks[: n + 1])) for n in range(len(ranks))]
            stops = [n + 1 for n, epochs in enumerate(waited) if patience and epochs >= patience]
            expected = min([*stops, stage.last - stage.first])
            self.expect(
                f"early_stopping: stage {stage.number} has {len(rows)} epochs, expected {expected}",
                len(rows) == expected,
            )
            if expected < stage.last - stage.first:
                self.facts.append("ended early")

    def compress(self, run: Any, unbroken: Any) -> None:
        """Quantize, and check the effects of the compression method and of the training settings in fine-tuning."""
        from edgerec import quantize
        from edgerec.train.input_pipeline import steps_per_epoch

        method = self.row["compress"]
        dataset, parts = run.data()
        steps = steps_per_epoch(parts.train, run.recipe)

        def interrupt(progress: Any) -> None:
            if progress.total == 2 * steps < progress.done + steps:
                raise Interrupted

        with Observer.watching() as observer:
            report = quantize(unbroken, method)
        if method != "ptq":
            stages = method.split("+")
            self.check_steps(observer, 2 * steps * len(stages))
            # Fine-tuning does not use mixup or cutmix.
            self.check_losses(observer, np.bincount(dataset.classes[parts.train]), mixed=False)
            self.check_frozen(observer)
        self.check_file(unbroken, report)
        if self.row["resume"]:
            interrupted = False
            try:
                resumed = quantize(run, method, listener=interrupt)
            except Interrupted:
                interrupted = True
                resumed = quantize(run, method, resume=True)
            self.expect("resume: the fine-tuning was not interrupted", interrupted == (method != "ptq"))
            same = self.same_file(run, unbroken, report)
            self.expect("resume: the .tflite file differs from that of an uninterrupted row", same)
            self.expect("resume: the resumed variant has another name", resumed.variant == report.variant)

    def same_file(self, run: Any, other: Any, report: Any) -> bool:
        """Return whether two variants have the same int8 weights."""
        pairs = zip(*(_kernels(_graph(one, report.variant)) for one in (run, other)), strict=True)
        return all(np.array_equal(one, another) for one, another in pairs)

    def check_frozen(self, observer: Observer) -> None:
        """Check whether batch normalization is frozen in each fine-tuning."""
        frozen = self.row["freeze_bn"] and self.row["stages"] == "transfer"
        for fit in observer.fits:
            location = "quantization-aware training" if fit["qat"] else "fine-tuning"
            statistics, affine = (_equal_arrays(*pair) for pair in zip(fit["before"], fit["after"], strict=True))
            if fit["before"][0]:
                self.expect(
                    f"freeze_bn: statistics {'kept' if statistics else 'changed'} in {location}",
                    statistics == (frozen or fit["qat"]),
                )
                if not fit["qat"]:
                    self.expect(f"freeze_bn: scales {'kept' if affine else 'changed'} in {location}", affine == frozen)

    def check_file(self, run: Any, report: Any) -> None:
        """Check the tensors of the .tflite file."""
        from edgerec.tflite.flatbuffer import float_tensors

        method, graph, plain = self.row["compress"], _graph(run, report.variant), _graph(run, "float32")
        self.expect(f"{method}: the file has float tensors", not float_tensors(graph))
        kernels, float_kernels = _kernels(graph), _kernels(plain)
        zeros = [float((kernel == 0).mean()) for kernel in kernels]
        if "prune" in method:
            self.facts.append(f"{np.mean(zeros):.0%} zeros")
            self.expect(f"{method}: {min(zeros):.0%} zeros in a layer", min(zeros) >= SPARSITY - 0.03)
        else:
            self.expect(f"{method}: {max(zeros):.0%} zeros in a layer", method == "cluster" or max(zeros) < 0.4)
        values, float_values = (_most_values(some) for some in (kernels, float_kernels))
        if method == "cluster":
            self.facts.append(f"{values} values")
            self.expect(
                f"cluster: {values} values in a channel, {float_values} before", values <= CLUSTERS < float_values
            )
        remaining = sum(kernel.size for kernel in kernels) / sum(kernel.size for kernel in float_kernels)
        if method == "channels":
            self.facts.append(f"{remaining:.0%} of weights")
        self.expect(f"{method}: {remaining:.0%} of the weights are left", (remaining < 0.9) == (method == "channels"))
        self.expect(f"{method}: accuracy {report.forms[-1].top1:.0%}", report.forms[-1].top1 > 0.4)


def _graph(run: Any, variant: str) -> Any:
    from edgerec.tflite.flatbuffer import read_graph

    return read_graph((run.path / variant / "model.tflite").read_bytes())


def _kernels(graph: Any) -> list[Any]:
    """Return the stored weights of convolutions and dense layers, output channels first."""
    operators = [operator for operator in graph.operators if operator.name in ("CONV_2D", "FULLY_CONNECTED")]
    tensors = [operator.inputs[1] for operator in operators]
    return [tensor.data.view(tensor.dtype.lower()).reshape(tensor.shape) for tensor in tensors]


def _most_values(kernels: list[Any]) -> int:
    """Return the largest number of distinct values in an output channel."""
    return max(len(np.unique(channel)) for kernel in kernels for channel in kernel)


def work(numbers: list[int], devices: int, scratch: Path) -> None:
    """Check rows in this process, and print a line of JSON for each row."""
    import tensorflow as tf

    if devices > 1:
        logical = [tf.config.LogicalDeviceConfiguration()] * devices
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], logical)
    from edgerec import Recipe, fit
    from edgerec.train import backend

    # On a CPU without bfloat16 units, edgerec refuses mixed precision. This file makes any CPU pass the check.
    backend.CPU = scratch / "cpuinfo"
    backend.CPU.write_text("flags : amx_bf16\n")
    data = scratch / "digits.npz"
    write_data(data)
    first = fit(Recipe().override(BASE | {"data.source": str(data), "train.epochs": 2}), scratch / "first")
    for number in numbers:
        check = Check(pairwise(FACTORS)[number], data, scratch / str(number), first.path / "model.keras")
        try:
            check.run()
        except Exception as error:
            traceback.print_exc()
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            check.failures.append(f"{type(error).__name__}: {str(error)[:200]} ({where})")
        result = {"number": number, "failures": check.failures, "passed": check.passed, "facts": check.facts}
        print(json.dumps(result), flush=True)


def results_of(numbers: list[int], rows: list[Row]) -> Iterator[dict[str, Any]]:
    """Check rows in one process per number of devices, and yield the results as they arrive."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read(devices: int) -> None:
        own = [number for number in numbers if rows[number]["devices"] == devices]
        with tempfile.TemporaryDirectory() as scratch, open(Path(scratch) / "stderr", "w+") as errors:
            command = [sys.executable, __file__, "--rows", ",".join(map(str, own)), "--work", str(devices), scratch]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            for line in process.stdout or ():
                lines.put(line)
            code = process.wait()
            errors.seek(0)
            text = errors.read()
            if code or "Traceback" in text:
                print(f"{devices} devices, exit code {code}:\n{text[-4000:]}", file=sys.stderr, flush=True)
        lines.put(None)

    counts = [count for count in FACTORS["devices"] if any(rows[number]["devices"] == count for number in numbers)]
    threads = [threading.Thread(target=read, args=(count,)) for count in counts]
    for thread in threads:
        thread.start()
    for _ in threads:
        while line := lines.get():
            yield json.loads(line)


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
    widths = {name: max(len(name), *(len(_cell(value)) for value in values)) for name, values in FACTORS.items()}
    print("row  " + "  ".join(name.ljust(width) for name, width in widths.items()) + "  result", flush=True)
    results = {}
    for result in results_of(numbers, rows):
        number = result["number"]
        results[number] = result
        cells = "  ".join(_cell(rows[number][name]).ljust(width) for name, width in widths.items())
        text = f"FAILED: {'; '.join(result['failures'])}" if result["failures"] else "ok"
        print(f"{number:3}  {cells}  {', '.join([text, *result['facts']])}", flush=True)
    if options.out:
        values = [rows[number] | results.get(number, {"failures": ["not checked"]}) for number in numbers]
        options.out.write_text(json.dumps(values, indent=1) + "\n")
    failed = [number for number in numbers if number not in results or results[number]["failures"]]
    print(f"{len(numbers) - len(failed)} of {len(numbers)} rows passed")
    early = [result for result in results.values() if "ended early" in result["facts"]]
    if numbers == list(range(len(rows))) and not early:
        print("early stopping was not checked, because it did not end any stage")
        return 1
    return 1 if failed else 0


def _cell(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(main())
