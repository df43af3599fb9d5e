"""Measure how many unfamiliar images an autoencoder detects, compared with the classifier's scores.

    python benchmarks/novelty.py --work FOLDER [--write docs/results/unknown-images.md]

A classifier and an autoencoder are trained on 10,000 images of MNIST, once with all ten digits and once with 0 to 4.
They are quantized and exported as one bundle, whose threshold accepts 99 % of the validation images. The bundle is
tested with the test images of the known digits and with unfamiliar images: the other digits, CIFAR-10 in grayscale, and
sign digits. The baseline is the highest class score, with a threshold that accepts the same fraction of the validation
images (Hendrycks and Gimpel, arXiv:1610.02136). Data is read from $EDGEREC_TEST_DATA, or ../shared/data.
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
from edgerec.recipe import NOT_AUGMENTED
from edgerec.utils.optional import require

KNOWN, LEARNED, SHOWN, SEED = 0.99, 10_000, 2000, 0
DIGITS = {"0-9": range(10), "0-4": range(5)}
CLASSIFIER: dict[str, Any] = {"train.epochs": 4, "train.batch_size": 128}
AUTOENCODER: dict[str, Any] = {
    "model.arch": "autoencoder",
    "train.epochs": 8,
    "train.batch_size": 128,
    "train.learning_rate": 0.01,
}
NO_AUGMENTATION = {f"augment.{key}": value for key, value in vars(NOT_AUGMENTED).items()}
COLUMNS = (
    *("known images", "unknown images"),
    *("autoencoder: AUROC", "autoencoder: detection rate", "autoencoder: false-positive rate"),
    *("score: AUROC", "score: detection rate", "score: false-positive rate", "both: detection rate"),
)
HEADER = """# Unknown images

`python benchmarks/novelty.py --write docs/results/unknown-images.md` measures how many unknown images a bundle detects.
The bundle contains a classifier (`simple_cnn`, trained for 4 epochs) and an autoencoder (trained for 8 epochs without
augmentation). Both were trained on 10,000 images of MNIST and quantized with `ptq`. The bundle then classifies 2,000
*known images* (test images of the digits in the training set) and 2,000 *unknown images* (anything else).

The table compares three ways to detect unknown images:

- **autoencoder**: the reconstruction error exceeds a threshold that accepts 99 % of the validation images.
- **score**: the highest score of the classifier is below a threshold that accepts 99 % of the validation images. This
  is the usual baseline.
- **both**: at least one of these two methods detects the image.

*Detection rate* is the fraction of the unknown images that get the label `unknown` (true-positive rate).
*False-positive rate* is the fraction of the known images that get this label. *AUROC* (area under the ROC curve) is the
probability that the method ranks a random unknown image as more unusual than a random known image: 0.5 is as good as
guessing, and 1 is perfect.

"""
FOOTER = """
- **Images of another kind**, such as CIFAR-10, are nearly all detected by the autoencoder. The scores detect few of
  them, because a classifier can have a high score for any image.
- **New classes of the same kind**, such as other digits, are rarely detected. An autoencoder that reconstructs 0 to 4
  can also reconstruct 7. For such images, the scores are more useful. [Detect unknown
  images](../how-to/unknown-images.md) therefore recommends both methods.
- **Augmentation** makes the autoencoder less sensitive, because it learns to reconstruct more images. An autoencoder
  that was trained with the default augmentation and a learning rate of 0.003 detected only 83 % of the CIFAR-10 images,
  and 1 % of the digits that were not in the training set.
