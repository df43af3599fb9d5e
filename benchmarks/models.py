"""The figures that ``edgerec models`` shows: every architecture built with random weights and converted to int8.

    python benchmarks/models.py [--only NAME …]

Writes edgerec/models/figures.json; what is there for other architectures stays. A quarter of an hour for all.
"""

from __future__ import annotations

import argparse
import json

from edgerec.export.architectures import FIGURES, measured
from edgerec.models import ARCHITECTURES
from edgerec.train.keras import keras

KEPT = ("parameters", "macs", "int8_bytes", "methods", "targets")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    wanted = parser.parse_args().only
    figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    for name in wanted:
        keras().backend.clear_session()
        report = measured(name).to_dict()
        figures[name] = {key: report[key] for key in KEPT}
        print(name, {key: figures[name][key] for key in KEPT[:4]}, flush=True)
        ordered = {name: figures[name] for name in ARCHITECTURES if name in figures}
        FIGURES.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
