"""Tests of the end of a video file or folder: `--loop`, the web page, and host names without ports."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request

from edgerec.camera.pipeline import Camera


class Collector:
    """A sink that keeps the results and closes after a number of them."""

    name = "collector"

    def __init__(self, limit: int) -> None:
        self.results, self._limit = [], limit

    @property
    def closed(self) -> bool:
        return len(self.results) >= self._limit

    def write(self, result) -> None:
        self.results.append(result)

    def state(self, change) -> None:
        pass

    def close(self) -> None:
        pass


def test_loop_starts_a_video_again(bundle, video):
    sink = Collector(limit=70)
    with Camera.open(bundle, str(video), loop=True) as camera:
        report = camera.run([sink], max_frames=70)
    assert report.classified == 70  # the video has 30 frames
    labels = [result.classification.label for result in sink.results]
    assert labels[:30] == labels[30:60]


def test_loop_of_an_unreadable_file_fails_instead_of_spinning(bundle, tmp_path, edgerec):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    result = edgerec("camera", bundle, "--source", tmp_path / "broken.mp4", "--loop", "--json")
    assert result.returncode == 1
    assert "is not a video" in result.stderr


def test_web_page_of_a_video_stays_open_after_the_last_frame(bundle, video):
    command = [sys.executable, "-m", "edgerec", "camera", bundle, "--source", video, "--json", "--web", "127.0.0.1:0"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = ""
        while not url:
            line = process.stderr.readline()
            assert line, process.wait()
            url = "".join(re.findall(r"http://127\.0\.0\.1:\d+\S*", line))
        for line in process.stdout:
            if '"ended"' in line:
                break
        with urllib.request.urlopen(url, timeout=10) as response:
            assert response.status == 200
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=15)
    assert process.returncode == 0, error
    assert "Traceback" not in error


def test_web_accepts_a_host_name_without_a_port(bundle, edgerec):
    command = ("camera", bundle, "--source", "synthetic:64x64@0", "--json", "--max-frames", "2")
    result = edgerec(*command, "--metrics", "localhost", "--web", "localhost:0")
    assert result.returncode == 0, result.stderr
    result = edgerec("camera", "--web", "localhost", bundle, "--source", "nowhere")
    assert "the source 'nowhere' does not exist" in result.stderr
