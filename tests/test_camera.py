"""Frames in, answers out."""

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

import cv2
import numpy as np
import pytest

from edgerec import Camera
from edgerec.camera.reader import FrameReader
from edgerec.camera.sinks.text import JsonLines, TextLines
from edgerec.camera.sinks.window import FrameRate, overlay
from edgerec.camera.sources import open_source
from edgerec.camera.sources.opencv import without_password
from edgerec.errors import SourceError
from tests.conftest import one_line


class Made:
    """A source whose frames the test decides."""

    name = "made"

    def __init__(self, live, frames, pause_s=0.0, error=None):
        self.live, self._frames, self._pause_s, self._error = live, frames, pause_s, error
        self.given = 0
        self.was_closed = False

    def images(self):
        for number in range(self._frames):
            time.sleep(self._pause_s)
            self.given += 1
            yield np.full((4, 4, 3), number % 256, np.uint8), self.name
        if self._error:
            raise self._error

    def close(self):
        self.was_closed = True


def test_a_file_drops_nothing():
    source = Made(live=False, frames=50)
    with FrameReader(source) as reader:
        frames = []
        for frame in reader:
            time.sleep(0.001)
            frames.append(frame)
    assert [frame.index for frame in frames] == list(range(50))
    assert [frame.image[0, 0, 0] for frame in frames] == list(range(50))
    assert source.was_closed


def test_a_file_is_not_read_far_ahead():
    source = Made(live=False, frames=1000)
    with FrameReader(source) as reader:
        next(iter(reader))
        time.sleep(0.1)
        assert source.given <= 5


def test_of_a_live_source_the_newest_frame_wins():
    source = Made(live=True, frames=100, pause_s=0.002)
    seen = []
    with FrameReader(source) as reader:
        for frame in reader:
            newest = source.given - 1
            seen.append((frame.index, newest))
            time.sleep(0.03)
    assert len(seen) < 50
    assert [index for index, _ in seen] == sorted({index for index, _ in seen})
    assert all(newest - index <= 1 for index, newest in seen)


def test_the_reader_s_failure_is_raised_where_the_user_stands():
    with (
        FrameReader(Made(live=True, frames=3, error=SourceError("gone"))) as reader,
        pytest.raises(SourceError, match="gone"),
    ):
        list(reader)


def test_silence_is_an_error():
    with (
        FrameReader(Made(live=True, frames=1, pause_s=1.0), silence_s=0.1) as reader,
        pytest.raises(SourceError, match=r"no picture for 0\.1 s"),
    ):
        list(reader)


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    with FrameReader(Made(live=False, frames=10_000)) as reader:
        next(iter(reader))
    assert threading.active_count() == before


def test_video_is_classified_frame_by_frame(bundle, video):
    with Camera.open(bundle, str(video)) as camera:
        results = list(camera)
    assert [result.frame.index for result in results] == list(range(30))
    assert all(result.age_ms >= 0 for result in results)
    right = [result.classification.label == str(i // 3) for i, result in enumerate(results)]
    assert sum(right) >= 20


def test_camera_speaks_json(bundle, video, edgerec):
    done = edgerec("camera", bundle, "--source", video, "--headless", "--json", "--max-frames", 4)
    assert (done.returncode, done.stderr) == (0, "")
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [value["frame"] for value in objects] == [0, 1, 2, 3]
    assert list(objects[0]) == ["frame", "source", "captured_s", "age_ms", "label", "index", "score", "categories"]
    assert abs(objects[0]["captured_s"] - time.time()) < 120
    assert objects[0]["source"] == str(video)


def test_headless_prints_a_line_per_frame(bundle, video, edgerec):
    done = edgerec("camera", bundle, "--source", video, "--headless")
    assert len(done.stdout.splitlines()) == 30
    assert done.stdout.startswith("frame 0  ")


def test_folder_of_pictures_is_a_source(bundle, pictures, tmp_path, edgerec):
    for picture in pictures:
        shutil.copy(picture, tmp_path)
    (tmp_path / "note.txt").write_text("hello")
    done = edgerec("camera", bundle, "--source", tmp_path, "--headless", "--json")
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [value["source"] for value in objects] == [str(tmp_path / p.name) for p in pictures]
    assert "note.txt is no picture: skipped" in done.stderr


def test_frames_match_predict(bundle, pictures, tmp_path):
    """The same picture gets the same scores by either way."""
    from edgerec import predict

    shutil.copy(pictures[4], tmp_path)
    with Camera.open(bundle, str(tmp_path)) as camera:
        (seen,) = list(camera)
    (predicted,) = predict(bundle, [pictures[4]])
    assert np.array_equal(seen.classification.scores, predicted.classification.scores)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("97", "camera 97 does not open"),
        ("nothing.mp4", "does not exist"),
        ("http://127.0.0.1:9/stream", "does not open"),
        ("rtsp://user:secret@127.0.0.1:9/stream", "rtsp://127.0.0.1:9/stream does not open"),
    ],
)
def test_source_that_is_not_there(bundle, edgerec, source, said):
    message = one_line(edgerec("camera", bundle, "--source", source, "--headless"))
    assert said in message
    assert "secret" not in message


