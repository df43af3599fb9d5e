"""The only place that picks the Keras.

It is tf_keras (Keras 2): tensorflow-model-optimization refuses the layers of Keras 3.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from edgerec.errors import EdgerecError, ModelError
from edgerec.recipe import TrainSection
from edgerec.utils.native_output import captured_stderr
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

CPU = Path("/proc/cpuinfo")

PACKAGES = ("edgerec", "tensorflow", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy")


def keras() -> Any:
    """The Keras module. On first use TensorFlow is loaded, its chatter kept away unless the log is at DEBUG."""
    if "tf_keras" in sys.modules:
        return sys.modules["tf_keras"]
    if logging.getLogger("edgerec").isEnabledFor(logging.DEBUG):
        return require("tf_keras")
    if "tensorflow" not in sys.modules:
        log.info("starting TensorFlow …")
    with captured_stderr():
        tensorflow = require("tensorflow")
        tensorflow.config.list_physical_devices("GPU")  # what it has to say about drivers, it says here
        module = require("tf_keras")
    tensorflow.get_logger().setLevel("ERROR")
    logging.getLogger("absl").setLevel("ERROR")
    return module


def without_autograph(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, and what it calls, for TensorFlow to trace as they stand.

    Otherwise AutoGraph first rewrites each of them, in case an ``if`` or ``for`` depends on a tensor. None does here,
    and a third of the time to a first step went into that.
    """
    written: Callable[..., Any] = require("tensorflow").autograph.experimental.do_not_convert(function)
    return written


def prepare(section: TrainSection, seed: int) -> None:
    """Choose the device, the precision and the random state for what is built from now on.

    Raises:
        EdgerecError: a GPU is asked for and TensorFlow sees none.
    """
    keras()
    tf = require("tensorflow")
    gpus = tf.config.list_physical_devices("GPU")
    if section.device == "gpu" and not gpus:
        raise EdgerecError(
            "train.device is 'gpu', TensorFlow sees none: "
            'pip install "edgerec[train-gpu]" and look at nvidia-smi, or use --device cpu'
        )
    try:
        if section.device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)  # others may train on it too
    except RuntimeError:
        # TensorFlow fixes its devices at the first computation of the process.
        logging.getLogger(__name__).debug("the devices were chosen earlier in this process")
    keras().mixed_precision.set_global_policy(_precision(section, bool(gpus)))
    keras().backend.experimental.enable_tf_random_generator()  # dropout then has a state that reseed() can set
    keras().utils.set_random_seed(seed)
    keras().backend.reset_uids()  # layers are called the same in every training, as weights in a file are found by name


def _precision(section: TrainSection, gpu: bool) -> str:
    """Keras' name of what is computed in: halves of float32 where the device has units for them."""
    if not section.mixed_precision:
        return "float32"
    if gpu and section.device != "cpu":
        return "mixed_float16"
    if has_bfloat16_units():
        return "mixed_bfloat16"
    log.warning(
        "train.mixed_precision brings nothing here, without a GPU, a CPU with AMX or AMD's with AVX512_BF16: "
        "computing in float32"
    )
    return "float32"


def has_bfloat16_units() -> bool:
    """Whether the CPU is faster in bfloat16 than in float32: with AMX, or AMD's AVX512_BF16, but not Intel's."""
    try:
        about = CPU.read_text(encoding="utf-8")
    except OSError:
        return False
    return " amx_bf16" in about or ("AuthenticAMD" in about and " avx512_bf16" in about)


def reseed(model: Any, seed: int, epoch: int) -> None:
    """Let what is random inside of a model, as dropout, follow from seed and epoch alone."""
    layers = [getattr(layer, "_random_generator", None) for layer in model.submodules]
    generators = [found for random in layers if (found := getattr(random, "_generator", None)) is not None]
    for number, generator in enumerate(generators):  # not by name: Keras counts the dropouts of a process
        generator.reset_from_seed(zlib.crc32(f"{seed} {epoch} {number}".encode()))


