"""Compare the throughput of ``edgerec serve`` with that of its classifier, and measure latency and memory.

    python benchmarks/serve.py throughput [--clients 64] [--rounds 20] [--seconds 1] [--work FOLDER]
    python benchmarks/serve.py memory [--minutes 5]
    python benchmarks/serve.py batch

``throughput`` sends JPEG files over persistent connections from a client process. Each response must be equal to the
prediction of ``edgerec predict``. The classifier's own throughput is that of a loop in each of as many threads, which
decodes and classifies the same files. Both measurements alternate. The server or the loop runs on one CPU, and the
client on another, so that the client takes no time from the server. The time that the kernel needs for the server's
connections counts as time of the server. On a machine with other load, the CPU time per
image is more reliable than the throughput.

``memory`` samples the memory of the server while the clients send requests, one per cent of which are refused.

``batch`` compares one run of a model with a batch of 8 images with 8 runs with one image each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from common import data_folder

# CPUs of the measured process and of the client.
SERVER_CPUS, CLIENT_CPUS = {0}, {1}
KINDS = ("signs", "photo")


def images(kind: str) -> list[bytes]:
    """Return JPEG files: 200 photos of hands (100×100 pixels), or one photo (1280×720 pixels)."""
    if kind == "photo":
        return [(data_folder() / "cat_720p.jpg").read_bytes()]
    with tarfile.open(data_folder() / "sign-digits.tar") as archive:
        names = sorted(name for name in archive.getnames() if name.lower().endswith(".jpg"))[:200]
        return [archive.extractfile(name).read() for name in names]


def predictions(bundle: Path, contents: list[bytes], work: Path) -> list[bytes]:
    """Return the expected body of the response for each file, from the output of ``edgerec predict --json``."""
    folder = work / "predicted"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:04d}.jpg" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    command = [sys.executable, "-m", "edgerec", "predict", bundle, *paths, "--json"]
    lines = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.splitlines()
    keys = ("label", "index", "score", "categories", "novelty")
    results = [json.loads(line) for line in lines]
    return [
        json.dumps({key: result[key] for key in keys if key in result}, ensure_ascii=False).encode()
        for result in results
    ]


def classifier_loop(bundle: Path, kind: str, workers: int) -> Callable[[float], dict[str, float]]:
    """Return a function that measures images per second and CPU time per image of a loop in each of some threads."""
    import cv2

    from edgerec import Classifier
    from edgerec.contract.image_decoding import decode

    cv2.setNumThreads(1)
    contents = images(kind)
    classifiers = [Classifier.open(bundle, threads=1) for _ in range(workers)]

    def measure(seconds: float) -> dict[str, float]:
        counts = [0] * workers
        started_s, cpu_s = time.perf_counter(), time.process_time()

        def classify(number: int) -> None:
            classifier = classifiers[number]
            while time.perf_counter() < started_s + seconds:
                content = contents[counts[number] % len(contents)]
                classifier.classify(decode(content, classifier.levels))
                counts[number] += 1

        threads = [threading.Thread(target=classify, args=(number,)) for number in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        duration_s, total = time.perf_counter() - started_s, sum(counts)
        return {"images_per_s": total / duration_s, "cpu_ms": (time.process_time() - cpu_s) / total * 1000}

    return measure


async def send_requests(
    address: str, contents: list[bytes], expected: list[bytes], clients: int, seconds: float, bad_every: int = 0
) -> dict[str, Any]:
    """Send requests over ``clients`` persistent connections, and check each response.

    Args:
        address: the server's address.
        contents: image files.
        expected: body of the response for each file.
        clients: number of connections. Each sends a request when it has received the previous response.
        seconds: duration of the measurement.
        bad_every: send a file that is not an image instead of each request with this number.
    """
    host, port = urlsplit(address).hostname, urlsplit(address).port
    head = f"POST /classify HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: image/jpeg\r\nContent-Length: "
    requests = [f"{head}{len(content)}\r\n\r\n".encode() + content for content in contents]
    bad_request = f"{head}4\r\n\r\ntext".encode()
    latencies_s: list[float] = []
    wrong = refused = 0
    started_s = time.perf_counter()
    end_s = started_s + seconds

    async def client(number: int) -> None:
        nonlocal wrong, refused
        reader, writer = await asyncio.open_connection(host, port)
        step = number * 7
        while time.perf_counter() < end_s:
            is_bad = bad_every and step % bad_every == 0
            sent_s = time.perf_counter()
            writer.write(bad_request if is_bad else requests[step % len(requests)])
            header = await reader.readuntil(b"\r\n\r\n")
            length = int(header.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            status = header[9:12]
            if is_bad:
                refused += status == b"400"
            elif status != b"200" or body != expected[step % len(requests)]:
                wrong += 1
            else:
                latencies_s.append(time.perf_counter() - sent_s)
            step += 1
        writer.close()

    await asyncio.gather(*map(client, range(clients)))
    ordered = sorted(latencies_s) or [0.0]
    return {
        "images_per_s": len(latencies_s) / (time.perf_counter() - started_s),
        "images": len(latencies_s),
        "refused": refused,
        "wrong": wrong,
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
    }


class RunningServer:
    """``edgerec serve`` in its own process."""

    def __init__(self, bundle: Path, workers: int, cpus: set[int] | None) -> None:
        command = [sys.executable, "-m", "edgerec", "serve", str(bundle), "--listen", "127.0.0.1:0"]
        command += ["--workers", str(workers)]
        self._process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=(lambda: os.sched_setaffinity(0, cpus)) if cpus else None,
        )
        line = self._process.stderr.readline()
        self.address = line.split()[-1]
        if not line.startswith("the server is at "):
            raise SystemExit(line + self._process.stderr.read())

    @property
    def cpu_s(self) -> float:
        """CPU time of the process in seconds."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> dict[str, float]:
        """Return the memory of the process in MiB: resident, and its anonymous pages only."""
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines())
        return {key: int(lines[name].split()[0]) / 1024 for key, name in (("rss", "VmRSS"), ("anonymous", "RssAnon"))}

    def counts(self) -> dict[str, int]:
        """Return the number of file descriptors and threads of the process."""
        folder = Path(f"/proc/{self._process.pid}")
        return {"descriptors": len(os.listdir(folder / "fd")), "threads": len(os.listdir(folder / "task"))}

    def metric(self, name: str) -> float:
        """Return a value from the server's metrics."""
        with urllib.request.urlopen(f"{self.address}metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))

    def stop(self) -> int:
        """Stop the server, and return its exit code."""
        self._process.terminate()
        return self._process.wait(30)


class Helper:
    """A hidden subcommand of this script in its own process, which measures once for each line that it receives."""

    def __init__(self, cpus: set[int] | None, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=(lambda: os.sched_setaffinity(0, cpus)) if cpus else None,
        )

    def measure(self, seconds: float) -> dict[str, Any]:
        """Return the result of a measurement of this duration."""
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def stop(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait(30)


def throughput(arguments: argparse.Namespace, bundles: dict[str, Path]) -> dict[str, Any]:
    """Return the ratio of the server's throughput to that of the classifier for each model and kind of image."""
    table = {}
    for name, bundle in bundles.items():
        for kind in KINDS:
            expected = arguments.work / "expected.json"
            contents = images(kind)
            expected.write_text(json.dumps([body.decode() for body in predictions(bundle, contents, arguments.work)]))
            server = RunningServer(bundle, arguments.workers, SERVER_CPUS)
            loop = Helper(SERVER_CPUS, "classifier", bundle, kind, arguments.workers)
            client = Helper(CLIENT_CPUS, "client", server.address, kind, expected, arguments.clients, 0)
            loop.measure(0.5)
            client.measure(0.5)
            rows = []
            for _ in range(arguments.rounds):
                own = loop.measure(arguments.seconds)
                cpu_s, before = server.cpu_s, server.metric("edgerec_images_total")
                served = client.measure(arguments.seconds)
                count = server.metric("edgerec_images_total") - before
                served["cpu_ms"] = (server.cpu_s - cpu_s) / count * 1000
                rows.append((own, served))
            for process in (loop, client, server):
                process.stop()
            table[f"{name}, {kind}"] = {
                "throughput ratio": median(s["images_per_s"] / o["images_per_s"] for o, s in rows),
                "CPU time ratio": median(o["cpu_ms"] / s["cpu_ms"] for o, s in rows),
                "classifier images/s": median(o["images_per_s"] for o, _ in rows),
                "server images/s": median(s["images_per_s"] for _, s in rows),
                "classifier CPU ms": median(o["cpu_ms"] for o, _ in rows),
                "server CPU ms": median(s["cpu_ms"] for _, s in rows),
                "p50 ms": median(s["p50_ms"] for _, s in rows),
                "p99 ms": median(s["p99_ms"] for _, s in rows),
                "responses": sum(s["images"] for _, s in rows),
                "wrong responses": sum(s["wrong"] for _, s in rows),
                "all ratios": [round(s["images_per_s"] / o["images_per_s"], 3) for o, s in rows],
            }
            print(json.dumps({f"{name}, {kind}": table[f"{name}, {kind}"]}), flush=True)
    return table


def median(values: Any) -> float:
    """Return the rounded median."""
    return round(statistics.median(values), 3)


def memory(arguments: argparse.Namespace, bundles: dict[str, Path]) -> dict[str, Any]:
    """Return the memory, the file descriptors and the threads of the server during a continuous load."""
    bundle = bundles["mobilenet_v1 0.25 128"]
    expected = arguments.work / "expected.json"
    contents = images("signs")
    expected.write_text(json.dumps([body.decode() for body in predictions(bundle, contents, arguments.work)]))
    server = RunningServer(bundle, arguments.workers, None)
    client = Helper(None, "client", server.address, "signs", expected, arguments.clients, 100)
    samples = [{"minute": 0.0, "images": 0} | server.memory() | server.counts()]
    started_s, wrong = time.monotonic(), 0
    while time.monotonic() - started_s < arguments.minutes * 60:
        wrong += client.measure(10)["wrong"]
        time.sleep(1)
        minute = round((time.monotonic() - started_s) / 60, 2)
        images_total = int(server.metric("edgerec_images_total"))
        samples.append({"minute": minute, "images": images_total} | server.memory() | server.counts())
        print(json.dumps(samples[-1]), file=sys.stderr, flush=True)
    client.stop()
    code = server.stop()
    steady = samples[max(1, len(samples) // 10) :]
    half = len(steady) // 2
    first, second = (statistics.median(s["anonymous"] for s in part) for part in (steady[:half], steady[half:]))
    return {
        "images": samples[-1]["images"],
        "wrong responses": wrong,
        "exit code": code,
        "before": samples[0],
        "first": steady[0],
        "last": samples[-1],
        "anonymous MiB, median of the first half": round(first, 1),
        "anonymous MiB, median of the second half": round(second, 1),
        "growth": f"{(second - first) / first:+.2%}",
    }


def batch(arguments: argparse.Namespace, bundles: dict[str, Path]) -> dict[str, Any]:
    """Compare runs of a model with a batch of 8 images and with one image."""
    from edgerec.runtime.interpreter import open_interpreter

    table = {}
    for name, bundle in bundles.items():
        content = (bundle / "model.tflite").read_bytes()
        one, many = (open_interpreter(content, threads=1) for _ in range(2))
        index = many.get_input_details()[0]["index"]
        shape = many.get_input_details()[0]["shape"]
        try:
            many.resize_tensor_input(index, [8, *shape[1:]])
            many.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            table[name] = f"the batch dimension cannot be changed: {error}"
            continue
        pixels = np.random.default_rng(0).integers(0, 256, (8, *shape[1:])).astype(one.get_input_details()[0]["dtype"])

        def single(one: Any = one, index: int = index, pixels: Any = pixels) -> list[Any]:
            outputs = []
            for image in pixels:
                one.set_tensor(index, image[np.newaxis])
                one.invoke()
                outputs.append(one.get_tensor(one.get_output_details()[0]["index"]))
            return outputs

        def batched(many: Any = many, index: int = index, pixels: Any = pixels) -> list[Any]:
            many.set_tensor(index, pixels)
            many.invoke()
            return list(many.get_tensor(many.get_output_details()[0]["index"]))

        equal = np.array_equal(np.concatenate(single()), np.stack(batched()))
        times = {single: [], batched: []}
        for _ in range(arguments.rounds * 6):
            for function, durations in times.items():
                cpu_s = time.process_time()
                function()
                durations.append((time.process_time() - cpu_s) / 8 * 1000)
        one_ms, batch_ms = (statistics.median(durations) for durations in times.values())
        table[name] = {
            "bit-identical": bool(equal),
            "CPU ms per image, one at a time": round(one_ms, 3),
            "CPU ms per image, batch of 8": round(batch_ms, 3),
        }
    return table


def prepared_bundles(work: Path) -> dict[str, Path]:
    """Return the bundles to measure by name."""
    import camera

    return {name: bundle for name, (_, bundle) in camera.bundles(work).items()}


BENCHMARKS: dict[str, Callable[[argparse.Namespace, dict[str, Path]], dict[str, Any]]] = {
    "throughput": throughput,
    "memory": memory,
    "batch": batch,
}


def run_helper(name: str, *arguments: str) -> None:
    """Read durations from stdin, and print the result of a measurement for each of them."""
    if name == "classifier":
        bundle, kind, workers = arguments
        measure: Callable[[float], dict[str, Any]] = classifier_loop(Path(bundle), kind, int(workers))
    else:
        address, kind, expected, clients, bad_every = arguments
        bodies, contents = [body.encode() for body in json.loads(Path(expected).read_text())], images(kind)

        def measure(seconds: float) -> dict[str, Any]:
            return asyncio.run(send_requests(address, contents, bodies, int(clients), seconds, int(bad_every)))

    for line in sys.stdin:
        print(json.dumps(measure(float(line))), flush=True)


def main() -> None:
    """Run benchmarks, and print their results as JSON."""
    if sys.argv[1] in ("classifier", "client"):
        run_helper(*sys.argv[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="+", choices=BENCHMARKS)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--bundle", type=Path, help="bundle to measure [default: two MobileNets]")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--minutes", type=float, default=5.0)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    bundles = {arguments.bundle.name: arguments.bundle} if arguments.bundle else prepared_bundles(arguments.work)
    for benchmark in arguments.benchmarks:
        print(json.dumps({benchmark: BENCHMARKS[benchmark](arguments, bundles)}, indent=1), flush=True)


if __name__ == "__main__":
    main()
