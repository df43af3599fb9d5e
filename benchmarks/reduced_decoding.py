"""Compare reduced decoding of JPEG files with decoding at full size: labels, scores and time per image.

    python benchmarks/reduced_decoding.py agreement BUNDLE FOLDER...
    python benchmarks/reduced_decoding.py time

``agreement`` classifies every JPEG file in the folders and their subfolders at full and at reduced size, and prints how
many of the reduced images keep their label. If the subfolders are named after the bundle's labels, it also prints the
accuracy. ``time`` measures the CPU time for decoding and preprocessing a frame of an HTTP stream, for common sizes of
frames and model inputs. The frames are resized copies of a photo in $EDGEREC_TEST_DATA, or ../shared/data. The output
is Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from common import data_folder

from edgerec import Classifier
from edgerec.camera.sources.jpeg import decoded
from edgerec.contract.image_decoding import decode
from edgerec.contract.preprocess import Image, PreprocessSpec, apply
from edgerec.contract.reduced_decoding import jpeg_reduction, largest_reduction

T = TypeVar("T")

FRAME_SIZES = ((640, 480), (1280, 720), (1920, 1080))
INPUT_SIZES = (96, 128, 224)
# Quality that many cameras use for their JPEG frames.
JPEG_QUALITY = 80
REPETITIONS = 60
CONFIDENT_SCORE = 0.5


@dataclass(frozen=True)
class Comparison:
    """An image that was classified at full size and at reduced size.

    Attributes:
        labels: predicted label at full size and at reduced size.
        actual: name of the image's folder.
        score: best score at full size.
        difference: largest difference between the scores.
        times_ms: CPU time for decoding and preprocessing at full size and at reduced size.
    """

    labels: tuple[str, str]
    actual: str
    score: float
    difference: float
    times_ms: tuple[float, float]


def pixels_and_ms(decode_image: Callable[[], Image | None], preprocess: Callable[[Image], T]) -> tuple[T, float]:
    """Decode and preprocess an image, and return its pixels and the CPU time in milliseconds."""
    start_ns = time.process_time_ns()
    image = decode_image()
    if image is None:
        raise ValueError("an image cannot be decoded: remove the damaged file")
    pixels = preprocess(image)
    return pixels, (time.process_time_ns() - start_ns) / 1e6


def agreement(bundle: Path, folders: list[Path]) -> None:
    """Print how many labels are the same at full size and at reduced size."""
    classifier = Classifier.open(bundle, threads=1)
    names, choose = classifier.manifest.labels, classifier.manifest.largest_reduction
    reductions = Counter[int]()
    compared = []
    for path in (path for folder in folders for path in sorted(folder.rglob("*"))):
        if path.suffix.lower() not in (".jpg", ".jpeg"):
            continue
        content = path.read_bytes()
        reduction, _ = jpeg_reduction(content, choose)
        reductions[reduction] += 1
        if reduction == 1:
            continue
        full, full_ms = pixels_and_ms(partial(decode, content), classifier.pixels)
        reduced, reduced_ms = pixels_and_ms(partial(decode, content, reduction=reduction), classifier.pixels)
        scores = classifier.scores(full), classifier.scores(reduced)
        compared.append(
            Comparison(
                labels=(names[int(scores[0].argmax())], names[int(scores[1].argmax())]),
                actual=path.parent.name,
                score=float(scores[0].max()),
                difference=float(np.abs(scores[0] - scores[1]).max()),
                times_ms=(full_ms, reduced_ms),
            )
        )
    counts = ", ".join(f"{count} at 1/{reduction}" for reduction, count in sorted(reductions.items()))
    print(f"{reductions.total()} images: {counts}")
    if not compared:
        print("no image was reduced: the images must be at least twice as large as the model's input")
        return
    confident = [row for row in compared if row.score >= CONFIDENT_SCORE]
    print("| reduced images | same label | score at full size | images | largest difference of a score, mean and p99 |")
    print("|---|---|---|---|---|")
    for text, rows in (("any", compared), (f"at least {CONFIDENT_SCORE}", confident)):
        same = sum(row.labels[0] == row.labels[1] for row in rows)
        differences = [row.difference for row in rows]
        print(
            f"| {len(compared)} | {same / max(1, len(rows)):.2%} | {text} | {len(rows)} | "
            f"{np.mean(differences):.3f}, {np.quantile(differences, 0.99):.3f} |"
        )
    if {row.actual for row in compared} <= set(names):
        full_accuracy, accuracy = (np.mean([row.labels[i] == row.actual for row in compared]) for i in (0, 1))
        print(f"accuracy: {full_accuracy:.2%} at full size, {accuracy:.2%} at reduced size")
    full_ms, reduced_ms = (statistics.median(row.times_ms[i] for row in compared) for i in (0, 1))
    print(f"decoding and preprocessing: {full_ms:.2f} ms at full size, {reduced_ms:.2f} ms at reduced size (median)")


def frame_times() -> None:
    """Print the CPU time for decoding and preprocessing a frame."""
    photo = cv2.imread(str(data_folder() / "cat_720p.jpg"))
    print("| frame | model input | reduction | full size, ms | reduced, ms | ratio |")
    print("|---|---|---|---|---|---|")
    for width, height in FRAME_SIZES:
        frame = cv2.resize(photo, (width, height))
        jpeg = bytes(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])
        for side in INPUT_SIZES:
            spec = PreprocessSpec(side, side)
            preprocess = partial(apply, spec=spec)
            reduction = largest_reduction(width, height, spec)
            times_ms: dict[int, list[float]] = {1: [], reduction: []}
            # Alternating between both reduces the influence of other programs.
            for _ in range(REPETITIONS):
                for denominator, values in times_ms.items():
                    values.append(pixels_and_ms(partial(decoded, cv2, jpeg, denominator), preprocess)[1])
            full_ms, reduced_ms = (statistics.median(times_ms[n]) for n in (1, reduction))
            print(
                f"| {width}x{height} | {side} px | 1/{reduction} | {full_ms:.2f} | {reduced_ms:.2f} | "
                f"{full_ms / reduced_ms:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("agreement", help="compare the labels of real images")
    compare.add_argument("bundle", type=Path)
    compare.add_argument("folders", type=Path, nargs="+")
    commands.add_parser("time", help="measure the time per frame")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if arguments.command == "agreement":
        agreement(arguments.bundle, arguments.folders)
    else:
        frame_times()


if __name__ == "__main__":
    main()
