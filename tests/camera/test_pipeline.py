"""Tests of the camera pipeline, from sources to results, and of `edgerec camera`."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import islice

import cv2
import numpy as np
import pytest

from edgerec import Bundle, Camera
from edgerec.camera.frame import Frame
from edgerec.camera.reconnection import Timeouts
from edgerec.camera.sinks.console import JsonLines, TextLines
from edgerec.camera.sinks.window import FrameRate, overlay
from edgerec.camera.source_state import SourceState, StateChange
from edgerec.camera.sources import Address, CaptureFormat, find_source
from edgerec.camera.supervisor import SourceSupervisor
from edgerec.errors import RecipeError, SourceError
from tests.conftest import error_line


class ScriptedSource:
    """A source that delivers a number of frames, and then hangs, fails or ends."""

    format = CaptureFormat(4, 4)

    def __init__(self, frames, pause_s=0.0, error=None, hang=None, permits=None):
        """Create the source. If there is a semaphore ``permits``, each frame waits for a permit."""
        self._frames, self._pause_s, self._error, self._hang = frames, pause_s, error, hang
        self._permits = permits
        self.delivered = 0
        self.was_closed = False

    def images(self):
        for number in range(self._frames):
            time.sleep(self._pause_s)
            if self._permits:
                self._permits.acquire()
            self.delivered += 1
            yield np.full((4, 4, 3), number % 256, np.uint8), "made"
        if self._hang:
            self._hang.wait()
        if self._error:
            raise self._error

    def close(self):
        self.was_closed = True


def supervisor_of(*sources, live, **timeouts):
    """Return a supervisor of one source. Each connection opens the next source, or raises it if it is an exception."""
    remaining = list(sources)

    def open_next():
        source = remaining.pop(0) if remaining else SourceError("no more sources")
        if isinstance(source, Exception):
            raise source
        return source

    return SourceSupervisor([Address("made", live, True, open_next)], Timeouts(**timeouts))


def frames_of(events):
    return [event for event in events if isinstance(event, Frame)]


def states_of(events):
    return [str(event.state) for event in events if isinstance(event, StateChange)]


def test_no_frame_of_a_file_is_dropped():
    source = ScriptedSource(frames=50)
    with supervisor_of(source, live=False) as running:
        events = []
        for event in running:
            time.sleep(0.001)
            events.append(event)
    frames = frames_of(events)
    assert [frame.index for frame in frames] == list(range(50))
    assert [frame.image[0, 0, 0] for frame in frames] == list(range(50))
    assert states_of(events) == ["connecting", "live", "ended"]
    assert events[-1].state == "ended"
    assert source.was_closed
    assert running.errors == []


def test_number_of_decoded_frames_of_a_file_is_limited():
    source = ScriptedSource(frames=1000)
    with supervisor_of(source, live=False) as running:
        next(iter(running))
        time.sleep(0.1)
        assert source.delivered <= 5


def test_live_source_delivers_the_newest_frame():
    source = ScriptedSource(frames=100, pause_s=0.002)
    results = []
    with supervisor_of(source, live=True, give_up_s=0) as running:
        for event in running:
            if isinstance(event, Frame):
                results.append((event.index, source.delivered - 1))
                time.sleep(0.03)
    assert len(results) < 50
    assert [index for index, _ in results] == sorted({index for index, _ in results})
    assert all(newest - index <= 1 for index, newest in results)
    assert running.overtaken == 100 - len(results)


def test_lost_source_is_reconnected():
    gone, permits, events = SourceError("gone"), threading.Semaphore(1), []
    sources = [
        ScriptedSource(3, error=gone, permits=permits),
        SourceError("not yet"),
        ScriptedSource(2, error=gone, permits=permits),
    ]
    with supervisor_of(*sources, live=True, first_wait_s=0.02) as running:
        for event in running:
            events.append(event)
            if isinstance(event, Frame):
                permits.release()  # after the frame was consumed, so that no frame is overtaken by the next one
            if len(states_of(events)) == 10:
                break
    states = ["connecting", "live", "lost", "connecting", "lost", "connecting", "live", "lost", "connecting", "lost"]
    assert states_of(events) == states
    reasons = [event.reason for event in events if isinstance(event, StateChange) and event.state == "lost"]
    assert reasons == ["gone", "not yet", "gone", "no more sources"]
    # The indices of the frames continue after a reconnection.
    assert [frame.index for frame in frames_of(events)] == [0, 1, 2, 3, 4]
    assert [frame.image[0, 0, 0] for frame in frames_of(events)] == [0, 1, 2, 0, 1]
    times = [event.since_s for event in events if isinstance(event, StateChange)]
    assert times == sorted(times)


def test_source_that_cannot_be_opened_ends_with_its_last_error():
    with supervisor_of(live=True, first_wait_s=0.01, give_up_s=0.1) as running:
        assert states_of(running)[-1] == "ended"
    assert [str(error) for error in running.errors] == ["no more sources"]


def test_pause_between_attempts_doubles_up_to_the_longest_pause(monkeypatch):
    timeouts_s, wait_for = [], threading.Condition.wait_for

    def record(condition, predicate, timeout=None):
        timeouts_s.append(timeout)
        return wait_for(condition, predicate, timeout)

    monkeypatch.setattr(threading.Condition, "wait_for", record)
    source = ScriptedSource(1, error=SourceError("gone"))
    with supervisor_of(source, live=True, first_wait_s=0.01, longest_wait_s=0.08) as running:
        list(islice(running, 16))
    pauses = [seconds for seconds in timeouts_s if seconds is not None]
    assert pauses[:4] == [0.01, 0.02, 0.04, 0.08]
    assert set(pauses[4:]) <= {0.08}


def test_hanging_source_becomes_stale_then_lost_and_is_reconnected():
    release = threading.Event()
    hanging, next_one = ScriptedSource(1, hang=release), ScriptedSource(1, error=SourceError("gone"))
    with supervisor_of(hanging, next_one, live=True, stale_s=0.05, lost_s=0.15, first_wait_s=0.01) as running:
        events = list(islice(running, 8))
    assert states_of(events)[:6] == ["connecting", "live", "stale", "lost", "connecting", "live"]
    lost = next(event for event in events if isinstance(event, StateChange) and event.state == "lost")
    assert "delivered no frame for" in lost.reason
    # When the read returns, the thread ends and closes the source.
    release.set()
    wait_for(lambda: hanging.was_closed)
    wait_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("edgerec")])


def test_stale_source_becomes_live_again_without_a_new_connection():
    class Pausing(ScriptedSource):
        def images(self):
            yield from super().images()
            time.sleep(0.15)
            yield from super().images()

    with supervisor_of(Pausing(1), live=True, stale_s=0.05, lost_s=5, give_up_s=0) as running:
        assert states_of(running) == ["connecting", "live", "stale", "live", "ended"]


def test_local_camera_that_cannot_be_opened_at_the_start_is_an_error():
    def missing():
        raise SourceError("not plugged in")

    with SourceSupervisor([Address("0", True, False, missing)]) as running:
        assert states_of(running) == ["connecting", "ended"]
    assert [str(error) for error in running.errors] == ["not plugged in"]


def test_sources_take_turns():
    """A frame of a slow source is delivered after at most one frame of a fast source."""
    consumed, positions_when_queued, frames = [], [], 15

    class Slow(ScriptedSource):
        def images(self):
            for number in range(frames):
                yield np.full((4, 4, 3), number, np.uint8), "slow"
                positions_when_queued.append(len(consumed))  # the frame has been queued
                while consumed.count("slow") <= number:
                    time.sleep(0.001)

    addresses = [
        Address("fast", True, True, lambda: ScriptedSource(10**9)),
        Address("slow", True, True, lambda: Slow(frames)),
    ]
    with SourceSupervisor(addresses) as running:
        for event in running:
            if isinstance(event, Frame):
                consumed.append(event.source)
                if consumed.count("slow") == frames:
                    break
    positions = [position for position, feed in enumerate(consumed) if feed == "slow"]
    assert all(position <= since + 1 for position, since in zip(positions, positions_when_queued, strict=False))
    assert "fast" in consumed


def test_threads_end_after_an_early_exit_from_the_loop():
    before = threading.active_count()
    with supervisor_of(ScriptedSource(frames=10_000), live=False) as running:
        next(iter(running))
    assert threading.active_count() == before


def wait_for(condition, seconds=3.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_video_is_classified_frame_by_frame(bundle, video):
    with Camera.open(bundle, str(video)) as camera:
        results = list(camera)
    assert [result.frame.index for result in results] == list(range(30))
    assert all(result.age_ms >= 0 for result in results)
    right = [result.classification.label == str(i // 3) for i, result in enumerate(results)]
    assert sum(right) >= 20


def test_camera_prints_json_lines(bundle, video, edgerec):
    result = edgerec("camera", bundle, "--source", video, "--headless", "--json", "--max-frames", 4)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    objects = [value for value in lines if value["event"] == "result"]
    assert [value["state"] for value in lines if value["event"] == "state"] == ["connecting", "live"]
    assert [value["frame"] for value in objects] == [0, 1, 2, 3]
    assert list(objects[0])[1:] == [
        "frame",
        "source",
        "captured_s",
        "age_ms",
        "label",
        "index",
        "score",
        "categories",
        "decision",
    ]
    assert abs(objects[0]["captured_s"] - time.time()) < 120
    assert objects[0]["source"] == str(video)


def test_decision_options_apply_to_streams_but_not_to_folders(bundle, video, golden_images, edgerec, tmp_path):
    """Smoothing, which is part of the bundle, must not be applied to the unrelated images of a folder."""
    spec = Bundle.open(bundle).manifest.decision
    assert spec.smoothing == "mean"
    assert 0.05 < spec.temperature != 1.0

    def decided_labels(source, *options):
        process = edgerec("camera", bundle, "--source", source, "--headless", "--json", *options)
        assert process.returncode == 0, process.stderr
        values = [json.loads(line) for line in process.stdout.splitlines()]
        return [value["decision"]["label"] for value in values if value["event"] == "result"]

    smoothed = decided_labels(video)
    voted = decided_labels(video, "--decision", "smoothing=vote", "--decision", "memory=9", "--decision", "votes=9")
    assert len(set(voted)) == 1 < len(set(smoothed))
    single = decided_labels(video, "--decision", "smoothing=none")
    with Camera.open(bundle, str(video)) as camera:
        assert single == [result.classification.label for result in camera]
    for path in golden_images:
        shutil.copy(path, tmp_path)
    assert len(set(decided_labels(tmp_path))) >= 7
    with pytest.raises(RecipeError, match=r"decision.smoothing is 'often'; expected one of none, mean, vote"):
        Camera.open(bundle, str(video), decision={"smoothing": "often"})
    with pytest.raises(RecipeError, match="unknown decision setting 'smooth'; did you mean 'smoothing'"):
        Camera.open(bundle, str(video), decision={"smooth": 1})


def test_headless_prints_one_line_per_frame(bundle, video, edgerec):
    result = edgerec("camera", bundle, "--source", video, "--headless")
    assert len(result.stdout.splitlines()) == 30
    assert result.stdout.startswith("frame 0  ")


def test_folder_of_images_is_a_source(bundle, golden_images, tmp_path, edgerec):
    for path in golden_images:
        shutil.copy(path, tmp_path)
    (tmp_path / "golden.json").write_text("{}")
    (tmp_path / "damaged.PNG").write_bytes(b"damaged")
    (tmp_path / "no-suffix").write_bytes(b"damaged")
    result = edgerec("camera", bundle, "--source", tmp_path, "--headless", "--json")
    objects = [value for value in map(json.loads, result.stdout.splitlines()) if value["event"] == "result"]
    assert [value["source"] for value in objects] == [str(tmp_path / p.name) for p in golden_images]
    assert "damaged.PNG was skipped: OpenCV cannot decode it" in result.stderr
    assert "no-suffix was skipped" in result.stderr
    assert "golden.json" not in result.stderr


def test_frames_match_predict(bundle, golden_images, tmp_path):
    """An image has the same scores as a frame of a folder and in `predict`."""
    from edgerec import predict

    shutil.copy(golden_images[4], tmp_path)
    with Camera.open(bundle, str(tmp_path)) as camera:
        (results,) = list(camera)
    (predicted,) = predict(bundle, [golden_images[4]])
    assert np.array_equal(results.classification.scores, predicted.classification.scores)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("97", "camera 97 cannot be opened"),
        ("nothing.mp4", "does not exist: expected a camera (auto, 0, /dev/video0"),
        ("rstp://127.0.0.1/", "did you mean rtsp:?"),
        ("picamera2:0", "needs picamera2"),
        ("/dev/video97", "cannot be opened"),
        ("http://127.0.0.1:9/stream", "cannot be opened"),
        ("env:CAMERA_ADDRESS", "rtsp://127.0.0.1:9/stream cannot be opened"),
    ],
)
def test_missing_source_is_a_one_line_error(bundle, edgerec, source, expected, monkeypatch):
    monkeypatch.setenv("CAMERA_ADDRESS", "rtsp://user:secret@127.0.0.1:9/stream")
    result = edgerec("camera", bundle, "--source", source, "--headless", "--give-up-after", 0)
    message = error_line(result)
    assert expected in message
    assert "secret" not in message


def test_duplicate_source_is_refused(bundle, edgerec):
    expected = error_line(edgerec("camera", bundle, "--headless", "-s", "synthetic:8x8@9", "-s", "synthetic:8x8@9"))
    assert "synthetic:8x8@9 is specified twice" in expected
    expected = error_line(edgerec("camera", bundle, "--headless", "-s", "synthetic:9"))
    assert "expected synthetic:WIDTHxHEIGHT@FPS" in expected
    with pytest.raises(SourceError, match="specified twice") as excinfo:
        Camera.open(bundle, ["rtsp://me:one@127.0.0.1/x", "rtsp://me:two@127.0.0.1/x"])
    assert "one" not in str(excinfo.value)


@pytest.mark.parametrize("source", ["x" * 5000, "a\0b", "rtsp:/me:secret@camera/x", "\ud800"])
def test_invalid_source_is_refused_without_showing_secrets(source):
    with pytest.raises(SourceError, match="does not exist") as excinfo:
        find_source(source)
    assert "secret" not in str(excinfo.value)


def test_file_that_is_not_a_video_and_empty_folder_are_refused(bundle, tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"hello" * 1000)
    with pytest.raises(SourceError, match="not a video"):
        find_source(str(tmp_path / "no.mp4")).open()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no images"):
        find_source(str(tmp_path / "empty")).open()


@pytest.fixture
def mjpeg(golden_images):
    """Run a real MJPEG server that sends 40 images and closes the connection; yield its URL."""
    jpegs = [cv2.imencode(".jpg", cv2.resize(cv2.imread(str(p)), (64, 64)))[1].tobytes() for p in golden_images]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            try:
                for number in range(40):
                    jpeg = jpegs[number % len(jpegs)]
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    self.wfile.write(head.encode() + jpeg + b"\r\n")
                    time.sleep(0.02)
            except OSError:
                pass

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/camera.mjpg"
    server.shutdown()
    thread.join(5)
    server.server_close()


def test_http_stream_that_ends_is_reconnected(bundle, mjpeg):
    with Camera.open(bundle, mjpeg) as camera:
        events = list(islice(camera.events(), 60))
    assert states_of(events)[:5] == ["connecting", "live", "lost", "connecting", "live"]
    (lost, *_) = [event for event in events if isinstance(event, StateChange) and event.state == "lost"]
    assert "stopped after 40 images" in lost.reason


@pytest.mark.parametrize(("event", "expected"), [("state", ""), ("result", "live: 64x64")])
def test_ctrl_c_ends_cleanly(bundle, mjpeg, event, expected):
    """Ctrl-C is sent while the source connects, or after the first result."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgerec", "camera", str(bundle), "--source", mjpeg, "--headless", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert any(json.loads(line)["event"] == event for line in process.stdout)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=10)
    assert process.returncode == 0
    assert expected in error
    assert all(line.startswith(f"{mjpeg}: ") for line in error.splitlines())  # only states, and no traceback
    assert all(json.loads(line) for line in out.splitlines())