def test_source_that_is_no_video(bundle, tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"hello" * 1000)
    with pytest.raises(SourceError, match="no video"):
        open_source(str(tmp_path / "no.mp4"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no pictures"):
        open_source(str(tmp_path / "empty"))
    assert without_password("rtsp://a:b@c/d") == "rtsp://c/d"


@pytest.fixture
def mjpeg(pictures):
    """A real MJPEG server on loopback that sends 40 pictures and hangs up."""
    jpegs = [cv2.imencode(".jpg", cv2.resize(cv2.imread(str(p)), (64, 64)))[1].tobytes() for p in pictures]

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


def test_http_stream_is_live_and_its_end_is_an_error(bundle, mjpeg):
    with Camera.open(bundle, mjpeg) as camera:
        results = []
        with pytest.raises(SourceError, match="stopped giving pictures"):
            results.extend(camera)
    assert len(results) >= 5
    assert open_source(mjpeg).live


def test_ctrl_c_ends_cleanly(bundle, mjpeg):
    process = subprocess.Popen(
        [sys.executable, "-m", "edgerec", "camera", str(bundle), "--source", mjpeg, "--headless", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=10)
    assert (process.returncode, error) == (0, "")
    assert all(json.loads(line) for line in out.splitlines())


def test_head_may_have_enough(bundle, video):
    command = f"{sys.executable} -m edgerec camera {bundle} --source {video} --headless --json | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert json.loads(done.stdout)["frame"] == 0


def test_no_display_says_headless(bundle, video, edgerec):
    environment = {key: value for key, value in os.environ.items() if "DISPLAY" not in key}
    assert "--headless" in one_line(edgerec("camera", bundle, "--source", video, env=environment))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("xvfb-run"), reason="no virtual screen (apt install xvfb xauth)")
def test_window_shows_the_video(bundle, video):
    code = (
        "import sys; from edgerec.cli.app import main; "
        f"sys.argv = ['edgerec', 'camera', {str(bundle)!r}, '--source', {str(video)!r}, '--json']; main()"
    )
    done = subprocess.run(
        ["xvfb-run", "-a", sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    if "has no windows" in done.stderr:
        pytest.skip("OpenCV without windows is installed")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 30


def test_overlay_writes_under_the_picture(bundle, video):
    with Camera.open(bundle, str(video)) as camera:
        result = next(iter(camera))
    shown = overlay(result, 25.0)
    assert shown.shape == (360 + 56, 480, 3)
    assert shown[-56:].max() == 255


def test_frame_rate_follows_the_frames(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("edgerec.camera.sinks.window.time.monotonic", lambda: now[0])
    rate = FrameRate()
    assert rate.tick() == 0.0
    for _ in range(100):
        now[0] += 0.1
        last = rate.tick()
    assert last == pytest.approx(10)


def test_sinks_write_what_they_are_given(bundle, video, capsys):
    with Camera.open(bundle, str(video)) as camera:
        assert camera.run([JsonLines(sys.stdout), TextLines(sys.stderr)], max_frames=2) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == len(captured.err.splitlines()) == 2
