"""The GPU, where LiteRT has an accelerator for it: WebGPU over Vulkan, Metal or Direct3D."""

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

# What --delegate is given, in the place of a library.
GPU = "gpu"
PRECISIONS = ("fp32", "fp16")
_PROBE = """
import json, sys
from edgerec.errors import DelegateError
from edgerec.runtime.gpu import GpuInterpreter
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
    """A model on the GPU, behind those of an interpreter's methods that edgerec uses.

    Attributes:
        whole: whether the GPU takes every operator; what it does not take runs on the processor.
    """

    whole: bool

    def __init__(self, interpreter: Any, model: bytes, options: Mapping[str, str]) -> None:
        """Compile the .tflite bytes for the GPU; :func:`open_gpu` tries that in a child process first.

        Args:
            interpreter: of the same model on the processor: it knows the tensors.
            model: the .tflite file's bytes.
            options: ``precision``: ``fp32`` answers as the processor does; ``fp16`` is faster and less exact.

        Raises:
            DelegateError: this runtime has no GPU accelerator, there is no GPU that it takes, or an unknown option.
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
            raise DelegateError("the GPU needs a newer runtime: pip install -U ai-edge-litert") from None
        self._given, self._asked = interpreter.get_input_details(), interpreter.get_output_details()
        with captured_output() as said:  # it tells of every library that it tries
            try:
                wanted = Options(HardwareAccelerator.GPU, cpu_options=CpuOptions(), gpu_options=GpuOptions(fp32))
                compiled = CompiledModel.from_buffer(model, options=wanted)
                inputs, outputs = compiled.create_input_buffers(0), compiled.create_output_buffers(0)
                spec = self._given[0]
                inputs[0].write(np.zeros(spec["shape"], spec["dtype"]))
                compiled.run_by_index(0, inputs, outputs)  # the first run makes another environment, and says so
            except RuntimeError as error:
                said.seek(0)
                reasons = re.findall(r"INTERNAL: (.+)", said.read().decode(errors="replace"))
                raise DelegateError(reasons[0] if reasons else first_sentence(error)) from None
        self._held: list[Any] = [compiled, inputs, outputs]
        self.whole = bool(compiled.is_fully_accelerated())
        weakref.finalize(self, _release, self._held)

    def get_input_details(self) -> list[dict[str, Any]]:
        """As of the interpreter on the processor."""
        return self._given

    def get_output_details(self) -> list[dict[str, Any]]:
        """As of the interpreter on the processor."""
        return self._asked

    def set_tensor(self, index: int, value: npt.NDArray[Any]) -> None:
        """Store the only input; ``index`` is not looked at."""
        self._held[1][0].write(np.ascontiguousarray(value))

    def invoke(self) -> None:
        """Run the model."""
        compiled, inputs, outputs = self._held
        compiled.run_by_index(0, inputs, outputs)

    def get_tensor(self, index: int) -> npt.NDArray[Any]:
        """The only output; ``index`` is not looked at."""
        spec = self._asked[0]
        read = self._held[2][0].read(int(np.prod(spec["shape"])), spec["dtype"])
        return np.asarray(read, spec["dtype"]).reshape(spec["shape"])


def open_gpu(interpreter: Any, model: bytes, options: Mapping[str, str] | None, where: str) -> GpuInterpreter:
    """The model on the GPU, after a child process has shown that its driver neither crashes nor hangs.

    Raises:
        DelegateError: with the reason, and how to go on without it.
    """
    wanted = dict(options or {})
    _precision(wanted)
    reason = probe(_PROBE, json.dumps(wanted), content=model)
    if reason:
        raise DelegateError(
            f"the GPU does not compute {where} ({reason}): is its Vulkan, Metal or Direct3D driver installed? "
            "--delegate none runs on the processor"
        )
    opened = GpuInterpreter(interpreter, model, wanted)
    if not opened.whole:
        log.warning("%s: the GPU takes a part of it only, the rest runs on the processor", where)
    return opened


def _precision(options: Mapping[str, str]) -> str:
    precision = options.get("precision", "fp32")
    if options.keys() - {"precision"} or precision not in PRECISIONS:
        said = ", ".join(f"{key}={value}" for key, value in options.items())
        raise DelegateError(f"the GPU's options are {said!r}, expected precision={' or precision='.join(PRECISIONS)}")
    return precision


def _release(held: list[Any]) -> None:
    with captured_output():  # it tells of every library that it leaves
        held.clear()
