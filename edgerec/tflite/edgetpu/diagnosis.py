"""Predict the result of the Edge TPU compiler without running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from edgerec.contract.target import Target
from edgerec.tflite.cost import macs, tensor_bytes
from edgerec.tflite.edgetpu import rules
from edgerec.tflite.edgetpu.partition import mapped_operators
from edgerec.tflite.edgetpu.rules import ONE_IMAGE, QUANTIZE, refusal_reason
from edgerec.tflite.finding import Finding
from edgerec.tflite.flatbuffer import Graph, Operator

Device = Literal["edgetpu", "cpu"]
STRANDED = (
    "it needs the output of {op} {layer!r}, which runs on the CPU, and the compiler maps only one part of a graph"
)
OTHER_PART = "it is not in the first part of the graph that can be mapped, and the compiler maps only one part"


@dataclass(frozen=True)
class OperatorPlacement:
    """The predicted placement of an operator.

    Attributes:
        index, op, layer: position of the operator, its kind, and the name of its first output.
        on: where the operator will run.
        reason: why the operator does not run on the Edge TPU; empty if it does.
        macs: multiply-accumulates of the operator for one image.
    """

    index: int
    op: str
    layer: str
    on: Device
    reason: str
    macs: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Diagnosis:
    """Predicted result of the Edge TPU compiler for a model.

    Attributes:
        findings: operators and properties of the model that the compiler refuses, each with a solution; empty if the
            compiler maps all operators.
        operators: predicted placement of each operator.
        parameter_bytes: size of the weights of the operators on the Edge TPU.
        chip_bytes: size of the weights that fit into the memory of the chip. The others are transferred for each image.
        remarks: notes that do not prevent the mapping, e.g. about speed.
    """

    findings: tuple[Finding, ...]
    operators: tuple[OperatorPlacement, ...]
    parameter_bytes: int
    chip_bytes: int
    remarks: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all operators."""
        return sum(operator.macs for operator in self.operators)

    @property
    def cpu_macs(self) -> int:
        """Multiply-accumulates of the operators on the CPU."""
        return sum(operator.macs for operator in self.operators if operator.on == "cpu")

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON values."""
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
    """Apply the rules to all operators and tensors, and divide the graph as the compiler does.

    Args:
        graph: the model before compilation.
        target: the target, with its operators, their versions, and its on-chip memory; None for ``coral-usb``.
    """
    target = target or _coral()
    model_findings = _model_findings(graph)
    refusals = {
        operator.index: reason
        for operator in graph.operators
        if (reason := refusal_reason(operator, target.operators or {}))
    }
    findings = [*model_findings, *(_finding(graph.operators[index], reason) for index, reason in refusals.items())]
    # The compiler refuses a graph with control flow or dynamic shapes before it checks any operator.
    graph_refusal = next((finding.reason for finding in model_findings if finding.op in ("model", "batch")), "")
    on_chip = set() if graph_refusal else mapped_operators(graph, refusals)
    operators = tuple(_placement(operator, graph, on_chip, refusals, graph_refusal) for operator in graph.operators)
    parameters = _parameter_bytes(graph, on_chip)
    remarks = []
    if 0 < target.parameter_bytes < parameters:
        remarks.append(
            f"the weights take {parameters:,} bytes, of which about {target.parameter_bytes:,} fit into the memory of "
            "the chip: the others are transferred over USB for each image, which makes inference slower"
        )
    return Diagnosis(
        tuple(findings), operators, parameters, min(parameters, target.parameter_bytes or parameters), tuple(remarks)
    )


def check(graph: Graph, target: Target | None = None) -> list[Finding]:
    """Return all findings of :func:`diagnose`; an empty list if the compiler maps all operators."""
    return list(diagnose(graph, target).findings)


@cache
def _coral() -> Target:
    return Target.load("coral-usb")


def _model_findings(graph: Graph) -> list[Finding]:
    findings = []
    if graph.subgraphs > 1:
        reason = f"it has {graph.subgraphs} subgraphs, expected one"
        findings.append(Finding(-1, "model", "", reason, "build it without control flow"))
    for what, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        for tensor in tensors:
            if tensor.dtype not in ("INT8", "UINT8"):
                reason = f"it is {tensor.dtype}, expected INT8 or UINT8"
                way_out = QUANTIZE if "FLOAT" in tensor.dtype else f"remove this {what} from the model"
                findings.append(Finding(-1, what, tensor.name, reason, way_out))
            if what == "input" and -1 in tensor.shape:
                reason = f"it has a dynamic shape {list(tensor.shape)}, expected a batch of 1 and fixed sizes"
                findings.append(Finding(-1, "batch", tensor.name, reason, ONE_IMAGE))
            elif what == "input" and len(tensor.shape) == 4 and tensor.shape[0] != 1:
                reason = f"it has a batch of {tensor.shape[0]} images, {list(tensor.shape)}: expected a batch of 1"
                findings.append(Finding(-1, "input", tensor.name, reason, ONE_IMAGE))
    return findings


def _parameter_bytes(graph: Graph, on_chip: set[int]) -> int:
    on_chip_operators = (operator for operator in graph.operators if operator.index in on_chip)
    constants = {id(t): t for operator in on_chip_operators for t in operator.inputs if t is not None and t.constant}
    return sum(tensor_bytes(tensor) for tensor in constants.values())


def _finding(operator: Operator, reason: str) -> Finding:
    return Finding(operator.index, operator.name, _layer(operator), reason, rules.way_out(operator, reason))


def _placement(
    operator: Operator, graph: Graph, on_chip: set[int], refusals: Mapping[int, str], graph_refusal: str
) -> OperatorPlacement:
    on: Device = "edgetpu" if operator.index in on_chip else "cpu"
    reason = ""
    if on == "cpu":
        reason = refusals.get(operator.index, "") or graph_refusal or _dependency_reason(operator, graph, on_chip)
    return OperatorPlacement(operator.index, operator.name, _layer(operator), on, reason, macs(operator))


def _dependency_reason(operator: Operator, graph: Graph, on_chip: set[int]) -> str:
    """Return why a supported operator runs on the CPU: it depends on an operator on the CPU, or is in another part."""
    producers = {id(t): other for other in graph.operators for t in other.outputs}
    for tensor in operator.inputs:
        before = producers.get(id(tensor))
        if before is not None and before.index not in on_chip:
            return STRANDED.format(op=before.name, layer=_layer(before)[-60:])
    return OTHER_PART


def _layer(operator: Operator) -> str:
    return operator.outputs[0].name if operator.outputs else ""