def compile_classifier(
    model: Any,
    optimizer: Any,
    steps_per_call: int,
    *,
    xla: bool = False,
    micro_batches: int = 1,
    soft_labels: bool = False,
    teacher: Callable[..., Any] | None = None,
    teacher_weight: float = 0.0,
) -> None:
    """Compile a classifier or autoencoder, and create all variables that its training needs.

    A classifier is trained with cross-entropy. A model whose output has the shape of its input is an autoencoder. It is
    trained with the mean squared error between output and normalized pixels, and the labels are ignored.

    By default, Keras creates the variables of metrics and optimizer in the first step. TensorFlow then traces this step
    twice, which takes long for a large model. Creating the variables here avoids the second trace.

    Args:
        model: a model with softmax scores ``(batch, classes)`` as its output, or an autoencoder.
        optimizer: a Keras optimizer.
        steps_per_call: number of steps between two calls of the callbacks.
        xla: compile each step with XLA. This has no effect on several CPU devices, which TensorFlow does not support.
        micro_batches: number of micro-batches per batch for gradient accumulation, which reduces memory.
        soft_labels: whether the labels are soft labels ``(batch, classes)`` instead of class indices ``(batch,)``.
        teacher: distillation loss, a function of pixels, scores and image weights.
        teacher_weight: weight of the distillation loss, 0 to 1; the label loss has the weight ``1 - teacher_weight``.
    """
    tf = require("tensorflow")
    again, strategy = reconstructs(model), tf.distribute.get_strategy()
    if xla and strategy.num_replicas_in_sync > 1 and "CPU" in strategy.extended.worker_devices[0]:
        log.warning("train.xla has no effect on several CPU devices, because XLA cannot access their variables")
        xla = False
    loss_by_name = "categorical_crossentropy" if soft_labels else "sparse_categorical_crossentropy"
    model.compile(
        optimizer,
        loss="mean_squared_error" if again else loss_by_name,
        metrics=[] if again else ["accuracy"],
        steps_per_execution=steps_per_call,
        jit_compile=xla,
    )
    if micro_batches > 1 or teacher is not None:

        def loss(pixels: Any, classes: Any, scores: Any, weight: Any) -> Any:
            labels = model.compute_loss(pixels, classes, scores, weight)
            if teacher is None:
                return labels
            devices = strategy.num_replicas_in_sync  # the gradients of all devices are summed
            # Do not scale the regularization losses by ``1 - teacher_weight``.
            kept = tf.add_n(model.losses) / devices if model.losses else 0.0
            distance = teacher(pixels, scores, weight) / devices
            return kept + (1 - teacher_weight) * (labels - kept) + teacher_weight * distance

        model.train_step = partial(_accumulated_step, model, micro_batches, loss)
    if again:
        model.train_step, model.test_step = (
            partial(_reconstruction_step, step) for step in (model.train_step, model.test_step)
        )
    model.train_step, model.test_step = without_autograph(model.train_step), without_autograph(model.test_step)
    scores = tf.zeros((1, *model.output_shape[1:]))
    classes = scores if soft_labels or again else tf.zeros((1, 1), tf.int64)
    model.compiled_loss.build(scores)
    model.compiled_metrics.build(scores, classes)
    model.optimizer.build(model.trainable_variables)


def reconstructs(model: Any) -> bool:
    """Whether a model is an autoencoder: what it gives has its input's shape."""
    return len(model.output_shape) == 4 and model.output_shape == model.input_shape


def _reconstruction_step(step: Callable[..., Any], data: Any) -> Any:
    """A step of Keras' in which the pictures are what is to be learned."""
    pixels = keras().utils.unpack_x_y_sample_weight(data)[0]
    return step((pixels, pixels))


