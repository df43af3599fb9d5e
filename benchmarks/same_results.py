"""Show that another checkout creates the same run, bundle and camera results, apart from renamed keys and texts.

    python benchmarks/same_results.py OTHER --work FOLDER

OTHER is the folder of another checkout. Both train on the digits with the same recipe, quantize with PTQ and with
quantization-aware training, export a bundle, and classify its golden images. The script compares the digests of the
models, the golden vectors, the manifest and the results of the camera, prints one JSON object, and exits with 1 if
anything differs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# Keys of recipes and manifests that were renamed, in their old and their new form.
RENAMED_KEYS = {"normalise": "normalize"}
# Values that depend on the time or the checkout.
VOLATILE_KEYS = ("captured_s", "age_ms", "since_s", "source", "edgerec", "created", "seconds", "provenance")


def create(checkout: Path, work: Path) -> None:
    """Create a run, its variants, a bundle, and the camera's results with one checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "EDGEREC_CACHE": str(work / "cache")}
    work.mkdir(parents=True, exist_ok=True)

    def edgerec(*arguments: str) -> str:
        command = [sys.executable, "-P", "-m", "edgerec", *arguments]
        result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            raise SystemExit(f"{checkout}: edgerec {arguments[0]} failed: {result.stderr}")
        return result.stdout

    edgerec("train", "--data", "digits", "--epochs", "3", "--out", "run")
    for method in ("ptq", "qat"):
        edgerec("quantize", "run", "--method", method, "--max-drop", "100")
    edgerec("export", "run", "--target", "desktop", "--variant", "int8-qat", "--out", "bundle")
    results = edgerec("camera", "bundle", "--source", "bundle/golden", "--json")
    (work / "results.jsonl").write_text(results, encoding="utf-8")


def without_volatile_keys(value: Any) -> Any:
    """Return a JSON value without the volatile keys."""
    if isinstance(value, dict):
        return {key: without_volatile_keys(item) for key, item in value.items() if key not in VOLATILE_KEYS}
    return [without_volatile_keys(item) for item in value] if isinstance(value, list) else value


def with_new_keys(path: Path) -> str:
    """Return the text of a recipe or manifest with the current names of renamed keys."""
    text = path.read_text(encoding="utf-8")
    for old, new in RENAMED_KEYS.items():
        text = text.replace(old, new)
    return text


def digest(path: Path) -> str:
    """Return the SHA-256 digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def comparable_values(work: Path) -> dict[str, Any]:
    """Return the values to compare."""
    lines = [json.loads(line) for line in (work / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    files = ("int8/model.tflite", "int8-qat/model.tflite", "split.json", "labels.txt")
    with (work / "run" / "history.csv").open(newline="", encoding="utf-8") as file:
        history = [without_volatile_keys(row) for row in csv.DictReader(file)]
    manifest = without_volatile_keys(json.loads(with_new_keys(work / "bundle" / "manifest.json")))
    golden = {path.name: digest(path) for path in sorted((work / "bundle" / "golden").iterdir())}
    return {
        **{f"run/{name}": digest(work / "run" / name) for name in files},
        "run/recipe.toml": with_new_keys(work / "run" / "recipe.toml"),
        "history of the training": history,
        **{f"manifest: {key}": value for key, value in manifest.items() if key not in ("files", "sha256")},
        **{f"bundle/golden/{name}": value for name, value in golden.items()},
        "results of the camera": [without_volatile_keys(line) for line in lines if "frame" in line],
    }


def main() -> int:
    """Create and compare the results, and return 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/same-results"))
    arguments = parser.parse_args()
    folders = [arguments.work.resolve() / name for name in ("this", "other")]
    for checkout, folder in zip((Path(__file__).parent.parent, arguments.other), folders, strict=True):
        create(checkout.resolve(), folder)
    this, other = map(comparable_values, folders)
    different = sorted(key for key in this.keys() | other.keys() if this.get(key) != other.get(key))
    print(json.dumps({"compared": len(this), "different": different}, indent=1))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
