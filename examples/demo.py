"""Run all steps of edgerec: train, quantize, export, verify, and classify a video.

The script prints and runs edgerec's commands, and prints a summary. All files are written to ``demo/``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgerec import Run
from edgerec.utils.command_line import command

FRAMES_PER_IMAGE = 3


REPOSITORY = Path(__file__).resolve().parent.parent


def edgerec(*arguments: object) -> str:
    """Print and run a command of edgerec, and return its stdout."""
    print(f"\n$ {command(*arguments)}", flush=True)
    program = [sys.executable, "-m", "edgerec", *map(str, arguments)]
    return subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout


def make_video(run: Path, path: Path, images: int = 40) -> list[str]:
    """Write a video of test images, and return the true label of each frame."""
    import cv2

    dataset, split = Run.open(run).data()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (320, 240))
    true_labels = []
    for i in np.random.default_rng(0).permutation(split.test)[:images]:
        digit = cv2.resize(dataset.original(int(i)), (240, 240), interpolation=cv2.INTER_LINEAR)
        frame = cv2.cvtColor(cv2.copyMakeBorder(digit, 0, 0, 40, 40, cv2.BORDER_CONSTANT), cv2.COLOR_GRAY2BGR)
        for _ in range(FRAMES_PER_IMAGE):
            writer.write(frame)
            true_labels.append(dataset.labels[dataset.classes[i]])
    writer.release()
    return true_labels


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="output folder, deleted first [default: demo]")
    parser.add_argument("--epochs", type=int, default=12, help="number of training epochs [default: 12]")
    arguments = parser.parse_args()
    os.chdir(REPOSITORY)
    out: Path = arguments.out
    if out.exists() and not (out / "digits" / "recipe.toml").is_file():
        sys.exit(f"{out} exists and is not an earlier demo: choose another folder with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    run, bundle, video = out / "digits", out / "digits-rpi", out / "digits.avi"
    started = time.monotonic()
    print(edgerec("train", "--data", "digits", "--epochs", arguments.epochs, "--out", run))
    report: dict[str, Any] = json.loads(edgerec("quantize", run, "--json"))
    print(f"{report['variant']} chosen because {report['why']}")
    print(edgerec("export", run, "--target", "rpi"))
    print(edgerec("verify", bundle))
    true_labels = make_video(run, video)
    lines = edgerec("camera", bundle, "--source", video, "--headless", "--json").splitlines()
    print("\n".join([*lines[:4], f"… {len(lines)} lines"]))
    events = [json.loads(line) for line in lines]
    results = [event for event in events if event["event"] == "result"]
    accuracy = np.mean([result["label"] == label for result, label in zip(results, true_labels, strict=True)])
    ages = sorted(result["age_ms"] for result in results)

    print(f"\n{'':24}{'top-1':>9}{'agreement':>12}{'bytes':>11}{'gzip':>10}")
    for row in report["forms"]:
        sizes = (f"{row['size_bytes'] or '–':>11}", f"{row['gzip_bytes'] or '–':>10}")
        print(f"{row['name']:24}{row['top1']:>9.2%}{row['agreement']:>12.2%}{''.join(sizes)}")
    print(
        f"{'bundle on the video':24}{accuracy:>9.2%}   {len(results)} frames, median age {ages[len(ages) // 2]:.1f} ms"
    )
    for title, path in (
        ("run", f"{run}/"),
        ("learning curves", f"{run}/plots/learning_curves.png"),
        ("confusion matrix", f"{run}/plots/confusion_matrix.png"),
        ("worst mistakes", f"{run}/plots/worst_mistakes.png"),
        ("bundle for the Pi", f"{bundle}/"),
        ("commands for the Pi", f"{bundle}/README.md"),
        ("video", str(video)),
    ):
        print(f"{title:24}{path}")
    print(f"done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