def _accumulated_step(model: Any, micro_batches: int, loss: Callable[..., Any], data: Any) -> Any:
    """Train one step with gradient accumulation, and return the metrics.

    Args:
        model: the compiled model.
        micro_batches: number of micro-batches; divides the batch size.
        loss: function of pixels, classes, scores and image weights (or None).
        data: the batch from the input pipeline.
    """
    tf = require("tensorflow")
    x, y, weights = keras().utils.unpack_x_y_sample_weight(data)
    optimizer, variables = model.optimizer, model.trainable_variables
    scaled = isinstance(optimizer, keras().mixed_precision.LossScaleOptimizer)
    sums, scores = [tf.zeros_like(variable) for variable in variables], []
    pieces = [[None] * micro_batches if value is None else tf.split(value, micro_batches) for value in (x, y, weights)]
    for pixels, classes, weight in zip(*pieces, strict=True):
        # One part at a time: side by side they would take the memory of the whole.
        with tf.control_dependencies(sums), tf.GradientTape() as tape:
            scores.append(model(tf.identity(pixels), training=True))
            found = loss(pixels, classes, scores[-1], weight)
            found = optimizer.get_scaled_loss(found) if scaled else found
        gradients = tape.gradient(found, variables)
        gradients = optimizer.get_unscaled_gradients(gradients) if scaled else gradients
        sums = [total + _dense(gradient) / micro_batches for total, gradient in zip(sums, gradients, strict=True)]
    optimizer.apply_gradients(zip(sums, variables, strict=True))
    return model.compute_metrics(x, y, tf.concat(scores, 0), weights)


def _dense(gradient: Any) -> Any:
    """A gradient that can be summed: of weights that are looked up it comes in slices, of unused ones it is None."""
    return 0.0 if gradient is None else require("tensorflow").convert_to_tensor(gradient)


def every_layer(model: Any) -> Iterator[Any]:
    """Yield all layers of a model in order, including nested models and their layers."""
    for layer in model.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from every_layer(layer)


def freeze_batch_normalization(model: Any) -> list[Any]:
    """Freeze all batch-normalization layers, also in nested models and wrappers; return those that were trainable."""
    kind = keras().layers.BatchNormalization
    trainable = [layer for layer in model.submodules if isinstance(layer, kind) and layer.trainable]
    for layer in trainable:
        layer.trainable = False
    return trainable


def copied(model: Any) -> Any:
    """A model of the same layers and weights that shares none of them."""
    twin = without_autograph(keras().models.clone_model)(model)
    twin.set_weights(model.get_weights())
    return twin


# Exceptions that Keras raises for a file that is damaged or was not written by Keras.
UNREADABLE = (
    *(
        ValueError,
        OSError,
        TypeError,
        KeyError,
        RuntimeError,
        AttributeError,
        IndexError,
        AssertionError,
        ArithmeticError,
    ),
    *(zipfile.BadZipFile, zlib.error, EOFError),
)


# Lines that Keras and TensorFlow write before the cause of an error, and additions to the line with the cause.
_CONTEXT = re.compile(
    r"\s*(Graph execution error|Detected at|File \"|Exception encountered when calling|(Call a|A)rguments received)"
)
_ADDITIONS = re.compile(r"\x1b\[\d*m|\{\{function_node [^}]*\}\} | *\[Op:.*")


def is_tensorflow_error(error: BaseException) -> bool:
    """Return whether TensorFlow or the library that reads its files (protobuf) defines the class of an exception."""
    return type(error).__module__.startswith(("tensorflow.", "google.protobuf."))


@contextmanager
def reported_as(failure: str) -> Iterator[None]:
    """Raise :class:`ModelError` with ``failure`` and the cause if Keras or TensorFlow rejects a model in the block."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if not isinstance(error, UNREADABLE) and not is_tensorflow_error(error):
            raise
        raise ModelError(f"{failure}: {cause(error)}") from None


def cause(error: BaseException) -> str:
    """Return the line of an error that names the cause, without the configurations and stack frames around the line."""
    text = _ADDITIONS.sub("", str(error)).rpartition("Exception encountered: ")[2]
    lines = (line.strip() for line in text.splitlines() if line.strip() and not _CONTEXT.match(line))
    return next(lines, type(error).__name__)[:300]


def versions() -> dict[str, str]:
    """The installed versions of what decides a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
