"""Measure the figures that ``edgerec models`` shows: size and cost of every architecture as full int8.

    python benchmarks/models.py [--only NAME …] [--recommended] [--write docs/reference/architectures.md]

Builds the architectures with random weights, converts them, and writes edgerec/models/costs.json. Existing costs are
measured again only with ``--only``, because all architectures together take half an hour. ``--recommended`` instead
writes edgerec/models/recommended_costs.json: the networks that ``--arch auto`` chooses, at their width and input size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from edgerec.catalog.architectures import COSTS, ArchitectureReport, architectures, measured
from edgerec.catalog.recommendations import COSTS as RECOMMENDED
from edgerec.catalog.recommendations import default_input_px, key
from edgerec.contract.target import Target, target_names
from edgerec.models import ARCHITECTURES
from edgerec.models.automatic import rules_for
from edgerec.train.backend import keras

COST_KEYS = ("parameters", "macs", "int8_bytes", "methods", "targets", "pi4_ms")
HEADER = """# Architectures

Pass one of these names to `edgerec train --arch NAME`. [Choose an architecture](../how-to/choose-architecture.md) helps
you to select one. `edgerec models` prints this list.

The table shows the cost of each architecture after post-training quantization, for 96×96 RGB images, 10 classes and
width 1. The *width* multiplies the number of channels. For another input size or width, run for example
`edgerec models NAME --input-size 64 --width 0.5`. The command prints the cost, and the targets that can run the model.

| column | meaning |
|---|---|
| parameters | number of weights |
| multiply-adds | number of multiply-add operations per image |
| int8 bytes | size of the quantized .tflite file |
| min px | smallest supported width and height of the input |
| ImageNet | widths for which Keras provides ImageNet weights |
| methods | supported methods of `edgerec quantize` |
| not on | targets that cannot run the model; `edgerec models NAME` prints the reason |

"""
FOOTER = """
If a target cannot run an architecture, try a smaller width or input size. `vgg16` has no batch normalization. Therefore
it learns little in a short training run without ImageNet weights. `efficientnet_b0` and `efficientnet_v2_b0` have no
stochastic depth. Their only dropout is `model.dropout`.

`python benchmarks/models.py --write docs/reference/architectures.md` repeats the measurement, with random weights.
"""
COLUMNS = (
    *("architecture", "description", "parameters", "multiply-adds", "int8 bytes"),
    *("min px", "ImageNet", "methods", "not on"),
)


def table(reports: Sequence[ArchitectureReport]) -> str:
    """Return the reports as Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * 4 + "---|---|---|"]
    for report in reports:
        cells = (
            f"`{report.name}`",
            report.about,
            f"{report.parameters:,}",
            f"{report.macs:,}",
            f"{report.int8_bytes:,}",
            str(report.least_size_px),
            ", ".join(f"{width:g}" for width in report.imagenet_widths) or "–",
            "all" if "prune+qat" in report.methods else ", ".join(report.methods),
            ", ".join(name for name, reason in report.targets.items() if reason) or "–",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_recommended() -> None:
    """Measure every network that ``--arch auto`` chooses for one of the targets."""
    rules = {rule for name in target_names() for rule in rules_for(Target.load(name))}
    networks = {(rule.arch, rule.width, default_input_px(rule)) for rule in rules}
    figures = {}
    for arch, width, size in sorted(networks):
        keras().backend.clear_session()
        figures[key(arch, width, size)] = measured(arch, input_size=size, width=width).to_dict()
        print(key(arch, width, size), flush=True)
    RECOMMENDED.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Measure the figures, and write them to files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(ARCHITECTURES),
        help="measure these architectures, even if they were measured before",
    )
    parser.add_argument("--recommended", action="store_true", help="measure the architectures that auto chooses")
    parser.add_argument("--write", type=Path, help="Markdown file to which the table is written")
    arguments = parser.parse_args()
    if arguments.recommended:
        write_recommended()
        return
    figures = json.loads(COSTS.read_text()) if COSTS.is_file() else {}
    for name in arguments.only or [name for name in ARCHITECTURES if name not in figures]:
        keras().backend.clear_session()
        report = measured(name).to_dict()
        figures[name] = {key: report[key] for key in COST_KEYS}
        print(name, {key: figures[name][key] for key in COST_KEYS[:4]}, flush=True)
        ordered = {name: figures[name] for name in ARCHITECTURES if name in figures}
        COSTS.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
    text = table(architectures())
    print(text)
    if arguments.write:
        arguments.write.write_text(HEADER + text + FOOTER)


if __name__ == "__main__":
    main()
