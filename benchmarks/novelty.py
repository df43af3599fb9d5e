"""How many pictures of other things an autoencoder finds, and how many the classifier's own scores find.

    python benchmarks/novelty.py --work FOLDER [--write docs/novelty.md]

A classifier and an autoencoder learn 10,000 pictures of MNIST, once of all ten digits and once of 0 to 4 alone. They
are quantized and exported as one bundle, whose threshold leaves 99 % of the validation pictures known. Shown are the
known digits' test split and pictures of other things: digits that were left out, CIFAR-10 in grey, hands that sign
digits. Beside the autoencoder stands what is usual: the best class's score, with a threshold that leaves as many
validation pictures known (Hendrycks and Gimpel, arXiv:1610.02136). Data is read from $EDGEREC_TEST_DATA, or
../shared/data.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import data_folder, unpacked

from edgerec import Classifier, Novelty, Recipe, Run, export_bundle, fit, quantize, read_image
from edgerec.contract.preprocess import Image
from edgerec.optional import require

KNOWN, LEARNED, SHOWN, SEED = 0.99, 10_000, 2000, 0
DIGITS = {"0-9": range(10), "0-4": range(5)}
CLASSIFIER: dict[str, Any] = {"train.epochs": 4, "train.batch_size": 128}
AUTOENCODER: dict[str, Any] = {
    "model.arch": "autoencoder",
    "train.epochs": 8,
    "train.batch_size": 128,
    "train.learning_rate": 0.003,
}
COLUMNS = (
    *("learned", "shown", "AUROC", "unknown, rightly", "unknown, wrongly"),
    *("by best score: AUROC", "rightly", "wrongly", "by both: rightly"),
)
HEADER = """# Novelty

A classifier knows its labels and nothing else: shown something new, it answers one of them, often with a high score. An
autoencoder learns to make the known pictures again from a narrow code, and fails on what it never saw. `edgerec train
photos/ --arch autoencoder`, `edgerec quantize`, and `edgerec export RUN --novelty AUTOENCODER_RUN` put it into the
classifier's bundle; a picture with a reconstruction error above the threshold is answered `unknown`.

"""


@dataclass(frozen=True)
class Seen:
    """What a bundle makes of pictures: how new they are, and the best class's score; ``(N,)``."""

    novelty: Any
    score: Any


def few(images: Any, count: int = SHOWN) -> list[Image]:
    """So many of them, chosen once and for all."""
    chosen = np.random.default_rng(SEED).permutation(len(images))[:count]
    return [images[int(i)] for i in chosen]


def prepared(work: Path, name: str, digits: Iterable[int]) -> Path:
    """MNIST with these digits alone, so many of them to learn, as an .npz."""
    path = work / f"mnist-{name}.npz"
    if not path.exists():
        with np.load(data_folder() / "mnist.npz") as file:
            arrays = {}
            for part in ("train", "test"):
                kept = np.flatnonzero(np.isin(file[f"y_{part}"], list(digits)))
                if part == "train":  # in the file they are sorted
                    kept = np.random.default_rng(SEED).permutation(kept)[:LEARNED]
                arrays |= {f"{axis}_{part}": file[f"{axis}_{part}"][kept] for axis in "xy"}
        np.savez_compressed(path, **arrays)
    return path


def trained(work: Path, name: str, changes: dict[str, Any], method: str) -> Run:
    """A run by these changes with its int8 variant; taken as it is where it is there."""
    path = work / "novelty-runs" / name
    recipe = Recipe().override({"data.val_fraction": 0.1, "seed": SEED} | changes)
    run = fit(recipe, path, resume=Run.at(path).begun)
    if not run.variants():
        quantize(run, method, max_drop=5.0)
    return run


def seen(classifier: Classifier, pictures: Iterable[Image]) -> Seen:
    """What the bundle makes of pictures of any size."""
    answers = [classifier.classify(picture) for picture in pictures]
    return Seen(np.array([answer.novelty for answer in answers]), np.array([answer.scores.max() for answer in answers]))


def others(work: Path, name: str) -> dict[str, list[Image]]:
    """Pictures of what the digits ``name`` are not."""
    found = {}
    with np.load(data_folder() / "mnist.npz") as file:
        rest = ~np.isin(file["y_test"], list(DIGITS[name]))
        if rest.any():
            found["digits 5-9, left out"] = few(file["x_test"][rest])
    cifar = sorted((unpacked("cifar10", work) / "test").glob("*/*.jpg"))
    signs = sorted(unpacked("sign-digits", work).rglob("*.JPG"))
    readers: dict[str, Callable[[], list[Image]]] = {
        "CIFAR-10, grey 28×28": lambda: [grey(read_image(path)) for path in few(cifar)],
        "hands signing digits": lambda: [grey(read_image(path)) for path in few(signs)],
    }
    return found | {what: read() for what, read in readers.items()}


def grey(image: Image) -> Image:
    """The picture as MNIST's are: 28×28."""
    cv2 = require("cv2")
    return cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (28, 28), interpolation=cv2.INTER_AREA)


def rows(work: Path, name: str) -> list[str]:
    """Of one set of digits, a line of the table for each kind of other pictures."""
    data = {"data.source": str(prepared(work, name, DIGITS[name]))}
    classifier_run = trained(work, f"{name}-classifier", data | CLASSIFIER, "ptq")
    autoencoder = trained(work, f"{name}-autoencoder", data | AUTOENCODER, "ptq")
    made = export_bundle(
        classifier_run,
        "rpi",
        novelty=Novelty(autoencoder.path, known=KNOWN),
        out=work / "novelty-runs" / f"{name}-bundle",
        overwrite=True,
    )
    print({key: value for key, value in (made.novelty or {}).items() if key != "forms"}, flush=True)
    classifier = Classifier.open(made.bundle)
    dataset, split = classifier_run.data()
    validation = seen(classifier, few(dataset.images[split.val]))
    known = seen(classifier, few(dataset.images[split.test]))
    least = float(np.quantile(validation.score, 1 - KNOWN, method="lower"))
    lines = []
    for what, pictures in others(work, name).items():
        new = seen(classifier, pictures)
        cells = (
            f"digits {name}",
            what,
            f"{auroc(known.novelty, new.novelty):.4f}",
            f"{np.mean(new.novelty > 1):.1%}",
            f"{np.mean(known.novelty > 1):.1%}",
            f"{auroc(-known.score, -new.score):.4f}",
            f"{np.mean(new.score < least):.1%}",
            f"{np.mean(known.score < least):.1%}",
            f"{np.mean((new.novelty > 1) | (new.score < least)):.1%}",
        )
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def auroc(known: Any, new: Any) -> float:
    """How often a new picture has the higher value of two, a known one and a new one."""
    truth = np.repeat([0, 1], [len(known), len(new)])
    return float(require("sklearn.metrics").roc_auc_score(truth, np.concatenate([known, new])))


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    lines = [
        "| " + " | ".join(COLUMNS) + " |",
        "|---|---|" + "---:|" * 7,
        *(line for name in DIGITS for line in rows(arguments.work, name)),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.write:
        arguments.write.write_text(HEADER + text)


if __name__ == "__main__":
    main()
