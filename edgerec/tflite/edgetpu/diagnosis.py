"""What the Edge TPU's compiler will do with a model, told before there is any compiler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from edgerec.contract.target import Target
from edgerec.tflite.cost import macs, tensor_bytes
from edgerec.tflite.edgetpu import rules
from edgerec.tflite.edgetpu.partition import mapped
from edgerec.tflite.edgetpu.rules import ONE_PICTURE, QUANTIZE, refused
from edgerec.tflite.finding import Finding
from edgerec.tflite.flatbuffer import Graph, Operator

Place = Literal["edgetpu", "cpu"]
STRANDED = "it needs {op} {layer!r}, which stays on the processor, and the compiler maps one part only"
BEHIND = "it is not in the part that begins first, and the compiler maps one part only"


@dataclass(frozen=True)
class Placed:
    """One operator, where it will run, and why it is not on the Edge TPU (empty where it is)."""

    index: int
    op: str
    layer: str
    on: Place
    reason: str
    macs: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Diagnosis:
    """A model as the Edge TPU's compiler will take it.

    Attributes:
        findings: what it refuses, each with the way out; empty: the whole model is mapped.
        operators: every operator, and where it will run.
        parameter_bytes: of the mapped operators; ``chip_bytes`` of them fit on the chip, the rest is sent each time.
        remarks: what does not hinder it, and is good to know.
    """

    findings: tuple[Finding, ...]
    operators: tuple[Placed, ...]
    parameter_bytes: int
    chip_bytes: int
    remarks: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole model."""
        return sum(operator.macs for operator in self.operators)

    @property
    def cpu_macs(self) -> int:
        """Those that stay on the processor."""
        return sum(operator.macs for operator in self.operators if operator.on == "cpu")

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON values."""
        return {
            "whole": not self.findings,
            "findings": [finding.to_dict() for finding in self.findings],
            "operators": [operator.to_dict() for operator in self.operators],
            "macs": self.macs,
            "cpu_macs": self.cpu_macs,
            "parameter_bytes": self.parameter_bytes,
            "chip_bytes": self.chip_bytes,
            "remarks": list(self.remarks),
        }


def diagnose(graph: Graph, target: Target | None = None) -> Diagnosis:
    """Judge every operator and tensor by the rules, and divide the graph as the compiler does.

    Args:
        graph: the model before the compiler.
        target: whose operators, versions and on-chip memory count; None is ``coral-usb``.
    """
    target = target or _coral()
    whole = _of_the_model(graph)
    why = {
        operator.index: reason for operator in graph.operators if (reason := refused(operator, target.operators or {}))
    }
    findings = [*whole, *(_finding(graph.operators[index], reason) for index, reason in why.items())]
    # A graph with a loop or an open size is refused as it stands, before any operator is looked at.
    stopped = next((finding.reason for finding in whole if finding.op in ("model", "batch")), "")
    on_chip = set() if stopped else mapped(graph, why)
    operators = tuple(_placed(operator, graph, on_chip, why, stopped) for operator in graph.operators)
    parameters = _parameter_bytes(graph, on_chip)
    remarks = []
    if 0 < target.parameter_bytes < parameters:
        remarks.append(
            f"its parameters take {parameters:,} bytes, of which about {target.parameter_bytes:,} stay on the chip: "
            "the rest is sent over USB for each picture, which makes it slower"
        )
    return Diagnosis(
        tuple(findings), operators, parameters, min(parameters, target.parameter_bytes or parameters), tuple(remarks)
    )


def check(graph: Graph, target: Target | None = None) -> list[Finding]:
    """Everything that the rules refuse; an empty list means that the whole model is mapped."""
    return list(diagnose(graph, target).findings)


@cache
def _coral() -> Target:
    return Target.load("coral-usb")


def _of_the_model(graph: Graph) -> list[Finding]:
    findings = []
    if graph.subgraphs > 1:
        reason = f"it has {graph.subgraphs} subgraphs, expected one"
        findings.append(Finding(-1, "model", "", reason, "build it without control flow"))
    for what, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        for tensor in tensors:
            if tensor.dtype not in ("INT8", "UINT8"):
                reason = f"it is {tensor.dtype}, expected INT8 or UINT8"
                way_out = QUANTIZE if "FLOAT" in tensor.dtype else f"leave out what makes this {what}"
                findings.append(Finding(-1, what, tensor.name, reason, way_out))
            if what == "input" and -1 in tensor.shape:
                reason = f"it has a dynamic shape {list(tensor.shape)}, expected a batch of 1 and fixed sizes"
                findings.append(Finding(-1, "batch", tensor.name, reason, ONE_PICTURE))
            elif what == "input" and len(tensor.shape) == 4 and tensor.shape[0] != 1:
                reason = f"it takes {tensor.shape[0]} pictures at a time, {list(tensor.shape)}: expected a batch of 1"
                findings.append(Finding(-1, "input", tensor.name, reason, ONE_PICTURE))
    return findings


def _parameter_bytes(graph: Graph, on_chip: set[int]) -> int:
    mapped_operators = (operator for operator in graph.operators if operator.index in on_chip)
    constants = {id(t): t for operator in mapped_operators for t in operator.inputs if t is not None and t.constant}
    return sum(tensor_bytes(tensor) for tensor in constants.values())


def _finding(operator: Operator, reason: str) -> Finding:
    return Finding(operator.index, operator.name, _layer(operator), reason, rules.way_out(operator, reason))


def _placed(operator: Operator, graph: Graph, on_chip: set[int], why: Mapping[int, str], stopped: str) -> Placed:
    on: Place = "edgetpu" if operator.index in on_chip else "cpu"
    reason = ""
    if on == "cpu":
        reason = why.get(operator.index, "") or stopped or _stranded(operator, graph, on_chip)
    return Placed(operator.index, operator.name, _layer(operator), on, reason, macs(operator))


def _stranded(operator: Operator, graph: Graph, on_chip: set[int]) -> str:
    """Which operator on the processor it needs."""
    made_by = {id(t): other for other in graph.operators for t in other.outputs}
    for tensor in operator.inputs:
        before = made_by.get(id(tensor))
        if before is not None and before.index not in on_chip:
            return STRANDED.format(op=before.name, layer=_layer(before)[-60:])
    return BEHIND


def _layer(operator: Operator) -> str:
    return operator.outputs[0].name if operator.outputs else ""
