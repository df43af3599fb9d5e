"""Compare edgerec's predictions for the Edge TPU with the results of Google's compiler, and check the memory estimate.

    python benchmarks/edgetpu.py FOLDER [FOLDER ...]

Each folder contains pairs of files from before and after the compiler, ``X.tflite`` and ``X_edgetpu.tflite``. Files
without a partner are skipped, as are files that were compiled for several partitions (options -a and -d of the
compiler). TensorFlow is not needed. ``--micro`` compares the estimated arena size with the arena that TensorFlow Lite
Micro uses for each model, and needs the package tflite-micro.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgerec.errors import ModelError
from edgerec.tflite.edgetpu import diagnose, left_on_cpu
from edgerec.tflite.flatbuffer import read_graph
from edgerec.tflite.memory import MICRO_ALIGNMENT, microcontroller_bytes, plan_bytes
from edgerec.tflite.operators import EDGETPU_CUSTOM

# The interpreter aborts the process if it cannot run a model, so it runs in a separate process.
MICRO = """
import sys
from tflite_micro import runtime
interpreter = runtime.Interpreter.from_bytes(open(sys.argv[1], "rb").read(), arena_size=100_000_000)
interpreter.print_allocations()
"""


@dataclass(frozen=True)
class Pair:
    """A compiled model: number of operators, number of operators on the CPU, and wrong predictions."""

    name: str
    operators: int
    on_cpu: int
    mismatches: tuple[str, ...]
    dynamic_batch: bool


def pairs(folder: Path) -> Iterator[Pair]:
    """Yield every pair in a folder."""
    for after in sorted(folder.glob("*_edgetpu.tflite")):
        before = after.with_name(after.name.removesuffix("_edgetpu.tflite") + ".tflite")
        if not before.is_file():
            continue
        graph, compiled = read_graph(before.read_bytes(), str(before)), read_graph(after.read_bytes(), str(after))
        if sum(operator.name == EDGETPU_CUSTOM for operator in compiled.operators) > 1:
            continue
        on_cpu = left_on_cpu(graph, compiled)
        mismatches = tuple(
            f"{operator.index} {operator.op} predicted on {operator.on}: {operator.reason or 'mapped'}"
            for operator in diagnose(graph).operators
            if (operator.on == "cpu") != (operator.index in on_cpu)
        )
        is_dynamic = any(-1 in tensor.shape for tensor in graph.inputs)
        yield Pair(before.stem, len(graph.operators), len(on_cpu), mismatches, is_dynamic)


def show_pairs(folders: list[Path]) -> None:
    """Print a line for each pair, and the totals."""
    compiled_pairs = [pair for folder in folders for pair in pairs(folder)]
    for pair in compiled_pairs:
        verdict = f"{len(pair.mismatches)} wrong" if pair.mismatches else "correct"
        verdict = "dynamic batch size" if pair.dynamic_batch else verdict
        print(f"{pair.name[:78]:<78} {pair.operators:4} {pair.on_cpu:4}  {verdict}")
        for line in () if pair.dynamic_batch else pair.mismatches[:5]:
            print(f"    {line}")
    fixed = [pair for pair in compiled_pairs if not pair.dynamic_batch]
    correct_pairs = sum(not pair.mismatches for pair in fixed)
    correct_operators = sum(pair.operators - len(pair.mismatches) for pair in fixed)
    dynamic = len(compiled_pairs) - len(fixed)
    print(f"\n{len(compiled_pairs)} pairs, {dynamic} of them with a dynamic batch size, which edgerec rejects")
    total = sum(pair.operators for pair in fixed)
    print(
        f"The predictions are correct for {correct_pairs} of the other {len(fixed)} pairs, and "
        f"for {correct_operators} of their {total} operators"
    )


def show_micro(folders: list[Path]) -> None:
    """Print the planned and estimated memory, and the memory that TensorFlow Lite Micro's interpreter uses."""
    print(f"{'model':<60} {'plan':>10} {'head':>10} {'estimate':>10} {'arena':>10}")
    for path in sorted(path for folder in folders for path in folder.glob("*.tflite")):
        try:
            graph = read_graph(path.read_bytes())
        except ModelError:
            continue
        if any(operator.name == EDGETPU_CUSTOM for operator in graph.operators):
            continue
        process = subprocess.run([sys.executable, "-c", MICRO, str(path)], capture_output=True, text=True, check=False)
        output = process.stdout + process.stderr
        if process.returncode or "Arena allocation total" not in output:
            continue
        head, total = (int(output.split(f"Arena allocation {what} ")[1].split()[0]) for what in ("head", "total"))
        plan, estimate = plan_bytes(graph, MICRO_ALIGNMENT), microcontroller_bytes(graph)
        print(f"{path.stem[:60]:<60} {plan:>10,} {head:>10,} {estimate:>10,} {total:>10,}")


def main() -> None:
    """Parse the command line, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--micro", action="store_true", help="compare memory with TensorFlow Lite Micro instead")
    arguments = parser.parse_args()
    (show_micro if arguments.micro else show_pairs)(arguments.folders)


if __name__ == "__main__":
    main()
