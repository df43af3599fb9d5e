"""Adapt, train with fake quantization and convert to full int8 every architecture, on real images.

    python benchmarks/architectures.py --work FOLDER [--only NAME …] [--write docs/results/architectures.md]

Most architectures are third-party models, for example those of Keras applications with their own preprocessing.
benchmarks/models.py measures the cost of edgerec's own architectures. The weights are random and trained for a few
steps on CIFAR-10 images. The benchmark shows that the conversion works and that the int8 file gives the same output as
the Keras model, but not how accurate the model is. Each result is stored in a file in FOLDER and is not measured again.
"""

from __future__ import annotations

import argparse
import functools
import json
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from common import data_folder

from edgerec.compress.convert import to_int8
from edgerec.compress.fake_quantization import with_fake_quantization
from edgerec.contract.tensors import Normalize
from edgerec.errors import ModelError
from edgerec.importing.passes import adapt
from edgerec.runtime.interpreter import open_interpreter
from edgerec.tflite.edgetpu import diagnose
from edgerec.tflite.flatbuffer import float_tensors, read_graph, weight_sparsity
from edgerec.train.backend import keras
from edgerec.utils.optional import require

CLASSES, BATCH, STEPS, SPARSITY = 10, 8, 2, 0.5


def _sequential(*layers: Any, side: int = 32) -> Any:
    return keras().Sequential([keras().Input((side, side, 3)), *layers])


