"""Load Keras, configure TensorFlow, and provide the Keras functions that the other modules share.

This is the only module that chooses the version of Keras: tf_keras (Keras 2), because tensorflow-model-optimization
does not accept Keras 3 layers.
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
from pathlib import Path
from typing import Any

from edgerec.errors import EdgerecError, ModelError
from edgerec.recipe import TrainSection
from edgerec.utils.native_output import captured_stderr
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

# File in which Linux lists the CPU features.
CPU = Path("/proc/cpuinfo")

# Packages whose versions are recorded in ``metrics.json`` and in reports.
PACKAGES = ("edgerec", "tensorflow", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy")


def keras() -> Any:
    """Return the module ``tf_keras``. The first call imports TensorFlow.

    Messages that TensorFlow writes to stderr during the import are suppressed, unless the log level is DEBUG.
    """
    if "tf_keras" in sys.modules:
        return sys.modules["tf_keras"]
    if logging.getLogger("edgerec").isEnabledFor(logging.DEBUG):
        return require("tf_keras")
    if "tensorflow" not in sys.modules:
        log.info("starting TensorFlow …")
    with captured_stderr():
        tensorflow = require("tensorflow")
        # List the GPUs here, so that TensorFlow's driver messages are captured.
        tensorflow.config.list_physical_devices("GPU")
        module = require("tf_keras")
    tensorflow.get_logger().setLevel("ERROR")
    logging.getLogger("absl").setLevel("ERROR")
    return module


def without_autograph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that TensorFlow traces it without AutoGraph.

    AutoGraph rewrites a function and all functions it calls, so that an ``if`` or ``for`` may depend on a tensor.
    edgerec does not need this, and it would considerably delay the first training step.
    """
    unconverted: Callable[..., Any] = require("tensorflow").autograph.experimental.do_not_convert(function)
    return unconverted


def prepare(section: TrainSection, seed: int) -> None:
    """Configure the device, dtype policy and random seed of this process.

    Raises:
        EdgerecError: ``train.device`` is ``gpu``, but TensorFlow finds no GPU.
    """
    keras()
    tf = require("tensorflow")
    gpus = tf.config.list_physical_devices("GPU")
    if section.device == "gpu" and not gpus:
        raise EdgerecError(
            "Cannot use train.device='gpu', because TensorFlow finds no GPU: check the driver with nvidia-smi and run "
            'pip install "edgerec[train-gpu]", or set train.device=cpu'
        )
    try:
        if section.device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        for gpu in gpus:
            # Memory growth leaves GPU memory for other processes.
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        log.debug("the device is not changed, because TensorFlow has already been used in this process")
    keras().mixed_precision.set_global_policy(_dtype_policy(section, bool(gpus)))
    # Dropout layers need TensorFlow random generators, so that reseed() can set their state.
    keras().backend.experimental.enable_tf_random_generator()
    keras().utils.set_random_seed(seed)
    # Weight files refer to layers by name, so the numbering of layer names must restart.
    keras().backend.reset_uids()


def _dtype_policy(section: TrainSection, gpu: bool) -> str:
    if not section.mixed_precision:
        return "float32"
    if gpu and section.device != "cpu":
        return "mixed_float16"
    if has_bfloat16_units():
        return "mixed_bfloat16"
    log.warning(
        "train.mixed_precision has no effect, because this machine has no GPU, no CPU with AMX and no AMD CPU with "
        "AVX512_BF16: training in float32"
    )
    return "float32"


def has_bfloat16_units() -> bool:
    """Return whether the CPU computes faster in bfloat16 than in float32.

    This is the case for CPUs with AMX and for AMD CPUs with AVX512_BF16, but not for Intel CPUs with AVX512_BF16 alone.
    """
    try:
        description = CPU.read_text(encoding="utf-8")
    except OSError:
        return False
    return " amx_bf16" in description or ("AuthenticAMD" in description and " avx512_bf16" in description)


def reseed(model: Any, seed: int, epoch: int) -> None:
    """Reseed a model's random layers, such as dropout, with a value derived from the seed and the epoch.

    A resumed run therefore draws the same random numbers as an uninterrupted run.
    """
    wrappers = [getattr(layer, "_random_generator", None) for layer in model.submodules]
    states = [getattr(wrapper, "_generator", None) for wrapper in wrappers]
    # Layers are identified by position, because their names depend on the other models in this process.
    for number, generator in enumerate(state for state in states if state is not None):
        generator.reset_from_seed(zlib.crc32(f"{seed} {epoch} {number}".encode()))


def every_layer(model: Any) -> Iterator[Any]:
    """Yield all layers of a model in order, including nested models and their layers."""
    for layer in model.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from every_layer(layer)


def freeze_batch_normalization(model: Any) -> list[Any]:
    """Freeze all batch-normalization layers, including those in nested models and wrappers.

    Returns:
        The layers that were trainable before.
    """
    kind = keras().layers.BatchNormalization
    trainable = [layer for layer in model.submodules if isinstance(layer, kind) and layer.trainable]
    for layer in trainable:
        layer.trainable = False
    return trainable


# Exceptions that Keras raises for files that are damaged or not in a Keras format.
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


# Matches the lines of a Keras or TensorFlow error message that precede the cause.
_CONTEXT = re.compile(
    r"\s*(Graph execution error|Detected at|File \"|Exception encountered when calling|(Call a|A)rguments received)"
)
# Matches terminal colors, node names and operator names in TensorFlow error messages.
_ADDITIONS = re.compile(r"\x1b\[\d*m|\{\{function_node [^}]*\}\} | *\[Op:.*")


def is_tensorflow_error(error: BaseException) -> bool:
    """Return whether an exception's class is defined by TensorFlow or protobuf."""
    return type(error).__module__.startswith(("tensorflow.", "google.protobuf."))


@contextmanager
def reported_as(failure: str) -> Iterator[None]:
    """Context manager that converts Keras and TensorFlow exceptions to :class:`ModelError`.

    The message of the :class:`ModelError` is ``failure``, followed by the cause.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if not isinstance(error, UNREADABLE) and not is_tensorflow_error(error):
            raise
        raise ModelError(f"{failure}: {cause(error)}") from None


def cause(error: BaseException) -> str:
    """Return the line of an exception's message that states the cause."""
    text = _ADDITIONS.sub("", str(error)).rpartition("Exception encountered: ")[2]
    lines = (line.strip() for line in text.splitlines() if line.strip() and not _CONTEXT.match(line))
    return next(lines, type(error).__name__)[:300]


def versions() -> dict[str, str]:
    """Return the versions of the installed packages in :data:`PACKAGES`."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
