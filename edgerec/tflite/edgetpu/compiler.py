"""Run Google's ``edgetpu_compiler`` if it is installed, and compare the result with the predicted placement."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgerec.contract.target import Target
from edgerec.errors import ModelError, NoHomeError, TargetError
from edgerec.tflite.edgetpu.diagnosis import Diagnosis, diagnose
from edgerec.tflite.flatbuffer import Graph, Operator, read_graph
from edgerec.tflite.operators import EDGETPU_CUSTOM
from edgerec.utils.atomic import cache_folder, write_file
from edgerec.utils.child_process import run_program

log = logging.getLogger(__name__)

COMPILE_TIMEOUT_S = 300
HOW_TO_COMPILE = (
    "install edgetpu_compiler (for x86-64 Debian or Ubuntu, from Coral's package archive, see coral.ai, "
    "'Edge TPU Compiler') and export again with --overwrite; until then, the bundle runs on the CPU"
)
_MAX_OUTPUT_BYTES = 1 << 20
_MAX_LOGGED_DIFFERENCES = 5
_ROW = re.compile(r"^([A-Z][A-Z0-9_]+)\s+(\d+)\s+(\S.*)$")
_MAPPED = "Mapped to Edge TPU"
_NAMES = {"cpu": "CPU", "edgetpu": "Edge TPU"}


@dataclass(frozen=True)
class CompilerStatus:
    """Status of all operators of one type in the Edge TPU compiler's report.

    Attributes:
        op: operator type, such as ``CONV_2D``.
        count: number of operators of this type.
        status: what the compiler did with these operators, such as ``Mapped to Edge TPU``.
    """

    op: str
    count: int
    status: str


@dataclass(frozen=True)
class EdgeTpuReport:
    """Result of compiling a model for the Edge TPU.

    Attributes:
        operators: number of operators in the model before compilation.
        compiler: path of the compiler, or an empty string if it is not installed.
        log: the compiler's output, or instructions for installing it.
        content: the compiled file's bytes. Empty if the compiler is not installed.
        statuses: rows of the compiler's report.
        differences: one sentence for each operator whose placement differs from the prediction.
    """

    operators: int
    compiler: str
    log: str
    content: bytes
    statuses: tuple[CompilerStatus, ...] = ()
    differences: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary, without the compiled file."""
        values = asdict(self) | {"compiled": bool(self.content)}
        del values["content"]
        return values


def compile_for_edgetpu(content: bytes, target: Target) -> EdgeTpuReport:
    """Compile a .tflite file if the target's compiler is on the PATH, and compare the result with the prediction.

    The prediction comes from :func:`~edgerec.tflite.edgetpu.diagnosis.diagnose`.

    Raises:
        TargetError: the compiler failed or timed out. The message contains the path of its saved output.
    """
    graph = read_graph(content)
    program = shutil.which(target.compiler) if target.compiler else None
    if program is None:
        log.warning("the model is not compiled for the Edge TPU: %s", HOW_TO_COMPILE)
        return EdgeTpuReport(len(graph.operators), "", HOW_TO_COMPILE, b"")
    result, output = compile_model(program, content)
    statuses = parse_log(output)
    differences = compare(graph, diagnose(graph, target), result, statuses)
    for difference in differences[:_MAX_LOGGED_DIFFERENCES]:
        log.warning("the compiler's result differs from the prediction: %s", difference)
    if len(differences) > _MAX_LOGGED_DIFFERENCES:
        others = len(differences) - _MAX_LOGGED_DIFFERENCES
        log.warning("the placement of %d more operators differs from the prediction", others)
    return EdgeTpuReport(len(graph.operators), program, output, result, statuses, differences)


def compile_model(compiler: str, content: bytes) -> tuple[bytes, str]:
    """Run ``edgetpu_compiler``. Return the compiled .tflite bytes and the output of the compiler.

    Raises:
        TargetError: the compiler failed, or took longer than ``COMPILE_TIMEOUT_S``.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "model.tflite"
        source.write_bytes(content)
        command = [compiler, "-s", "-o", str(folder), str(source)]
        with open(folder / "output.txt", "wb") as stream:
            done = run_program(command, timeout_s=COMPILE_TIMEOUT_S, stdout=stream, stderr=stream)
        output = _read(folder / "output.txt")
        if not done.finished:
            raise TargetError(f"the Edge TPU compiler {compiler} {done.failure}: its output is in {_save_log(output)}")
        if operations := _read(folder / "model_edgetpu.log"):
            output = f"{output}\n\n{operations}"
        result = folder / "model_edgetpu.tflite"
        if done.code or not result.is_file():
            last = output.splitlines()[-1] if output else "it printed nothing"
            raise TargetError(
                f"the Edge TPU compiler {compiler} failed with exit code {done.code}: {last}; its output is in "
                f"{_save_log(output)}"
            )
        return result.read_bytes(), output


def parse_log(output: str) -> tuple[CompilerStatus, ...]:
    """Parse the rows ``OPERATOR  COUNT  STATUS`` in the compiler's output. Duplicate rows are removed."""
    rows = (_ROW.match(line.strip()) for line in output.splitlines())
    statuses = [CompilerStatus(row[1], int(row[2]), row[3].strip()) for row in rows if row]
    return tuple(dict.fromkeys(statuses))


def left_on_cpu(before: Graph, after: Graph) -> set[int]:
    """Return the indices of the original model's operators that the compiler left on the CPU.

    In the compiled file, these are all operators except ``edgetpu-custom-op``. The compiler keeps tensor names, so
    operators can be matched by type and output names.

    Args:
        before: the model before compilation.
        after: the compiled model.
    """
    unmapped = Counter(
        (operator.name, _output_names(operator)) for operator in after.operators if operator.name != EDGETPU_CUSTOM
    )
    indices = set()
    for operator in before.operators:
        key = (operator.name, _output_names(operator))
        if unmapped[key]:
            unmapped[key] -= 1
            indices.add(operator.index)
    return indices


def compare(
    graph: Graph, diagnosis: Diagnosis, content: bytes, statuses: tuple[CompilerStatus, ...]
) -> tuple[str, ...]:
    """Describe each operator whose placement in the compiled file differs from the prediction.

    Args:
        graph: the model before compilation.
        diagnosis: the prediction.
        content: the compiled file's bytes.
        statuses: rows of the compiler's report.
    """
    try:
        left = left_on_cpu(graph, read_graph(content, "the compiled file"))
    except ModelError as error:
        return (str(error),)
    reasons = {row.op: row.status for row in statuses if row.status != _MAPPED}
    lines = []
    for operator in diagnosis.operators:
        actual = "cpu" if operator.index in left else "edgetpu"
        if actual != operator.on:
            reason = f" ({reasons[operator.op]})" if actual == "cpu" and operator.op in reasons else ""
            layer = f"{operator.op} {operator.layer[-60:]!r}"
            lines.append(
                f"{layer} runs on the {_NAMES[actual]}{reason}, but was predicted for the {_NAMES[operator.on]}"
            )
    return tuple(lines)


def _output_names(operator: Operator) -> tuple[str, ...]:
    return tuple(tensor.name for tensor in operator.outputs)


def _read(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        return stream.read(_MAX_OUTPUT_BYTES).decode(errors="replace").strip()


def _save_log(output: str) -> Path:
    try:
        folder = cache_folder()
    except NoHomeError:
        folder = Path(tempfile.mkdtemp(prefix="edgerec-"))
    path = folder / "edgetpu_compiler.log"
    write_file(path, output + "\n")
    return path