def _application(name: str, side: int = 32, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(keras().applications, name)(
        input_shape=(side, side, 3), weights=None, classes=CLASSES, **options
    )


def _cnn(*between: str) -> Callable[[], Any]:
    """Build the CNN of the tutorial; ``between`` is a list of layers between the features and the classifier."""

    def build() -> Any:
        layers = keras().layers
        middle = [getattr(layers, name)(*((0.3,) if name == "Dropout" else ())) for name in between]
        convolutions = [
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
        ]
        return _sequential(*convolutions, layers.MaxPooling2D(), *middle, layers.Dense(CLASSES, activation="softmax"))

    return build


def _resnet8() -> Any:
    from edgerec.models import build
    from edgerec.recipe import ModelSection

    return build(keras(), ModelSection(arch="resnet8"), (32, 32, 3), CLASSES, Normalize.named("unit"))


def _recurrent(name: str) -> Callable[[], Any]:
    """Build a model that reads an image row by row."""

    def build() -> Any:
        layers = keras().layers
        return _sequential(
            layers.Reshape((32, 96)), getattr(layers, name)(32), layers.Dense(CLASSES, activation="softmax")
        )

    return build


def _autoencoder(transposed: bool) -> Callable[[], Any]:
    def build() -> Any:
        layers = keras().layers

        def upsampling(channels: int) -> list[Any]:
            if transposed:
                return [layers.Conv2DTranspose(channels, 3, strides=2, padding="same", activation="relu")]
            return [layers.UpSampling2D(), layers.Conv2D(channels, 3, padding="same", activation="relu")]

        down = [layers.Conv2D(n, 3, strides=2, padding="same", activation="relu") for n in (16, 32)]
        return _sequential(
            *down, *upsampling(32), *upsampling(16), layers.Conv2D(3, 3, padding="same", activation="sigmoid")
        )

    return build


def _shorten_warm_up(model: Any) -> None:
    """Let batch-norm statistics converge in two steps, because otherwise all scores would be nearly equal."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras().layers.BatchNormalization):
            layer.momentum = 0.1


def _nested() -> Any:
    """Build a transfer-learning model as in the Keras guide, with a nested base and augmentation in the graph."""
    layers = keras().layers
    base = keras().applications.MobileNetV2(input_shape=(32, 32, 3), alpha=0.35, include_top=False, weights=None)
    _shorten_warm_up(base)
    for _ in range(2):  # the base is called with training=False below, so its statistics are never updated
        base(np.random.default_rng(0).uniform(-1, 1, (BATCH, 32, 32, 3)).astype(np.float32), training=True)
    inputs = keras().Input((32, 32, 3))
    x = keras().Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)])(inputs)
    x = base(layers.Rescaling(1 / 127.5, offset=-1)(x), training=False)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras().Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))


# Name, builder, expected normalization, and methods to create the int8 file.
ARCHITECTURES: dict[str, tuple[Callable[[], Any], str, tuple[str, ...]]] = {
    "tutorial CNN": (_cnn("Flatten"), "unit", ("qat", "pqat")),
    "tutorial CNN with dropout": (_cnn("Flatten", "Dropout"), "unit", ("qat", "pqat")),
    "GAP CNN": (_cnn("GlobalAveragePooling2D"), "unit", ("qat", "pqat")),
    "VGG16": (_application("VGG16"), "unit", ("qat", "pqat")),
    "ResNet8": (_resnet8, "unit", ("qat", "pqat")),
    "ResNet50": (_application("ResNet50"), "unit", ("qat", "pqat")),
    "MobileNetV1": (_application("MobileNet"), "signed", ("qat", "pqat")),
    "MobileNetV2": (_application("MobileNetV2"), "signed", ("qat", "pqat")),
    "MobileNetV3Small minimalistic": (_application("MobileNetV3Small", minimalistic=True), "raw", ("qat", "pqat")),
    "MobileNetV3Small": (_application("MobileNetV3Small"), "raw", ("qat", "pqat")),
    "EfficientNetB0": (_application("EfficientNetB0"), "raw", ("qat", "pqat")),
    "EfficientNetV2B0": (_application("EfficientNetV2B0"), "raw", ("qat", "pqat")),
    "DenseNet121": (_application("DenseNet121"), "unit", ("qat", "pqat")),
    "MobileNetV2 0.35 nested, augmentation inside": (_nested, "raw", ("qat", "pqat")),
    "autoencoder, UpSampling2D": (_autoencoder(False), "unit", ("qat", "pqat")),
    "autoencoder, Conv2DTranspose": (_autoencoder(True), "unit", ("qat", "pqat")),
    "LSTM": (_recurrent("LSTM"), "unit", ("qat", "ptq")),
    "GRU": (_recurrent("GRU"), "unit", ("qat", "ptq")),
    "SimpleRNN": (_recurrent("SimpleRNN"), "unit", ("qat", "ptq")),
}
NORMALIZE = {"unit": Normalize.named("unit"), "signed": Normalize.named("signed"), "raw": Normalize(0.0, 1.0)}


@functools.cache
def load_images(side: int, count: int = BATCH * STEPS) -> npt.NDArray[np.uint8]:
    """Return CIFAR-10 test images from all parts of the archive, ``(count, side, side, 3)``, RGB."""
    images = []
    with tarfile.open(data_folder() / "cifar10.tar") as archive:
        members = [m for m in archive if m.isfile() and "/test/" in m.name]
        for member in members[:: len(members) // count][:count]:
            image = cv2.imdecode(np.frombuffer(archive.extractfile(member).read(), np.uint8), cv2.IMREAD_COLOR_RGB)
            images.append(cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR_EXACT))
    return np.stack(images)


def train(model: Any, x: npt.NDArray[np.float32], callbacks: tuple[Any, ...] = ()) -> None:
    """Train for a few steps. Models that output images are trained to reconstruct their input."""
    is_image_output = len(model.output_shape) == 4
    loss = "mse" if is_image_output else "sparse_categorical_crossentropy"
    model.compile(keras().optimizers.Adam(1e-4), loss, run_eagerly=True)  # tracing would take longer than two steps
    y = np.clip(x, 0, 1) if is_image_output else np.arange(len(x)) % CLASSES
    model.fit(x, y, batch_size=BATCH, callbacks=list(callbacks), verbose=0)


def pruned(model: Any, x: npt.NDArray[np.float32]) -> Any:
    """Set half of each layer's weights to zero."""
    pruning = require("tensorflow_model_optimization").sparsity.keras
    wrapped = pruning.prune_low_magnitude(model, pruning.ConstantSparsity(SPARSITY, 0, -1, 1))
    train(wrapped, x, (pruning.UpdatePruningStep(),))
    return pruning.strip_pruning(wrapped)


def to_int8_by(method: str, model: Any, x: npt.NDArray[np.float32], normalize: Normalize) -> tuple[bytes, Any]:
    """Return the int8 file of an adapted model, and the Keras model whose output it should match."""
    if method == "ptq":
        x = x.copy()
        x[0].reshape(-1)[:2] = normalize.apply(np.array([0.0, 255.0]))  # minimum and maximum of the input range
        return to_int8(model, x), model
    quantized = with_fake_quantization(
        pruned(model, x) if method == "pqat" else model, normalize, pruned=method == "pqat"
    )
    train(quantized, x)
    return to_int8(quantized), quantized


def run_model(content: bytes, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the dequantized output of the file for the images."""
    interpreter = open_interpreter(content, threads=1)
    input_details, output_details = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero = output_details["quantization"]
    rows = []
    for image in pixels:
        interpreter.set_tensor(input_details["index"], image[np.newaxis])
        interpreter.invoke()
        rows.append((interpreter.get_tensor(output_details["index"])[0].astype(np.float32) - zero) * scale)
    return np.stack(rows)


def add_noise(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the images with each value changed randomly by -1, 0 or 1."""
    noise = np.random.default_rng(0).integers(-1, 2, pixels.shape)
    return np.clip(pixels.astype(int) + noise, 0, 255).astype(np.float32)


def measure(name: str, method: str) -> dict[str, Any]:
    """Return one row of the table."""
    build, range_name, _ = ARCHITECTURES[name]
    normalize = NORMALIZE[range_name]
    keras().backend.clear_session()
    keras().utils.set_random_seed(0)
    model = build()
    _shorten_warm_up(model)
    pixels = load_images(model.input_shape[1])
    x = normalize.apply(pixels.astype(np.float32))
    train(model, x)
    row = {"architecture": name, "input": model.input_shape[1:], "parameters": model.count_params(), "method": method}
    started = time.monotonic()
    try:
        adapted = adapt(model, method, x[:4])
        row |= {"changes": Counter(c.what for c in adapted.changes), "difference": adapted.max_difference}
        content, reference = to_int8_by(method, adapted.model, x, normalize)
    except ModelError as error:
        return row | {"error": str(error)}
    graph = read_graph(content)
    outputs, expected = run_model(content, pixels), np.asarray(reference(x, training=False))
    noisy_scores = np.asarray(reference(normalize.apply(add_noise(pixels)), training=False))
    return row | {
        "bytes": len(content),
        "operators": Counter(operator.name for operator in graph.operators),
        "float_tensors": len(float_tensors(graph)),
        "sparsity": weight_sparsity(graph),
        "noise_difference": float(np.abs(noisy_scores - expected).max()),
        "int8_difference": float(np.abs(outputs - expected).max()),
        "refused": Counter(f"{f.op}: {f.reason}" for f in diagnose(graph).findings),
        "seconds": round(time.monotonic() - started, 1),
    }


HEADER = """# Third-party architectures

This page shows which architectures edgerec can quantize. `python benchmarks/architectures.py --work FOLDER --write
docs/results/architectures.md` does the following for each architecture:

1. Build the model with random weights, and train it for two steps on CIFAR-10 images (32 px).
2. Replace layers that cannot be quantized, and convert the model to full int8.
3. Run the int8 file in LiteRT, and check whether the Edge TPU supports it.

The table shows whether the conversion works. It does not show how accurate the models are, because they were trained
for only two steps. For the accuracy of trained models, see [Results](../results.md).

| column | meaning |
|---|---|
| method | `qat`: quantization-aware training; `pqat`: 50 % pruning, then QAT; `ptq`: post-training quantization |
| changes | replaced layers (largest change of the outputs), or the reason why edgerec rejects the model |
| operators | number of operators in the file; "9 of 6 types" means 9 operators of 6 different types |
| float tensors | number of tensors that are not integers; 0 means full int8 |
| int8 − Keras | largest difference between scores of the int8 file and the Keras model; one step is 1/256 = 0.004 |
| pixels ± 1 | largest change of the Keras model's scores if each pixel changes by at most 1 |
| zeros | percentage of the int8 weights that are zero |
| Edge TPU | whether all operators are mapped to the Edge TPU, otherwise the operators that it does not support |

Some deep networks have a large value in *int8 − Keras*. The reason is that deep networks with random weights amplify
every small difference. Compare the value with *pixels ± 1*: if both are similar, quantization changes the scores
about as much as invisible noise in the image does.

"""
COLUMNS = (
    "architecture",
    "method",
    "changes",
    "operators",
    "float tensors",
    "int8 − Keras",
    "pixels ± 1",
    "zeros",
    "Edge TPU",
)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        changes = _counted(row["changes"]) + f" ({row['difference']:.0e})" if row.get("changes") else "none"
        if "error" in row:
            cells = [f"rejected: {row['error']}", *[""] * 6]
        else:
            operators = row["operators"]
            cells = [
                changes,
                f"{sum(operators.values())} of {len(operators)} types",
                str(row["float_tensors"]),
                f"{row['int8_difference']:.3f}",
                f"{row['noise_difference']:.3f}",
                f"{row['sparsity']:.0%}",
                f"unsupported: {_counted(row['refused'])}" if row["refused"] else "all mapped",
            ]
        lines.append("| " + " | ".join([row["architecture"], row["method"], *cells]) + " |")
    return "\n".join(lines) + "\n"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{n}× {what}" if n > 1 else what for what, n in counts.items())


def hard_swish() -> dict[str, float]:
    """Return the median ms of MobileNetV3Small's int8 file at 96 px: unchanged, with HARD_SWISH, and adapted."""
    keras().utils.set_random_seed(0)
    model = keras().applications.MobileNetV3Small(input_shape=(96, 96, 3), weights=None, classes=CLASSES)
    pixels = load_images(96)
    x = pixels.astype(np.float32)
    contents = {"HARD_SWISH": to_int8(model, x), "adapted": to_int8(adapt(model, "ptq", x[:4]).model, x)}
    interpreters = {name: open_interpreter(content, threads=1) for name, content in contents.items()}
    times: dict[str, list[float]] = {name: [] for name in contents}
    for image in np.tile(pixels, (10, 1, 1, 1)):
        for (
            name,
            interpreter,
        ) in interpreters.items():  # alternately, so that other load on the machine affects all variants equally
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[np.newaxis])
            started = time.perf_counter()
            interpreter.invoke()
            times[name].append((time.perf_counter() - started) * 1000)
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> None:
    """Measure everything that was not measured before, and print the complete table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/architectures"))
    parser.add_argument("--only", nargs="+", choices=[*ARCHITECTURES, "hard-swish"])
    parser.add_argument("--write", type=Path, help="Markdown file to which the table is written")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    names = arguments.only or (*ARCHITECTURES, "hard-swish")
    # Measure all architectures with one method before the next method.
    jobs = [(n, m) for m in ("qat", "ptq", "pqat") for n in names if n in ARCHITECTURES and m in ARCHITECTURES[n][2]]
    for name, method in [*jobs, *[(n, "") for n in names if n == "hard-swish"]]:
        path = arguments.work / f"{name} {method}.json"
        if not path.is_file():
            print(f"{name} {method} …", flush=True)
            path.write_text(json.dumps(measure(name, method) if method else hard_swish(), indent=1) + "\n")
    results = {path.stem.strip(): json.loads(path.read_text()) for path in arguments.work.glob("*.json")}
    keys = [f"{name} {method}" for name, (_, _, methods) in ARCHITECTURES.items() for method in methods]
    text = table([results[key] for key in keys if key in results])
    if "hard-swish" in results:
        milliseconds = results["hard-swish"]
        text += (
            "\nReplacing layers can also make a model faster: at 96 px, the int8 file of MobileNetV3Small takes "
            f"{milliseconds['HARD_SWISH']:.2f} ms per image with the\noperator `HARD_SWISH`, and "
            f"{milliseconds['adapted']:.2f} ms after edgerec replaced this operator (medians).\n"
        )
    print(text)
    if arguments.write:
        arguments.write.write_text(HEADER + text)


if __name__ == "__main__":
    main()
