"""Find the installed TFLite runtime and open models with its interpreter."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgerec.contract.tensors import TensorSpec
from edgerec.errors import MissingExtraError, ModelError
from edgerec.runtime.delegate import load_delegate
from edgerec.runtime.gpu_interpreter import GPU, open_gpu
from edgerec.tflite.flatbuffer import require_tflite
from edgerec.tflite.probing import require_runnable
from edgerec.tflite.runtime_packages import RUNTIMES
from edgerec.tflite.verifier import check_bounds
from edgerec.utils.messages import first_sentence
from edgerec.utils.native_output import captured_stderr

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fingerprint:
    """The runtime, its version and the CPU. Machines with equal fingerprints compute bit-identical scores.

    Attributes:
        runtime: name of the runtime's Python package.
        version: version of this package, or ``unknown``.
        machine: CPU architecture.
        cpu: CPU name.
    """

    runtime: str
    version: str
    machine: str
    cpu: str

    def to_dict(self) -> dict[str, str]:
        """Return the fields as a JSON-serializable dictionary."""
        return asdict(self)


def find_runtime() -> tuple[str, Any]:
    """Return the package name and interpreter module of the preferred installed runtime.

    Raises:
        MissingExtraError: no runtime is installed.
    """
    for package, module in RUNTIMES.items():
        try:
            return package, importlib.import_module(module)
        except ImportError as error:
            if not isinstance(error, ModuleNotFoundError):
                log.warning("%s is installed but cannot be imported: %s", package, error)
    raise MissingExtraError(
        "no TFLite runtime is installed: run pip install ai-edge-litert (on 32-bit ARM: tflite-runtime)"
    )


def fingerprint() -> Fingerprint:
    """Return this machine's TFLite runtime, its version, the machine type and the CPU name."""
    package, _ = find_runtime()
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # TensorFlow is also distributed under other package names.
        version = "unknown"
    return Fingerprint(package, version, platform.machine(), _cpu_name())


def open_interpreter(
    model: bytes,
    *,
    threads: int = 0,
    delegate: str = "",
    delegate_options: Mapping[str, str] | None = None,
    where: str = "the model",
    trusted: bool = False,
) -> Any:
    """Load a model and return its interpreter with allocated tensors.

    A child process runs the model first because a damaged model may crash or hang. Each model is tested only once,
    see :func:`edgerec.tflite.probing.require_runnable`.

    Args:
        model: the .tflite file.
        threads: number of threads. 0 lets the runtime choose.
        delegate: an external delegate's shared library, ``gpu``, or an empty string for the CPU.
        delegate_options: delegate options.
        where: the model's name in error messages.
        trusted: whether this process has created the model, so that it need not be tested in a child process.

    Raises:
        ModelError: the file is not a TFLite model, or this runtime cannot run it within the limits.
        DelegateError: the delegate cannot be loaded.
    """
    require_tflite(model, where)
    if delegate == GPU:
        return open_gpu(open_interpreter(model, threads=threads, where=where), model, delegate_options, where)
    package, module = find_runtime()
    if trusted or delegate:
        check_bounds(model, where)
    else:
        require_runnable(model, where)
    # load_delegate also tests the model in a child process.
    delegates = [load_delegate(module, delegate, delegate_options, model)] if delegate else None
    try:
        with captured_stderr():  # The runtime prints a message for each delegate that it creates.
            interpreter = module.Interpreter(
                model_content=model, num_threads=threads or None, experimental_delegates=delegates
            )
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{package} cannot load {where}: {first_sentence(error)}") from None
    except MemoryError:  # A damaged model can declare tensors of any size.
        raise ModelError(f"{package} cannot load {where}: the model needs more memory than is available") from None
    return interpreter


def input_spec(interpreter: Any, where: str = "the model") -> TensorSpec:
    """Return the input tensor's spec. Raise :class:`ModelError` unless the model has exactly one input."""
    return _only_spec(interpreter.get_input_details, "input", where)


def output_spec(interpreter: Any, where: str = "the model") -> TensorSpec:
    """Return the output tensor's spec. Raise :class:`ModelError` unless the model has exactly one output."""
    return _only_spec(interpreter.get_output_details, "output", where)


def _only_spec(read: Callable[[], list[dict[str, Any]]], what: str, where: str) -> TensorSpec:
    try:
        details = read()
    except UnicodeDecodeError:
        raise ModelError(
            f"{where} is damaged because its {what} name is not valid UTF-8: convert the model again"
        ) from None
    if len(details) != 1:
        raise ModelError(f"{where} has {len(details)} {what}s, but an image classifier must have exactly one")
    dtype = details[0]["dtype"].__name__
    scale, zero_point = details[0]["quantization"]
    if not scale and dtype != "float32":
        scale = 1.0  # Integers without quantization have a scale of 1.
    try:
        return TensorSpec(
            dtype=dtype,
            shape=tuple(int(n) for n in details[0]["shape"]),
            scale=float(scale),
            zero_point=int(zero_point),
        )
    except ValueError as error:
        raise ModelError(f"{where}: {what}: {error}") from None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = ("model name", "Model", "CPU part", "Hardware")
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return next((fields[name] for name in names if name in fields), platform.processor())
