"""Compare the camera's throughput with a hand-written loop and MediaPipe, and measure its latency and memory.

    python benchmarks/camera.py throughput files latency memory soak --work FOLDER [--mediapipe PYTHON]

Data is read from $EDGEREC_TEST_DATA, or ../shared/data. The programs to compare run alternately, each in a separate
process, and the result is the ratio of the medians. PYTHON is a Python interpreter with MediaPipe installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import data_folder

from edgerec.camera.frame import Result

FRAMES, ROUNDS = 300, 5
# Number of frames of the longer video, and number of initial frames that are excluded from the steady-state rate.
LONG, WARM_UP = 900, 50
PERIOD_S, SLOW_S = 1 / 30, 0.1

HAND_WRITTEN = """
import json, sys, time
import cv2, numpy as np
from ai_edge_litert.interpreter import Interpreter
video, model, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
interpreter = Interpreter(model, num_threads=threads or None)
interpreter.allocate_tensors()
input_details, output_details = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
_, height, width, _ = input_details["shape"]
capture = cv2.VideoCapture(video)
count, start = 0, None
while True:
    ok, frame = capture.read()
    if not ok:
        break
    rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    small = cv2.resize(rgb, (width, height))
    interpreter.set_tensor(input_details["index"], small[np.newaxis])
    interpreter.invoke()
    scores = interpreter.get_tensor(output_details["index"])[0]
    top = np.argsort(scores)[-5:][::-1]
    count += 1
    start = start or time.perf_counter()
print(json.dumps((count - 1) / (time.perf_counter() - start)))
"""

EDGEREC_LOOP = """
import json, sys, time
import cv2
from edgerec import Camera
cv2.setNumThreads(1)  # as the command line does
with Camera.open(sys.argv[2], sys.argv[1], threads=int(sys.argv[3])) as camera:
    count, start = 0, None
    for result in camera:
        count += 1
        start = start or time.perf_counter()
print(json.dumps((count - 1) / (time.perf_counter() - start)))
"""

# Both programs print the frame rate after WARM_UP frames. Like `edgerec camera --json`, the edgerec program writes JSON
# for each frame.
HAND_WRITTEN_STEADY = HAND_WRITTEN.replace(
    "start = start or time.perf_counter()", f"start = time.perf_counter() if count == {WARM_UP} else start"
)
HAND_WRITTEN_STEADY = HAND_WRITTEN_STEADY.replace("count - 1", f"count - {WARM_UP}")
EDGEREC_STEADY = f"""
import json, os, sys, time
import cv2
from edgerec import Camera
from edgerec.camera.sinks.console import JsonLines
cv2.setNumThreads(1)  # as the command line does
lines, count = JsonLines(open(os.devnull, "w")), 0
with Camera.open(sys.argv[2], sys.argv[1]) as camera:
    for result in camera:
        lines.write(result)
        count += 1
        if count == {WARM_UP}:
            start = time.perf_counter()
