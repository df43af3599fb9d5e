"""Google's ``edgetpu_compiler``, where it is installed, and what it says."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerec.contract.target import Target
from edgerec.errors import ModelError, NoHomeError, TargetError
from edgerec.tflite.edgetpu.diagnosis import Diagnosis, diagnose
from edgerec.tflite.flatbuffer import Graph, read_graph
from edgerec.utils.atomic import cache_folder, write_file
from edgerec.utils.subprocesses import call

log = logging.getLogger(__name__)

COMPILE_TIMEOUT_S = 300
CUSTOM = "CUSTOM edgetpu-custom-op"
HOW_TO_COMPILE = (
    "install edgetpu_compiler (x86-64 Debian or Ubuntu, from Coral's package archive; see coral.ai, "
    "'Edge TPU Compiler') and export again with --overwrite; until then the bundle runs on the processor"
)
# What is read of its output, which nobody bounds.
_MOST_BYTES = 1 << 20
# So many differences go to the log; the report has all.
_MOST_TOLD = 5
_ROW = re.compile(r"^([A-Z][A-Z0-9_]+)\s+(\d+)\s+(\S.*)$")
_MAPPED = "Mapped to Edge TPU"


@dataclass(frozen=True)
class Status:
    """A row of the compiler's report: so many operators of a kind, and what became of them."""

    op: str
    count: int
    status: str


@dataclass(frozen=True)
class EdgeTpuReport:
    """A model that the rules take, and what the compiler said; ``content`` is empty without a compiler.

    Attributes:
        operators: of the model before the compiler.
        compiler: its path, or empty.
        log: what it said, or how to get it.
        content: the compiled file.
        statuses: the table in its report.
        differences: where it did otherwise than predicted.
    """

    operators: int
    compiler: str
    log: str
    content: bytes
    statuses: tuple[Status, ...] = ()
    differences: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, without the file."""
        return {
            "operators": self.operators,
            "compiled": bool(self.content),
            "compiler": self.compiler,
            "log": self.log,
            "statuses": [dict(vars(status)) for status in self.statuses],
            "differences": list(self.differences),
        }


def compiled(content: bytes, target: Target) -> EdgeTpuReport:
    """Compile a .tflite file when the target's compiler is on the PATH, and compare with what was predicted.

    Raises:
        TargetError: the compiler fails or hangs; its log is kept, and the message says where.
    """
    graph = read_graph(content)
    program = shutil.which(target.compiler) if target.compiler else None
    if program is None:
        log.warning("not compiled for the Edge TPU: %s", HOW_TO_COMPILE)
        return EdgeTpuReport(len(graph.operators), "", HOW_TO_COMPILE, b"")
    result, said = compile_model(program, content)
    statuses = parse_log(said)
    differences = compare(graph, diagnose(graph, target), result, statuses)
    for difference in differences[:_MOST_TOLD]:
        log.warning("the compiler did otherwise than predicted: %s", difference)
    if len(differences) > _MOST_TOLD:
        log.warning("and %d operators more", len(differences) - _MOST_TOLD)
    return EdgeTpuReport(len(graph.operators), program, said, result, statuses, differences)


def compile_model(compiler: str, content: bytes) -> tuple[bytes, str]:
    """Run ``edgetpu_compiler``; gives the compiled file and what the compiler said, with its operation log.

    Raises:
        TargetError: it failed, or took longer than five minutes.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "model.tflite"
        source.write_bytes(content)
        command = [compiler, "-s", "-o", str(folder), str(source)]
        try:
            with open(folder / "said.txt", "wb") as stream:
                code = call(command, timeout_s=COMPILE_TIMEOUT_S, output=stream, errors=stream).code
        except TargetError as error:
            raise TargetError(f"{error}; what it said is in {_keep(_read(folder / 'said.txt'))}") from None
        said = _read(folder / "said.txt")
        if operations := _read(folder / "model_edgetpu.log"):
            said = f"{said}\n\n{operations}"
        result = folder / "model_edgetpu.tflite"
        if code or not result.is_file():
            last = said.splitlines()[-1] if said else "it said nothing"
            raise TargetError(f"{compiler} failed with exit code {code}: {last}; all that it said is in {_keep(said)}")
        return result.read_bytes(), said


def parse_log(said: str) -> tuple[Status, ...]:
    """The rows ``OPERATOR  COUNT  STATUS`` of the compiler's output or log file, each once."""
    rows = (_ROW.match(line.strip()) for line in said.splitlines())
    found = [Status(row[1], int(row[2]), row[3].strip()) for row in rows if row]
    return tuple(dict.fromkeys(found))


def left_on_cpu(before: Graph, after: Graph) -> set[int]:
    """The operators that a compiled file still has beside its ``edgetpu-custom-op``, as indexes of the model before.

    The compiler keeps the names of tensors; operators are found again by their kind and what they give.
    """
    kept = Counter((operator.name, _gives(operator)) for operator in after.operators if operator.name != CUSTOM)
    left = set()
    for operator in before.operators:
        key = (operator.name, _gives(operator))
        if kept[key]:
            kept[key] -= 1
            left.add(operator.index)
    return left


def compare(graph: Graph, diagnosis: Diagnosis, content: bytes, statuses: tuple[Status, ...]) -> tuple[str, ...]:
    """Where the compiled file is not as predicted, a line for each operator."""
    try:
        left = left_on_cpu(graph, read_graph(content, "the compiled file"))
    except ModelError as error:
        return (str(error),)
    reasons = {row.op: row.status for row in statuses if row.status != _MAPPED}
    lines = []
    for operator in diagnosis.operators:
        did = "cpu" if operator.index in left else "edgetpu"
        if did != operator.on:
            said = f" ({reasons[operator.op]})" if did == "cpu" and operator.op in reasons else ""
            lines.append(f"{operator.op} {operator.layer[-60:]!r} is on the {did}{said}, not on the {operator.on}")
    return tuple(lines)


def _gives(operator: Any) -> tuple[str, ...]:
    return tuple(tensor.name for tensor in operator.outputs)


def _read(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        return stream.read(_MOST_BYTES).decode(errors="replace").strip()


def _keep(said: str) -> Path:
    try:
        folder = cache_folder()
    except NoHomeError:
        folder = Path(tempfile.mkdtemp(prefix="edgerec-"))
    path = folder / "edgetpu_compiler.log"
    write_file(path, said + "\n")
    return path
