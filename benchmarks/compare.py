"""Compare startup, memory, throughput and latency of this checkout with those of another checkout, in one run.

    python benchmarks/compare.py OTHER --work FOLDER [--rounds 7]

OTHER is the folder of another checkout, for example ``git worktree add OTHER COMMIT``. Both checkouts run with the same
interpreter and alternate, each measurement in a separate process. Each checkout imports the model and creates the
bundle itself, because the bundles of one version may be unreadable for the other version. The printed values are the
medians of both checkouts (``this`` and ``other``) and the median of the ratios of two consecutive runs, this to other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from camera import bundles, long_video
from common import data_folder

IMPORT = "import sys; from edgerec import import_tflite; import_tflite(sys.argv[1], sys.argv[2], labels=sys.argv[3])"

# Print the frames per second after the first 50 frames, the peak memory in MiB, and the CPU time per frame in ms.
READ_FILE_PROGRAM = """
import json, os, re, sys, time
import cv2
from edgerec import Camera
cv2.setNumThreads(1)  # as the command line does
lines, count = open(os.devnull, "w"), 0
with Camera.open(sys.argv[1], sys.argv[2]) as camera:
    for result in camera:
        print(json.dumps(result.to_dict()), file=lines)
        count += 1
        if count == 50:
            begin, cpu = time.perf_counter(), time.process_time()
    fps = (count - 50) / (time.perf_counter() - begin)
    cpu = (time.process_time() - cpu) / (count - 50)
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())  # ru_maxrss would include the parent's memory
print(json.dumps({"frames_per_s": fps, "cpu_ms": cpu * 1000, "peak_mib": int(peak[1]) / 1024}))
"""

# Print the median and the 99th percentile of the age of live results in ms, and the peak memory in MiB.
WATCH_LIVE_PROGRAM = """
import json, re, sys
import cv2, numpy as np
from edgerec import Camera
cv2.setNumThreads(1)
ages = []
with Camera.open(sys.argv[1], "synthetic:1280x720@30", threads=1) as camera:
    for result in camera:
        ages.append(result.age_ms)
        if len(ages) == 150:
            break
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())
print(json.dumps({
    "age_p50_ms": float(np.median(ages[5:])), "age_p99_ms": float(np.percentile(ages[5:], 99)),
    "peak_mib": int(peak[1]) / 1024,
}))
"""

Values = dict[str, float]


class Checkout:
    """A checkout of edgerec, its bundles by model, and the environment that lets Python import it."""

    def __init__(self, folder: Path, models: dict[str, Path], work: Path) -> None:
        self._environment = os.environ | {"PYTHONPATH": str(folder), "EDGEREC_CACHE": str(work / "cache")}
        self.bundles = {name: work / model.stem for name, model in models.items()}
        for name, bundle in self.bundles.items():
            if not bundle.exists():
                self._output("-c", IMPORT, models[name], bundle, data_folder() / "imagenet_labels.txt")

    def _output(self, *arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        # The folder of a program given with -c is the working directory, so it must not contain another checkout.
        result = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=600, env=self._environment, cwd="/"
        )
        return result.stdout

    def help(self) -> Values:
        """Return the wall time of ``edgerec --help``."""
        begin = time.perf_counter()
        self._output("-m", "edgerec", "--help")
        return {"help_s": time.perf_counter() - begin}

    def first_prediction(self, name: str, video: Path) -> Values:
        """Return the wall time of ``edgerec camera`` that stops after one prediction."""
        begin = time.perf_counter()
        options = ("--source", video, "--headless", "--json", "--max-frames", "1")
        self._output("-m", "edgerec", "camera", self.bundles[name], *options)
        return {"first_prediction_s": time.perf_counter() - begin}

    def read_file(self, name: str, video: Path) -> Values:
        """Return frames per second, CPU time per frame and peak memory while a video file is classified."""
        return json.loads(self._output("-c", READ_FILE_PROGRAM, self.bundles[name], video))

    def watch_live(self, name: str) -> Values:
        """Return the age of the results and the peak memory for a live source of 30 frames per second."""
        return json.loads(self._output("-c", WATCH_LIVE_PROGRAM, self.bundles[name]))


def main() -> None:
    """Print one JSON object with the values of each measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    models = {name: model for name, (model, _) in bundles(work).items()}
    videos = {"MPEG-4": long_video(work, "mp4v", "mp4"), "MJPEG": long_video(work, "MJPG", "avi")}
    this, other = (
        Checkout(folder.resolve(), models, work / name)
        for name, folder in (("this", Path(__file__).parent.parent), ("other", arguments.other))
    )
    measurements = {"edgerec --help": lambda c: c.help()}
    for name in models:
        measurements[f"camera, {name}, first prediction"] = lambda c, n=name: c.first_prediction(n, videos["MJPEG"])
        measurements[f"camera, {name}, live"] = lambda c, n=name: c.watch_live(n)
        for codec, video in videos.items():
            measurements[f"camera, {name}, {codec} file"] = lambda c, n=name, v=video: c.read_file(n, v)
    for title, measure in measurements.items():
        pairs = [(measure(this), measure(other)) for _ in range(arguments.rounds)]
        table = {
            key: {
                "this": round(statistics.median(a[key] for a, _ in pairs), 3),
                "other": round(statistics.median(b[key] for _, b in pairs), 3),
                "ratio": round(statistics.median(a[key] / b[key] for a, b in pairs), 3),
            }
            for key in pairs[0][0]
        }
        print(json.dumps({title: table}), flush=True)


if __name__ == "__main__":
    main()