"""


@dataclass(frozen=True)
class Scores:
    """The novelty and the highest class score of each image, both with shape ``(N,)``."""

    novelty: Any
    score: Any


def sample(images: Any, count: int = SHOWN) -> list[Image]:
    """Return this many randomly chosen elements, with a fixed seed."""
    chosen = np.random.default_rng(SEED).permutation(len(images))[:count]
    return [images[int(i)] for i in chosen]


def write_digits(work: Path, name: str, digits: Iterable[int]) -> Path:
    """Write the MNIST images of these digits, with 10,000 training images, to an .npz file; return its path."""
    path = work / f"mnist-{name}.npz"
    if not path.exists():
        with np.load(data_folder() / "mnist.npz") as file:
            arrays = {}
            for part in ("train", "test"):
                indices = np.flatnonzero(np.isin(file[f"y_{part}"], list(digits)))
                if part == "train":  # np.flatnonzero returns the images in the order of the file
                    indices = np.random.default_rng(SEED).permutation(indices)[:LEARNED]
                arrays |= {f"{axis}_{part}": file[f"{axis}_{part}"][indices] for axis in "xy"}
        np.savez_compressed(path, **arrays)
    return path


def train(work: Path, name: str, changes: dict[str, Any], method: str) -> Run:
    """Return a run with these recipe keys and its int8 variant; an existing run is used."""
    path = work / "novelty-runs" / name
    recipe = Recipe().override({"data.val_fraction": 0.1, "seed": SEED} | changes)
    run = fit(recipe, path, resume=Run.at(path).begun)
    if not run.variants():
        quantize(run, method, max_drop=5.0)
    return run


def score_images(classifier: Classifier, images: Iterable[Image]) -> Scores:
    """Return the bundle's results for images of any size."""
    predictions = [classifier.classify(image) for image in images]
    return Scores(
        np.array([prediction.novelty for prediction in predictions]),
        np.array([prediction.scores.max() for prediction in predictions]),
    )


def load_unknown_images(work: Path, name: str) -> dict[str, list[Image]]:
    """Return images that do not show the digits ``name``, by kind."""
    images = {}
    with np.load(data_folder() / "mnist.npz") as file:
        rest = ~np.isin(file["y_test"], list(DIGITS[name]))
        if rest.any():
            images["digits 5-9"] = sample(file["x_test"][rest])
    cifar = sorted((unpacked("cifar10", work) / "test").glob("*/*.jpg"))
    signs = sorted(unpacked("sign-digits", work).rglob("*.JPG"))
    readers: dict[str, Callable[[], list[Image]]] = {
        "CIFAR-10, gray 28×28": lambda: [gray(read_image(path)) for path in sample(cifar)],
        "hands signing digits": lambda: [gray(read_image(path)) for path in sample(signs)],
    }
    return images | {kind: read() for kind, read in readers.items()}


def gray(image: Image) -> Image:
    """Return the image in grayscale and with 28×28 pixels, as in MNIST."""
    cv2 = require("cv2")
    return cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (28, 28), interpolation=cv2.INTER_AREA)


def rows(work: Path, name: str) -> list[str]:
    """Return a row of the table for each kind of unfamiliar images."""
    data = {"data.source": str(write_digits(work, name, DIGITS[name]))}
    classifier_run = train(work, f"{name}-classifier", data | CLASSIFIER, "ptq")
    autoencoder = train(work, f"{name}-autoencoder", data | AUTOENCODER | NO_AUGMENTATION, "ptq")
    export = export_bundle(
        classifier_run,
        "rpi",
        novelty=Novelty(autoencoder.path, known=KNOWN),
        out=work / "novelty-runs" / f"{name}-bundle",
        overwrite=True,
    )
    print({key: value for key, value in vars(export.novelty).items() if key != "forms"}, flush=True)
    classifier = Classifier.open(export.bundle)
    dataset, split = classifier_run.data()
    validation = score_images(classifier, sample(dataset.images[split.val]))
    known = score_images(classifier, sample(dataset.images[split.test]))
    min_score = float(np.quantile(validation.score, 1 - KNOWN, method="lower"))
    lines = []
    for kind, images in load_unknown_images(work, name).items():
        new = score_images(classifier, images)
        cells = (
            f"digits {name}",
            kind,
            f"{auroc(known.novelty, new.novelty):.4f}",
            f"{np.mean(new.novelty > 1):.1%}",
            f"{np.mean(known.novelty > 1):.1%}",
            f"{auroc(-known.score, -new.score):.4f}",
            f"{np.mean(new.score < min_score):.1%}",
            f"{np.mean(known.score < min_score):.1%}",
            f"{np.mean((new.novelty > 1) | (new.score < min_score)):.1%}",
        )
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def auroc(known: Any, new: Any) -> float:
    """Return the probability that an unfamiliar image has a higher value than a known image."""
    is_unknown = np.repeat([0, 1], [len(known), len(new)])
    return float(require("sklearn.metrics").roc_auc_score(is_unknown, np.concatenate([known, new])))


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--write", type=Path, help="Markdown file to which the table is written")
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
        arguments.write.write_text(HEADER + text + FOOTER)


if __name__ == "__main__":
    main()
