"""Measure the accuracy on sign digits of new persons with the documented recipe, for float and int8.

    python benchmarks/signs.py --work FOLDER

The script trains examples/sign_digits.toml, quantizes the model, and measures it once on the test images. An existing
run is used, and an unfinished one is resumed. ``--validate`` stops before the test and prints the validation accuracy,
by which recipes are chosen. ``--set`` changes a key of the recipe. The images are written to
FOLDER/sign-digits-by-person, which edgerec train can use. Data is read from $EDGEREC_TEST_DATA, or ../shared/data.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common import REPOSITORY, signs_by_person

from edgerec import Recipe, fit, quantize
from edgerec.recipe import parse_assignment
from edgerec.train.run import Run, best_epoch


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--name", default="signs", help="name of the run's folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    parser.add_argument("--validate", action="store_true", help="do not use the test images")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe.from_toml(REPOSITORY / "examples" / "sign_digits.toml")
    recipe = recipe.override({"data.source": str(signs_by_person(arguments.work))})
    recipe = recipe.override(dict(map(parse_assignment, arguments.set)))
    path = arguments.work / "runs" / arguments.name
    run = Run(path)
    if not run.finished:
        run = fit(recipe, path, resume=run.begun, finish=not arguments.validate)
    rows = run.history()
    best = next(row for row in rows if row["epoch"] == best_epoch(rows))
    figures = {"epochs": len(rows), "best_epoch": best["epoch"], "val_accuracy": best["val_accuracy"]}
    if not arguments.validate:
        if "int8-qat" not in run.variants():
            quantize(run, "qat", max_drop=100)
        report = run.variants()["int8-qat"]
        float_form, *_, form = report["forms"]
        figures |= {"test_images": report["images"], "float_top1": float_form["top1"], "int8_top1": form["top1"]}
        figures |= {"agreement": form["agreement"], "int8_bytes": form["size_bytes"]}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
