"""Damaged input of every kind: nothing of it may crash edgerec, hang it, or show a person a traceback.

    python benchmarks/fuzz.py --seed 0 --count 10000 [--kinds manifests models] [--bundle FOLDER]

Prints a line of JSON for each kind, and ends with exit code 1 when something is neither accepted nor refused in one
line. Everything runs on this machine; what may crash runs in child processes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from common import data_folder
from fuzzing import bundles, frames, network, texts
from fuzzing.tally import Kind, tally

# Each kind with its part of the inputs.
KINDS: dict[str, tuple[Kind, int]] = {
    "manifests": (bundles.manifests, 20),
    "golden": (bundles.golden, 6),
    "pictures": (bundles.pictures, 4),
    "archives": (bundles.archives, 8),
    "models": (bundles.models, 15),
    "frames": (frames.streams, 15),
    "web": (network.web, 8),
    "mqtt": (network.mqtt, 8),
    "webhook": (network.webhook, 4),
    "texts": (texts.texts, 8),
    "options": (texts.options, 4),
}


def small_bundle(work: Path) -> Path:
    """A bundle with golden pictures: Coral's MobileNetV1 0.25."""
    from edgerec import import_tflite

    made = work / "bundle"
    if not made.exists():
        model = data_folder() / "edgetpu" / "mobilenet_v1_0.25_128_quant.tflite"
        import_tflite(model, made, labels=data_folder() / "imagenet_labels.txt")
    return made


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--bundle", type=Path, help="a bundle to damage; else one is made of test data")
    arguments = parser.parse_args()
    whole, bad = sum(KINDS[name][1] for name in arguments.kinds), 0
    with tempfile.TemporaryDirectory(prefix="edgerec-fuzz-") as folder:
        os.environ["EDGEREC_CACHE"] = str(Path(folder) / "cache")
        bundle = arguments.bundle or small_bundle(Path(folder))
        for name in arguments.kinds:
            kind, share = KINDS[name]
            count = -(-arguments.count * share // whole)
            figures = tally(name, kind, bundle, Path(folder) / name, seed=arguments.seed, count=count)
            print(json.dumps(figures.to_dict()), flush=True)
            bad += figures.other
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
