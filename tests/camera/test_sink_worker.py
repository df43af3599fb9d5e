"""Tests that accepted results are delivered or reported as lost, even if the camera is interrupted."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from edgerec.camera.frame import Frame, Result
from edgerec.camera.interrupts import Interrupts
from edgerec.camera.pipeline import Camera
from edgerec.camera.sinks.sink_thread import MAX_EVENTS, SinkWorker
from edgerec.camera.sources import Address, CaptureFormat, find_source
from edgerec.contract.decision import Classification, DecisionSpec
from tests.conftest import REPOSITORY
from tests.network import wait_for

CLASSIFICATION = Classification("a", 0, 1.0, (), np.array([1, 0], np.float32))


def camera_of(*addresses) -> Camera:
    manifest = SimpleNamespace(labels=("a", "b"), decision=DecisionSpec())
    return Camera(SimpleNamespace(manifest=manifest, classify=lambda image: CLASSIFICATION, invalid=0), addresses)


def result(index, shape=(4, 4)) -> Result:
    return Result(
        Frame(np.zeros((*shape, 3), np.uint8), index, time.monotonic(), "0", "0"), CLASSIFICATION, time.monotonic()
    )


class Recorder:
    """A sink that stores the indices of the results, and calls ``before`` for each of them."""

    closed = False

    def __init__(self, before=lambda result: None):
        self.indices, self.was_closed = [], False
        self._before = before

    def write(self, result):
        self._before(result)
        self.indices.append(result.frame.index)

    def state(self, change):
        pass

    def close(self):
        self.was_closed = True


def test_slow_sink_receives_every_frame_of_a_file():
    # The sink needs more than 3 s for the results that wait when the source ends.
    slow = Recorder(lambda _: time.sleep(0.06))
    with camera_of(find_source("synthetic:8x8@0")) as camera:
        report = camera.run([slow], 70)
    assert slow.indices == list(range(70))
    assert slow.was_closed
    assert (report.dropped, report.incomplete) == ({}, ())


def test_no_frame_of_a_file_is_dropped_beside_a_live_source():
    class Numbered:
        """A file of small images."""

        name, format = "file", CaptureFormat()

        def images(self):
            yield from ((np.zeros((8, 8, 3), np.uint8), "file") for _ in range(3 * MAX_EVENTS))

        def close(self):
            pass

    per_source = {"file": [], "synthetic:8x8@30": []}
    slow = Recorder(lambda result: (time.sleep(0.005), per_source[result.frame.source].append(result.frame.index)))
    file = Address("file", False, False, Numbered)
    with camera_of(file, find_source("synthetic:8x8@30")) as camera:
        threading.Timer(3, camera.stop).start()
        report = camera.run([slow])
    assert per_source["file"] == list(range(3 * MAX_EVENTS))
    # Live frames wait with those of the file, so that the source drops them instead of the sink.
    assert report.dropped == {}


def test_dropped_results_of_a_live_source_are_counted_and_logged(caplog):
    release = threading.Event()
    sink = Recorder(lambda _: release.wait(20))
    worker = SinkWorker(sink, lossless=False)
    for index in range(MAX_EVENTS + 30):
        worker.put(result(index))
    release.set()
    worker.close()
    assert worker.dropped == MAX_EVENTS + 30 - len(sink.indices) > 0
    assert not worker.incomplete
    assert "the sink is too slow" in caplog.text


def test_failures_of_a_sink_make_the_report_incomplete():
    class Failing(Recorder):
        name = "failing"

        def close(self):
            raise OSError("the disk is full")

    with camera_of(find_source("synthetic:8x8@0")) as camera:
        report = camera.run([Failing(), Recorder()], 3)
    assert report.incomplete == ("failing",)


@pytest.mark.parametrize("shape", [(1080, 1920), (30, 40)])
def test_queue_is_limited_in_bytes_and_in_length(shape):
    release, waiting = threading.Event(), []
    sink = Recorder(lambda _: release.wait(20))
    worker = SinkWorker(sink, lossless=False)
    for index in range(2 * MAX_EVENTS):
        worker.put(result(index, shape))
        waiting.append(index)
    release.set()
    worker.close()
    accepted = len(sink.indices)
    assert accepted * shape[0] * shape[1] * 3 < 80_000_000
    assert accepted <= MAX_EVENTS + 2
    assert accepted + worker.dropped == 2 * MAX_EVENTS
    assert sink.indices[-1] == 2 * MAX_EVENTS - 1


def test_queue_of_a_sink_without_images_holds_no_images():
    sizes = []
    sink = Recorder(lambda result: sizes.append(result.frame.image.nbytes))
    sink.uses_images = False
    worker = SinkWorker(sink, lossless=True)
    worker.put(result(0, (100, 100)))
    worker.close()
    assert sizes == [0]


def test_hung_sink_does_not_prevent_others_from_finishing():
    release, closed = threading.Event(), threading.Event()
    hung, slow = Recorder(lambda _: release.wait(60)), Recorder()
    slow.close = closed.set
    with camera_of(find_source("synthetic:8x8@0")) as camera:

        def abandon_hung_sink():
            closed.wait(10)
            camera.stop()
            camera.stop()

        thread = threading.Thread(target=abandon_hung_sink)
        thread.start()
        report = camera.run([hung, slow], 10)
        closed_in_time = closed.is_set()
        thread.join()
    release.set()
    assert closed_in_time
    assert slow.indices == list(range(10))
    assert (report.dropped, report.incomplete) == ({"Recorder": 10}, ("Recorder",))


def test_timeouts_of_hung_sinks_do_not_add_up():
    release, calls, timeout_s = threading.Event(), [], [60.0]

    def timeouts():
        calls.append(timeout_s[0])
        return timeout_s[0]

    worker = SinkWorker(Recorder(lambda _: release.wait(60)), lossless=False, timeout_s=timeouts)
    worker.put(result(0))
    worker.finish()
    time.sleep(0.2)  # another sink is waited for
    timeout_s[0] = 0.1
    worker.close()
    release.set()
    assert calls == [0.1]  # the time since finish() counts, so close() does not wait again
    assert (worker.dropped, worker.incomplete) == (1, True)


def test_failing_sink_does_not_block_the_camera_if_the_log_is_blocked():
    logged, release, entered = threading.Event(), threading.Event(), threading.Event()

    class Blocked(logging.Handler):
        def emit(self, record):
            entered.set()
            release.wait(60)

    def fail(result):
        raise OSError("no")

    log, handler = logging.getLogger("edgerec.camera.sinks.sink_thread"), Blocked()
    log.addHandler(handler)
    try:
        worker = SinkWorker(Recorder(fail), lossless=False)
        worker.put(result(0))
        assert entered.wait(60)
        threading.Thread(target=lambda: (worker.put(result(1)), logged.set()), daemon=True).start()
        assert logged.wait(30)
    finally:
        release.set()
        log.removeHandler(handler)
    worker.close()
    assert worker.dropped == 2


def test_repeated_signals_count_once_per_second(monkeypatch):
    now_s, stops = [0.0], []
    monkeypatch.setattr("edgerec.camera.interrupts.time", SimpleNamespace(monotonic=lambda: now_s[0]))

    def press_ctrl_c():
        now_s[0] += 0.5
        signal.raise_signal(signal.SIGINT)

    with contextlib.suppress(KeyboardInterrupt), Interrupts(lambda: stops.append(now_s[0])):
        for _ in range(20):
            press_ctrl_c()
    assert (stops, now_s) == ([0.5, 1.5], [2.5])


def test_signal_to_the_process_and_its_group_counts_once():
    def interrupt_twice(result):
        if result.frame.index == 0:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    sink = Recorder(interrupt_twice)
    with camera_of(find_source("synthetic:8x8@0")) as camera, pytest.raises(KeyboardInterrupt):
        camera.run([sink])
    assert sink.indices == list(range(camera.report.classified))
    assert camera.report.incomplete == ()


# Raises SIGINT at the n-th time that the main thread has acquired the lock of a condition and has not yet entered the
# block. A KeyboardInterrupt at this instruction leaves the lock locked.
_INTERRUPTED = """
import os, signal, sys, threading
from tests.camera.test_sink_worker import Recorder, camera_of, find_source

