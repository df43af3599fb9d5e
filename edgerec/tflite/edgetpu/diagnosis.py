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
from edgerec.tflite.flatbuffer import Graph, Operator
from edgerec.tflite.incompatibility import Incompatibility

Device = Literal["edgetpu", "cpu"]
STRANDED = (
    "it needs the output of {op} {layer!r}, which runs on the CPU, and the compiler maps only one part of a graph"
)
OTHER_PART = "it is not in the first part of the graph that can be mapped, and the compiler maps only one part"


@dataclass(frozen=True)
class OperatorPlacement:
    """An operator's predicted placement on the Edge TPU or the CPU.

    Attributes:
        index, op, layer: the operator's position, type and first output name.
        on: where the operator will run.
        reason: why the operator does not run on the Edge TPU, or an empty string if it does.
        macs: the operator's multiply-accumulate operations per image.
    """

    index: int
    op: str
    layer: str
    on: Device
    reason: str
    macs: int


@dataclass(frozen=True)
class Diagnosis:
    """Predicted result of compiling a model for the Edge TPU.

    Attributes:
        findings: operators and properties of the model that the compiler rejects, each with a solution. Empty if all
            operators can run on the Edge TPU.
        operators: predicted placement of each operator.
        parameter_bytes: size of the weights for the operators on the Edge TPU.
        chip_bytes: size of the weights that fit into on-chip memory. Others are transferred over USB for each image.
        remarks: notes that do not prevent compilation, e.g. about speed.
    """

    findings: tuple[Incompatibility, ...]
    operators: tuple[OperatorPlacement, ...]
    parameter_bytes: int
    chip_bytes: int
    remarks: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Total number of multiply-accumulate operations per image."""
        return sum(operator.macs for operator in self.operators)

    @property
    def cpu_macs(self) -> int:
        """Number of multiply-accumulate operations per image that run on the CPU."""
        return sum(operator.macs for operator in self.operators if operator.on == "cpu")

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as a JSON-serializable dictionary, including totals and remarks."""
        return {
            "whole": not self.findings,
            "macs": self.macs,
            "cpu_macs": self.cpu_macs,
            "parameter_bytes": self.parameter_bytes,
            "chip_bytes": self.chip_bytes,
            "remarks": self.remarks,
        }


def diagnose(graph: Graph, target: Target | None = None) -> Diagnosis:
    """Predict which operators the compiler maps to the Edge TPU, and why the others stay on the CPU.

    Args:
        graph: the model before compilation.
        target: the target, with its operators, their versions, and its on-chip memory. By default, ``coral-usb``.
    """
    target = target or _coral()
    model_findings = _model_findings(graph)
    refusals = {
        operator.index: reason
        for operator in graph.operators
        if (reason := refusal_reason(operator, target.operators or {}))
    }
    findings = [*model_findings, *(_finding(graph.operators[index], reason) for index, reason in refusals.items())]
    # The compiler rejects all operators of a graph with control flow or dynamic shapes.
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


@cache
def _coral() -> Target:
    return Target.load("coral-usb")


def _model_findings(graph: Graph) -> list[Incompatibility]:
    findings = []
    if graph.subgraphs > 1:
        reason = f"it has {graph.subgraphs} subgraphs, expected one"
        findings.append(Incompatibility(-1, "model", "", reason, "build it without control flow"))
    for what, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        for tensor in tensors:
            if tensor.dtype not in ("INT8", "UINT8"):
                reason = f"it is {tensor.dtype}, expected INT8 or UINT8"
                way_out = QUANTIZE if "FLOAT" in tensor.dtype else f"remove this {what} from the model"
                findings.append(Incompatibility(-1, what, tensor.name, reason, way_out))
            if what == "input" and -1 in tensor.shape:
                reason = f"it has a dynamic shape {list(tensor.shape)}, expected a batch of 1 and fixed sizes"
                findings.append(Incompatibility(-1, "batch", tensor.name, reason, ONE_IMAGE))
            elif what == "input" and len(tensor.shape) == 4 and tensor.shape[0] != 1:
                reason = f"it has a batch of {tensor.shape[0]} images, {list(tensor.shape)}: expected a batch of 1"
                findings.append(Incompatibility(-1, "input", tensor.name, reason, ONE_IMAGE))
    return findings


def _parameter_bytes(graph: Graph, on_chip: set[int]) -> int:
    on_chip_operators = (operator for operator in graph.operators if operator.index in on_chip)
    constants = {id(t): t for operator in on_chip_operators for t in operator.inputs if t is not None and t.constant}
    return sum(tensor_bytes(tensor) for tensor in constants.values())


def _finding(operator: Operator, reason: str) -> Incompatibility:
    return Incompatibility(operator.index, operator.name, operator.layer, reason, rules.way_out(operator, reason))


def _placement(
    operator: Operator, graph: Graph, on_chip: set[int], refusals: Mapping[int, str], graph_refusal: str
) -> OperatorPlacement:
    on: Device = "edgetpu" if operator.index in on_chip else "cpu"
    reason = ""
    if on == "cpu":
        reason = refusals.get(operator.index, "") or graph_refusal or _dependency_reason(operator, graph, on_chip)
    return OperatorPlacement(operator.index, operator.name, operator.layer, on, reason, macs(operator))


def _dependency_reason(operator: Operator, graph: Graph, on_chip: set[int]) -> str:
    """Explain why an operator that the Edge TPU supports runs on the CPU.

    Either it depends on an operator on the CPU, or it is outside the part of the graph that the compiler maps.
    """
    producers = {id(t): other for other in graph.operators for t in other.outputs}
    for tensor in operator.inputs:
        before = producers.get(id(tensor))
        if before is not None and before.index not in on_chip:
            return STRANDED.format(op=before.name, layer=before.layer[-60:])
    return OTHER_PART
