"""Run a model with LiteRT's GPU accelerator, which uses WebGPU over Vulkan, Metal or Direct3D."""

from __future__ import annotations

import json
import logging
import re
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.errors import DelegateError
from edgerec.runtime.delegate import probe
from edgerec.utils.messages import first_sentence
from edgerec.utils.native_output import captured_output

log = logging.getLogger(__name__)

# Value of --delegate that selects LiteRT's GPU accelerator instead of a shared library.
GPU = "gpu"
PRECISIONS = ("fp32", "fp16")
_GPU_TEST_CODE = """
import json, sys
from edgerec.errors import DelegateError
from edgerec.runtime.gpu_interpreter import GpuInterpreter
from edgerec.runtime.interpreter import open_interpreter
model = sys.stdin.buffer.read()
try:
    GpuInterpreter(open_interpreter(model, trusted=True), model, json.loads(sys.argv[1]))
except (DelegateError, RuntimeError) as error:
    print(error)
    sys.exit(3)
print("loaded")
"""


class GpuInterpreter:
    """Runs a model on the GPU behind the interface of the TFLite interpreter.

    Attributes:
        fully_accelerated: whether the GPU runs every operator. Otherwise, the CPU runs the other operators.
    """

    fully_accelerated: bool

    def __init__(self, interpreter: Any, model: bytes, options: Mapping[str, str]) -> None:
        """Compile a model for the GPU. Prefer :func:`open_gpu`, because a GPU driver may crash the process.

        Args:
            interpreter: CPU interpreter of the same model, which describes the tensors.
            model: the .tflite file.
            options: ``precision`` is ``fp32``, with scores close to those of the CPU, or ``fp16``, which is faster and
                less accurate.

        Raises:
            DelegateError: this runtime has no GPU accelerator, it supports no GPU of this machine, or an option is
                unknown.
        """
        fp32 = _precision(options) == "fp32"
        try:
            from ai_edge_litert.compiled_model import (
                CompiledModel,
                CpuOptions,
                GpuOptions,
                HardwareAccelerator,
                Options,
            )
        except ImportError:
            raise DelegateError("--delegate gpu requires a newer LiteRT: run pip install -U ai-edge-litert") from None
        self._input_details, self._output_details = interpreter.get_input_details(), interpreter.get_output_details()
        with captured_output() as output:  # LiteRT prints the name of each library that it tries to load.
            try:
                litert_options = Options(
                    HardwareAccelerator.GPU, cpu_options=CpuOptions(), gpu_options=GpuOptions(fp32)
                )
                compiled = CompiledModel.from_buffer(model, options=litert_options)
                inputs, outputs = compiled.create_input_buffers(0), compiled.create_output_buffers(0)
                spec = self._input_details[0]
                inputs[0].write(np.zeros(spec["shape"], spec["dtype"]))
                compiled.run_by_index(0, inputs, outputs)  # The first run initializes the GPU, which prints messages.
            except RuntimeError as error:
                output.seek(0)
                reasons = re.findall(r"INTERNAL: (.+)", output.read().decode(errors="replace"))
                raise DelegateError(reasons[0] if reasons else first_sentence(error)) from None
        self._resources: list[Any] = [compiled, inputs, outputs]
        self.fully_accelerated = bool(compiled.is_fully_accelerated())
        weakref.finalize(self, _release, self._resources)

    def get_input_details(self) -> list[dict[str, Any]]:
        """Return the details of the input tensor in the format of the TFLite interpreter."""
        return self._input_details

    def get_output_details(self) -> list[dict[str, Any]]:
        """Return the details of the output tensor in the format of the TFLite interpreter."""
        return self._output_details

    def set_tensor(self, index: int, value: npt.NDArray[Any]) -> None:
        """Set the input tensor. ``index`` is ignored because the model has only one input."""
        self._resources[1][0].write(np.ascontiguousarray(value))

    def invoke(self) -> None:
        """Run the model."""
        compiled, inputs, outputs = self._resources
        compiled.run_by_index(0, inputs, outputs)

    def get_tensor(self, index: int) -> npt.NDArray[Any]:
        """Return the output tensor. ``index`` is ignored because the model has only one output."""
        spec = self._output_details[0]
        values = self._resources[2][0].read(int(np.prod(spec["shape"])), spec["dtype"])
        return np.asarray(values, spec["dtype"]).reshape(spec["shape"])


def open_gpu(interpreter: Any, model: bytes, options: Mapping[str, str] | None, where: str) -> GpuInterpreter:
    """Load a model on the GPU after testing it in a child process, because the GPU driver may crash or hang.

    Raises:
        DelegateError: the GPU cannot run the model. The message states the reason, and how to continue without the GPU.
    """
    gpu_options = dict(options or {})
    _precision(gpu_options)
    reason = probe(_GPU_TEST_CODE, json.dumps(gpu_options), content=model)
    if reason:
        raise DelegateError(
            f"the GPU cannot run {where} ({reason}): is its Vulkan, Metal or Direct3D driver installed? Use --delegate "
            "none to run on the CPU"
        )
    gpu_interpreter = GpuInterpreter(interpreter, model, gpu_options)
    if not gpu_interpreter.fully_accelerated:
        log.warning("%s: the GPU supports only some of the operators, the CPU runs the others", where)
    return gpu_interpreter


def _precision(options: Mapping[str, str]) -> str:
    precision = options.get("precision", "fp32")
    if options.keys() - {"precision"} or precision not in PRECISIONS:
        text = ", ".join(f"{key}={value}" for key, value in options.items())
        raise DelegateError(
            f"invalid options for --delegate gpu: {text!r}; expected precision={' or precision='.join(PRECISIONS)}"
        )
    return precision


def _release(resources: list[Any]) -> None:
    with captured_output():  # LiteRT prints the name of each library that it unloads.
        resources.clear()
