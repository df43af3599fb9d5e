"""Fuzz edgerec: check that damaged inputs cause no crash, hang, traceback, excessive memory, file or connection.

    python benchmarks/fuzz.py --target tflite keras --seed 0 --count 10000 [--first N] [--bundle FOLDER]

The script prints a line of JSON for each target. It exits with code 1 unless edgerec either accepted each input or
refused it with a one-line message. ``--first N --count 1`` repeats only case N. Each module of ``fuzzing`` creates one
kind of input. The cases of ``TARGETS`` run in separate processes (see ``fuzzing/isolation.py``), and the cases of
``KINDS`` run in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from common import data_folder
from fuzzing import (
    archives,
    bundles,
    devices,
    http,
    keras,
    mjpeg,
    mqtt,
    runs,
    savedmodels,
    serve,
    settings,
    texts,
    tflite,
)
from fuzzing.isolation import Target, run_target
from fuzzing.tally import Kind, tally

# The kinds of input whose cases run in this process, and the share of each kind in a run without --target.
KINDS: dict[str, tuple[Kind, int]] = {
    "manifests": (bundles.manifests, 20),
    "golden": (bundles.golden, 6),
    "images": (bundles.golden_images, 4),
    "archives": (bundles.archives, 8),
    "models": (bundles.models, 15),
    "texts": (texts.texts, 8),
    "options": (texts.options, 4),
    "settings": (settings.settings, 8),
    "serve": (serve.serve, 8),
    "devices": (devices.devices, 3),
}
TARGETS: dict[str, Target] = {
    "tflite": tflite.TARGET,
    "bundles": bundles.TARGET,
    "zips": archives.TARGET,
    "runs": runs.RUNS,
    "packs": runs.PACKS,
    "http": http.TARGET,
    "mjpeg": mjpeg.TARGET,
    "mqtt": mqtt.TARGET,
    "keras": keras.TARGET,
    "savedmodels": savedmodels.TARGET,
}


def small_bundle(work: Path) -> Path:
    """Return a bundle of Coral's MobileNetV1 0.25 with golden images."""
    from edgerec import import_tflite

    path = work / "bundle"
    if not path.exists():
        model = data_folder() / "edgetpu" / "mobilenet_v1_0.25_128_quant.tflite"
        import_tflite(model, path, labels=data_folder() / "imagenet_labels.txt")
    return path


def main() -> None:
    """Run the targets and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000, help="number of cases of each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--target", "--kinds", nargs="+", choices=[*KINDS, *TARGETS], default=list(KINDS))
    parser.add_argument("--bundle", type=Path, help="a bundle to damage [default: one of test data]")
    arguments = parser.parse_args()
    shares, faults = sum(KINDS[name][1] for name in arguments.target if name in KINDS), 0
    with tempfile.TemporaryDirectory(prefix="edgerec-fuzz-") as folder:
        os.environ["EDGEREC_CACHE"] = str(Path(folder) / "cache")
        for name in arguments.target:
            work, seed = Path(folder) / name, arguments.seed
            if name in TARGETS:
                figures = run_target(name, TARGETS[name], work, seed=seed, count=arguments.count, first=arguments.first)
            else:
                bundle = arguments.bundle or small_bundle(Path(folder))
                kind, share = KINDS[name]
                count = -(-arguments.count * share // shares)
                figures = tally(name, kind, bundle, work, seed=seed, count=count)
            print(json.dumps(figures.to_dict()), flush=True)
            faults += figures.other
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