print(json.dumps((count - {WARM_UP}) / (time.perf_counter() - start)))
"""

MEDIAPIPE = """
import json, sys, time
import cv2, mediapipe as mp
tasks = mp.tasks
options = tasks.vision.ImageClassifierOptions(
    tasks.BaseOptions(sys.argv[2]), running_mode=tasks.vision.RunningMode.VIDEO, max_results=5
)
capture = cv2.VideoCapture(sys.argv[1])
count, start = 0, None
with tasks.vision.ImageClassifier.create_from_options(options) as classifier:
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        image = mp.Image(mp.ImageFormat.SRGB, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        classifier.classify_for_video(image, count * 33)
        count += 1
        start = start or time.perf_counter()
print(json.dumps((count - 1) / (time.perf_counter() - start)))
"""


def video(work: Path) -> Path:
    """Write a 720p motion JPEG video of an image that moves back and forth."""
    import cv2

    path = work / "cat_720p.avi"
    if not path.exists():
        image = cv2.resize(cv2.imread(str(data_folder() / "cat_720p.jpg")), (1280, 720))
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (1280, 720))
        for number in range(FRAMES):
            writer.write(np.roll(image, 4 * number, axis=1))
        writer.release()
    return path


def long_video(work: Path, codec: str, suffix: str) -> Path:
    """Write a 720p video of 900 frames."""
    import cv2

    path = work / f"cat_720p_long.{suffix}"
    if not path.exists():
        image = cv2.resize(cv2.imread(str(data_folder() / "cat_720p.jpg")), (1280, 720))
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 30, (1280, 720))
        for number in range(LONG):
            writer.write(np.roll(image, 4 * number, axis=1))
        writer.release()
    return path


def files(work: Path, _: str) -> dict[str, Any]:
    """Compare edgerec with the hand-written loop on video files, with the default and with two threads in the loop.

    Each result is the median of the ratios of two consecutive runs, one of each program.
    """
    model, bundle = bundles(work)["mobilenet_v2 1.0 224"]
    table = {}
    for name, codec, suffix in (("MPEG-4", "mp4v", "mp4"), ("MJPEG", "MJPG", "avi")):
        video_path = long_video(work, codec, suffix)
        steady: dict[int, list[float]] = {0: [], 2: []}
        whole_process: dict[int, list[float]] = {0: [], 2: []}
        for _ in range(ROUNDS):
            for threads in steady:
                times = [time.perf_counter()]
                edgerec_fps = measure(EDGEREC_STEADY, video_path, bundle)
                times.append(time.perf_counter())
                hand_written_fps = measure(HAND_WRITTEN_STEADY, video_path, model, threads)
                times.append(time.perf_counter())
                steady[threads].append(edgerec_fps / hand_written_fps)
                whole_process[threads].append((times[2] - times[1]) / (times[1] - times[0]))
        for threads in steady:
            table[f"{name}, {threads or 'default'} threads, hand-written"] = {
                "steady state": round(statistics.median(steady[threads]), 2),
                "whole process": round(statistics.median(whole_process[threads]), 2),
                "steady, all rounds": [round(ratio, 2) for ratio in steady[threads]],
            }
    return table


def bundles(work: Path) -> dict[str, tuple[Path, Path]]:
    """Return (.tflite, bundle) by name: Coral's MobileNetV1 0.25, and a MobileNetV2 1.0 with random weights."""
    from edgerec import import_tflite

    large = work / "mobilenet_v2_1.0_224_int8.tflite"
    if not large.exists():
        from edgerec.compress.convert import to_int8
        from edgerec.train.backend import keras

        model = keras().applications.MobileNetV2((224, 224, 3), weights=None, classes=1001)
        images = np.random.default_rng(0).random((20, 224, 224, 3), np.float32)
        images[0, 0, 0] = 0, 1, 1
        large.write_bytes(to_int8(model, images))
    small = data_folder() / "edgetpu" / "mobilenet_v1_0.25_128_quant.tflite"
    paths = {}
    for name, model in (("mobilenet_v1 0.25 128", small), ("mobilenet_v2 1.0 224", large)):
        bundle = work / name.replace(" ", "-")
        if not bundle.exists():
            import_tflite(model, bundle, labels=data_folder() / "imagenet_labels.txt")
        paths[name] = (model, bundle)
    return paths


def measure(code: str, *arguments: object, python: str = sys.executable) -> Any:
    """Run a program, and return the last line of its output, which is JSON."""
    command = [python, "-c", code, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return json.loads(process.stdout.splitlines()[-1])


def throughput(work: Path, mediapipe: str) -> dict[str, Any]:
    """Measure frames per second of each program on the video, with one and two threads."""
    video_path, table = video(work), {}
    for name, (model, bundle) in bundles(work).items():
        for threads in (1, 2):
            programs: dict[str, Callable[[], float]] = {
                "hand-written": lambda m=model, t=threads: measure(HAND_WRITTEN, video_path, m, t),
                "edgerec": lambda b=bundle, t=threads: measure(EDGEREC_LOOP, video_path, b, t),
            }
            if mediapipe:
                programs["mediapipe"] = lambda m=model: measure(MEDIAPIPE, video_path, m, python=mediapipe)
            rates: dict[str, list[float]] = {program: [] for program in programs}
            for _ in range(ROUNDS):
                for program, measure_fps in programs.items():
                    rates[program].append(measure_fps())
            fps = {program: round(statistics.median(values), 1) for program, values in rates.items()}
            ratios = {
                f"over {program}": round(fps["edgerec"] / fps[program], 2)
                for program in programs
                if program != "edgerec"
            }
            table[f"{name}, {threads} threads"] = fps | ratios
            print(json.dumps({f"{name}, {threads} threads": fps | ratios}), flush=True)
    return table


def latency(work: Path, _: str) -> dict[str, Any]:
    """Measure the age of predictions for a model that needs 100 ms and a source of 30 frames per second."""
    from edgerec import Camera

    _, bundle = bundles(work)["mobilenet_v1 0.25 128"]
    ages, invokes = [], []
    with Camera.open(bundle, "synthetic:1280x720@30", threads=1) as camera:
        (model,) = camera._classifiers[0].models
        original_scores = model.scores

        def slow_scores(pixels: Any) -> Any:
            start = time.perf_counter()
            scores = original_scores(pixels)
            time.sleep(max(0.0, SLOW_S - (time.perf_counter() - start)))
            invokes.append((time.perf_counter() - start) * 1000)
            return scores

        model.scores = slow_scores
        for number, result in enumerate(camera):
            ages.append(result.age_ms)
            if number == 200:
                break
        dropped_frames = camera.report.overtaken
    age, invoke = (float(np.percentile(values[5:], 99)) for values in (ages, invokes))
    allowed = invoke + PERIOD_S * 1000 + 5
    return {
        "age_p50_ms": round(float(np.median(ages[5:])), 1),
        "age_p99_ms": round(age, 1),
        "invoke_p99_ms": round(invoke, 1),
        "allowed_ms": round(allowed, 1),
        "overtaken": dropped_frames,
    }


def memory(work: Path, _: str) -> dict[str, Any]:
    """Measure the peak memory of the camera on the 720p video."""
    video_path, table = video(work), {}
    code = EDGEREC_LOOP + "\nimport resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    for name, (_, bundle) in bundles(work).items():
        table[name] = f"{measure(code, video_path, bundle, 1) / 2**20:.0f} MiB"
    return table


def soak(work: Path, _: str) -> dict[str, Any]:
    """Run a million synthetic frames, and compare memory, file descriptors and threads at the start and the end."""
    import threading

    from edgerec import Camera
    from edgerec.camera.sinks.console import JsonLines

    _, bundle = bundles(work)["mobilenet_v1 0.25 128"]
    samples: list[tuple[int, int, int, int]] = []

    class Sampler:
        closed = False
        count = 0

        def write(self, result: Result) -> None:
            self.count += 1
            if self.count % 50_000 == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                descriptors = len(list(Path("/proc/self/fd").iterdir()))
                samples.append((self.count, pages * 4096, descriptors, threading.active_count()))
                print(samples[-1], flush=True)

        def state(self, change: Any) -> None:
            pass

        def close(self) -> None:
            pass

    with Camera.open(bundle, "synthetic:64x64@0", threads=1) as camera, (work / "soak.jsonl").open("w") as out:
        (model,) = camera._classifiers[0].models
        scores = model.scores(np.zeros(model.input.shape[1:], np.uint8))
        model.scores = lambda pixels: scores  # only the pipeline is tested, because a million inferences take hours
        report = camera.run([Sampler(), JsonLines(out)], max_frames=1_000_000)
    (work / "soak.jsonl").unlink()
    first, last = samples[1], samples[-1]
    return {
        "frames": report.classified,
        "memory_first_bytes": first[1],
        "memory_last_bytes": last[1],
        "growth": round(last[1] / first[1] - 1, 4),
        "descriptors": [first[2], last[2]],
        "threads": [first[3], last[3]],
        "dropped": report.dropped,
    }


def main() -> None:
    """Print one JSON object for each benchmark."""
    benchmarks = {"throughput": throughput, "files": files, "latency": latency, "memory": memory, "soak": soak}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmarks", nargs="+", choices=benchmarks)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--mediapipe", default="", metavar="PYTHON")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for benchmark in arguments.benchmarks:
        print(json.dumps({benchmark: benchmarks[benchmark](arguments.work, arguments.mediapipe)}, indent=1), flush=True)


if __name__ == "__main__":
    main()