def test_camera_ends_if_the_reader_of_its_output_ends(bundle, video):
    command = f"{sys.executable} -m edgerec camera {bundle} --source {video} --headless --json | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == ""
    assert json.loads(result.stdout)["state"] == "connecting"


def test_broken_pipe_closes_the_sink_and_is_not_reported_again_at_exit():
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as out:
        sink = JsonLines(out)
        sink.state(StateChange("made", SourceState.LIVE, time.monotonic()))
        assert sink.closed
        out.flush()  # Python also flushes the stream at exit


def test_error_without_display_suggests_headless(bundle, video, edgerec):
    environment = {key: value for key, value in os.environ.items() if "DISPLAY" not in key}
    assert "--headless" in error_line(edgerec("camera", bundle, "--source", video, env=environment))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("xvfb-run"), reason="no virtual screen (apt install xvfb xauth)")
def test_window_shows_the_video(bundle, video):
    code = (
        "import sys; from edgerec.cli.app import main; "
        f"sys.argv = ['edgerec', 'camera', {str(bundle)!r}, '--source', {str(video)!r}, '--json']; main()"
    )
    result = subprocess.run(
        ["xvfb-run", "-a", sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    if "cannot open windows" in result.stderr:
        pytest.skip("OpenCV without windows is installed")
    assert result.returncode == 0, result.stderr
    assert len([line for line in result.stdout.splitlines() if '"result"' in line]) == 30


def test_overlay_adds_a_bar_below_the_image(bundle, video):
    with Camera.open(bundle, str(video)) as camera:
        result = next(iter(camera))
    image = overlay(result, 25.0)
    assert image.shape == (360 + 56, 480, 3)
    assert image[-56:].max() == 255


def test_frame_rate_follows_the_frames(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("edgerec.camera.sinks.window.time.monotonic", lambda: now[0])
    rate = FrameRate()
    assert rate.tick() == 0.0
    for _ in range(100):
        now[0] += 0.1
        last = rate.tick()
    assert last == pytest.approx(10)


def test_console_sinks_write_results_and_states(bundle, video, capsys):
    with Camera.open(bundle, str(video)) as camera:
        assert camera.run([JsonLines(sys.stdout), TextLines(sys.stderr)], max_frames=2).classified == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 4
    assert len(captured.err.splitlines()) == 2