def interrupt_at(number):
    left = [number]
    def trace(frame, event, argument):
        if event == "return" and frame.f_code.co_name == "__enter__" and frame.f_code.co_filename == threading.__file__:
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(signal.SIGINT)
    return trace

for number in (1, 2, 3, 5, 8, 13, 21, 34):
    sink = Recorder()
    classified = 0
    with camera_of(find_source("synthetic:8x8@0")) as camera:
        sys.setprofile(interrupt_at(number))
        try:
            camera.run([sink], 200)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        classified = camera.report.classified
    print(number, classified == len(sink.indices), sink.was_closed, camera.report.dropped, flush=True)
"""


def test_signal_while_the_main_thread_holds_a_lock_loses_no_results():
    result = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert [line.split(" ", 1)[1] for line in result.stdout.splitlines()] == ["True True {}"] * 8


def test_results_that_were_not_delivered_are_reported_by_the_exit_code(bundle, tmp_path):
    """The pipe of stdout is full from the start, and the user presses Ctrl-C twice."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writes, b"x")
    os.set_blocking(writes, True)
    command = [sys.executable, "-m", "edgerec", "camera", str(bundle), "--source", "synthetic:64x64@0", "--json"]
    table = tmp_path / "out.csv"
    camera = subprocess.Popen(
        [*command, "--csv", str(table)], stdout=writes, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    try:
        wait_for(lambda: table.exists() and table.stat().st_size > 1000, 60)
        camera.send_signal(signal.SIGINT)
        time.sleep(1.5)
        camera.send_signal(signal.SIGINT)
        _, error = camera.communicate(timeout=20)
    finally:
        camera.kill()
        camera.communicate()
        os.close(reads)
        os.close(writes)
    assert camera.returncode == 1
    assert re.search(r"JsonLines did not process \d+ of \d+ results", error)
    assert "Fatal" not in error
