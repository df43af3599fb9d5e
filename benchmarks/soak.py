"""Run a camera with four sources and all sinks for an hour, with a fault every 20 seconds.

    python benchmarks/soak.py [--minutes 60] [--fault-every 20] [--bundle FOLDER]

The sources are a video file that is played again and again, an RTSP server (GStreamer), an MJPEG server and a synthetic
camera. The sinks are JSON lines, a CSV file, saved images with a size limit, MQTT (Mosquitto), a webhook, Prometheus
metrics and the web page. Faults are injected in turns; each lasts at most 12 seconds. At the end the camera is stopped
with SIGTERM. The script prints one JSON object and exits with 1 if a check failed:

- every accepted result is printed and has a row in the CSV file, or is counted as lost; no frame of the file is lost;
- every decision was received by the MQTT client and by the webhook, or is counted as lost;
- the memory (anonymous pages, within 2 %), file descriptors and threads at the end equal those after the first
  tenth of the time; the medians over all samples without an active fault are compared;
- the exit code is 0, or 1 if the camera reported lost results, and standard error has no traceback;
- files that were moved out of the folder of saved images still exist.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import http.server
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import cv2  # noqa: E402

from tests import servers  # noqa: E402
from tests.network import Mosquitto, MqttSubscriber  # noqa: E402

SAMPLE_S = 2.0
MEMORY_TOLERANCE = 0.02
Fault = Callable[[], contextlib.AbstractContextManager[None]]


class HookServer:
    """A server for the webhook. ``status`` is the response status; 0 closes each connection, and -1 never responds."""

    def __init__(self) -> None:
        self.status, self.bodies, outer = 200, [], self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.status == -1:
                    time.sleep(8)
                status = outer.status  # read once, because a fault may end meanwhile
                if status <= 0:
                    self.close_connection = True
                    return
                if status == 200:
                    outer.bodies.append(json.loads(body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Log nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()


class Soak:
    """A soak test: the camera process, its servers, and the observed values."""

    def __init__(self, folder: Path, bundle: Path, seconds: float) -> None:
        self.folder, self.bundle, self.seconds = folder, bundle, seconds
        servers.LIFETIME_S = int(seconds) + 600
        servers._RTSP = servers._RTSP.replace("timeout_add_seconds(120", f"timeout_add_seconds({servers.LIFETIME_S}")
        for name in ("rtsp", "broker", "saved", "labeled", "moved", "queue"):
            (folder / name).mkdir()
        self.rtsp = servers.RtspServer(folder / "rtsp")
        self.mjpeg = servers.MjpegServer()
        self.broker = Mosquitto(folder / "broker")
        self.webhook = HookServer()
        self.printed: collections.deque[tuple[str, int]] = collections.deque()
        self.decisions: set[tuple[str, str, float]] = set()
        self.errors: list[str] = []
        self.addresses: list[str] = []
        self.samples: list[tuple[float, float, int, int, bool]] = []
        self.faults: collections.Counter[str] = collections.Counter()
        self.moved = 0
        self.active = False

    def video(self) -> Path:
        """Write a video of 10 seconds."""
        path = self.folder / "file.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (160, 120))
        for number in range(250):
            writer.write(servers.numbered_image(number // 25))
        writer.release()
        return path

    def start(self) -> None:
        """Start the servers and the camera."""
        for server in (self.rtsp, self.mjpeg, self.broker):
            server.start()
        self.subscriber = MqttSubscriber(self.broker, topics="soak/#")
        command = [sys.executable, "-m", "edgerec", "camera", str(self.bundle), "--json", "--loop"]
        for source in (str(self.video()), self.rtsp.url, self.mjpeg.url, "synthetic:160x120@10"):
            command += ["--source", source]
        command += ["--csv", str(self.folder / "rows.csv"), "--save", "changes", "--save-max", "2MB"]
        command += ["--save-dir", str(self.folder / "saved"), "--web-save", str(self.folder / "labeled")]
        command += ["--mqtt", f"mqtt://127.0.0.1:{self.broker.port}/soak", "--queue-dir", str(self.folder / "queue")]
        command += ["--webhook", self.webhook.url, "--metrics", "127.0.0.1:0", "--web", "127.0.0.1:0"]
        environment = os.environ | {"EDGEREC_CACHE": str(self.folder / "cache"), "EDGEREC_WEB_TOKEN": "soak-token-1234"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=self.folder
        )
        for read in (self._read_results, self._read_errors):
            threading.Thread(target=read, daemon=True).start()
        self._wait(lambda: len(self.addresses) >= 2, 60)

    def _read_results(self) -> None:
        for line in self.process.stdout or ():
            record = json.loads(line)
            if "frame" in record:
                self.printed.append((record["source"], int(record["frame"])))
                self.decisions.add(decision_key(record["source"], record["decision"]))

    def _read_errors(self) -> None:
        for line in self.process.stderr or ():
            self.errors.append(line.rstrip())
            self.addresses += re.findall(r"http://127\.0\.0\.1:\d+[^\s,]*", line)

    def _wait(self, condition: Callable[[], Any], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or self.process.poll() is not None:
                raise SystemExit("the camera did not start: " + "; ".join(self.errors[-5:]))
            time.sleep(0.05)

    def table(self) -> dict[str, Fault]:
        """Return the faults by name. Each fault is a context manager that is active while the fault lasts."""
        return {
            "RTSP server killed": self._server_killed(self.rtsp),
            "RTSP server silent": self._silent,
            "MJPEG server killed": self._server_killed(self.mjpeg),
            "broker stopped": self._server_killed(self.broker, stop="stop"),
            "webhook returns 500": lambda: self._status(500),
            "webhook silent": lambda: self._status(-1),
            "webhook hangs up": lambda: self._status(0),
            "idle connections": self._idle,
            "wrong tokens": self._wrong_tokens,
            "malformed requests": self._malformed,
            "saved images moved by a person": self._move,
            "hostile MJPEG": self._hostile,
        }

    def _server_killed(self, server: Any, stop: str = "kill") -> Fault:
        @contextlib.contextmanager
        def fault() -> Iterator[None]:
            getattr(server, stop)()
            yield
            server.start()

        return fault

    @contextlib.contextmanager
    def _silent(self) -> Iterator[None]:
        self.rtsp.freeze()
        yield
        self.rtsp.kill()
        self.rtsp.start()

    @contextlib.contextmanager
    def _status(self, status: int) -> Iterator[None]:
        self.webhook.status = status
        yield
        self.webhook.status = 200

    @contextlib.contextmanager
    def _idle(self) -> Iterator[None]:
        ports = [int(re.findall(r":(\d+)", address)[0]) for address in self.addresses[:2]]
        with contextlib.ExitStack() as stack:
            for number in range(140):
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection(("127.0.0.1", ports[number % 2]), 2))
            yield

    @contextlib.contextmanager
    def _wrong_tokens(self) -> Iterator[None]:
        for number in range(20):
            with contextlib.suppress(OSError):
                address = re.findall(r"http://[^/?]*", self.addresses[number % 2])[0]
                urllib.request.urlopen(f"{address}/?token=wrong-{number}", timeout=2).close()
        yield

    @contextlib.contextmanager
    def _malformed(self) -> Iterator[None]:
        for address in self.addresses[:2]:
            for content in (b"\x00\xff" * 500, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000, b"POST / HTTP/1.1\r\n"):
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", int(re.findall(r":(\d+)", address)[0])), 2) as connection,
                ):
                    connection.sendall(content)
        yield

    @contextlib.contextmanager
    def _move(self) -> Iterator[None]:
        for path in sorted((self.folder / "saved").rglob("*.jpg"))[:3]:
            with contextlib.suppress(OSError):
                path.rename(self.folder / "moved" / f"{self.moved}-{path.name}")
                self.moved += 1
        yield

    @contextlib.contextmanager
    def _hostile(self) -> Iterator[None]:
        def script(peer: servers.Peer) -> None:
            peer.send(servers.HEAD)
            for _ in range(20):
                peer.send(b"\xff\xd8\xff\xe1\x00\x02" * 4000 + servers.image_part(b"\xff\xd8" + os.urandom(2000)))
                peer.wait(0.2)

        normal = self.mjpeg._scripts
        self.mjpeg.kill()
        self.mjpeg._scripts = [script]
        self.mjpeg.start()
        yield
        self.mjpeg.kill()
        self.mjpeg._scripts = normal
        self.mjpeg.start()

    def sample(self, elapsed: float) -> None:
        """Record the camera's memory (MiB), number of file descriptors and number of threads."""
        process = Path("/proc") / str(self.process.pid)
        with contextlib.suppress(OSError):
            memory = int(re.findall(r"^Anonymous:\s+(\d+)", (process / "smaps_rollup").read_text(), re.M)[0]) / 1024
            descriptors = len(list((process / "fd").iterdir()))
            threads = len(list((process / "task").iterdir()))
            self.samples.append((elapsed, memory, descriptors, threads, self.active))

    def run(self, fault_every: float) -> None:
        """Inject faults until the time is over, and record the camera's resource usage."""
        faults = list(self.table().items())
        begin, count = time.monotonic(), 0
        while (elapsed := time.monotonic() - begin) < self.seconds and self.process.poll() is None:
            self.sample(elapsed)
            # Every twelfth fault is followed by a pause, so that there are samples without the effects of a fault.
            if elapsed >= (count + 1) * fault_every and elapsed + 2 * fault_every < self.seconds:
                name, fault = faults[count % len(faults)]
                count += 1
                self.faults[name] += 1
                self.active = True
                with fault():
                    end = time.monotonic() + min(12.0, fault_every * 0.5)
                    while time.monotonic() < end:
                        self.sample(time.monotonic() - begin)
                        time.sleep(SAMPLE_S)
                # Reconnecting takes up to 5 seconds after an outage.
                time.sleep(min(6.0, fault_every * 0.3))
                self.active = False
            time.sleep(min(SAMPLE_S, fault_every / 4))

    def stop(self) -> int:
        """Stop the camera and the servers, and return the camera's exit code; -1 if it had to be killed."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = -1
        time.sleep(2)  # wait for the last messages
        self.subscriber.close()
        for server in (self.rtsp, self.mjpeg):
            server.kill()
        self.broker.stop()
        return code

    def figures(self, code: int) -> dict[str, Any]:
        """Return the measured values and the failed checks."""
        with open(self.folder / "rows.csv", newline="", encoding="utf-8") as file:
            rows = [(row["source"], int(row["frame"])) for row in csv.DictReader(file)]
        printed = list(self.printed)
        lost = [line for line in self.errors if "lost" in line and "results" in line]
        without_faults = [sample for sample in self.samples if not sample[4]]
        early = [s for s in without_faults if 0.1 * self.seconds < s[0] <= 0.2 * self.seconds]
        late = [s for s in without_faults if s[0] > 0.9 * self.seconds]
        first, last = ([statistics.median(s[i] for s in part) for i in (1, 2, 3)] for part in (early, late))
        messages = [json.loads(body) for topic, body, _ in self.subscriber.messages if topic.endswith("/decision")]
        mqtt, webhook = (
            {decision_key(event["source"], event) for event in part} for part in (messages, self.webhook.bodies)
        )
        summaries = re.findall(r"^(?:warning: )?(\S+) lost (\d+) of (\d+) results", "\n".join(self.errors), re.M)
        totals = {name: int(count) for name, count, _ in summaries}
        accepted = {int(count) for *_, count in summaries} | {len(printed) + totals.get("JsonLines", 0)}
        decisions = self.decisions | mqtt | webhook
        frames = [frame for source, frame in rows if source.endswith("file.avi")]
        checks = {
            "accepted results": accepted == {len(rows) + totals.get("csv", 0)},
            "every frame of the file": all(b in (a + 1, 0) for a, b in itertools.pairwise(frames)),
            "MQTT": len(decisions - mqtt) <= totals.get("mqtt", 0),
            "webhook": len(decisions - webhook) <= totals.get("webhook", 0),
            "results of all sources": len({source for source, _ in rows}) == 4,
            "memory": abs(last[0] / first[0] - 1) <= MEMORY_TOLERANCE,
            "descriptors": first[1] == last[1],
            "threads": first[2] == last[2],
            "exit code": code == (1 if lost else 0),
            "no traceback": not any("Traceback" in line for line in self.errors),
            "moved images": len(list((self.folder / "moved").iterdir())) == self.moved,
        }
        return {
            "seconds": self.seconds,
            "faults": dict(self.faults),
            "results": dict(collections.Counter(source for source, _ in printed)),
            "csv_rows": len(rows),
            "decisions": len(decisions),
            "mqtt_decisions": len(mqtt),
            "webhook_decisions": len(webhook),
            "memory_mib": [round(first[0], 1), round(last[0], 1)],
            "memory_by_tenth_mib": [
                round(
                    statistics.median(
                        [s[1] for s in without_faults if tenth <= 10 * s[0] / self.seconds < tenth + 1] or [0]
                    ),
                    1,
                )
                for tenth in range(10)
            ],
            "peak_mib": round(max(s[1] for s in self.samples), 1),
            "descriptors": [first[1], last[1]],
            "threads": [first[2], last[2]],
            "exit_code": code,
            "reported_lost": totals,
            "failed": [name for name, passed in checks.items() if not passed],
        }


def decision_key(source: str, decision: dict[str, Any]) -> tuple[str, str, float]:
    """Return a key that identifies a decision: the source, the label and the start time."""
    return source, decision["label"], decision["since_s"]


def demo_bundle(folder: Path) -> Path:
    """Train a small network on digits for one epoch, and export it for the desktop."""
    from edgerec import Recipe, export_bundle, fit, quantize

    run = fit(
        Recipe().override({"data.source": "digits", "model.arch": "simple_cnn", "train.epochs": 1}), folder / "run"
    )
    quantize(run, "ptq", max_drop=100)
    export_bundle(run, "desktop", out=folder / "bundle")
    return folder / "bundle"


def main() -> int:
    """Run the soak test, print its figures, and return 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--fault-every", type=float, default=20, help="seconds between the starts of two faults")
    parser.add_argument("--bundle", type=Path, help="bundle to use [default: digits, trained for one epoch]")
    parser.add_argument(
        "--work", type=Path, help="parent of the working folder [default: the system's temporary folder]"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        folder = Path(name)
        soak = Soak(folder, arguments.bundle or demo_bundle(folder), arguments.minutes * 60)
        soak.start()
        try:
            soak.run(arguments.fault_every)
        finally:
            code = soak.stop()
        figures = soak.figures(code)
    print(json.dumps(figures, indent=1))
    print(*soak.errors[-20:], sep="\n", file=sys.stderr)
    return 1 if figures["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
