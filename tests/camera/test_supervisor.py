"""Tests with real servers that sources recover from all faults, and deliver only complete images that were sent."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from edgerec.camera.frame import Frame
from edgerec.camera.reconnection import Timeouts
from edgerec.camera.source_state import SourceState, StateChange
from edgerec.camera.sources import Address, CaptureFormat, find_source, opencv_capture
from edgerec.camera.sources.jpeg import JpegSplitter, decoded
from edgerec.camera.sources.opencv_capture import OpenCVSource
from edgerec.camera.sources.sockets import PeerSocket
from edgerec.camera.supervisor import SourceSupervisor
from edgerec.errors import SourceError
from edgerec.runtime.device_users import programs_using
from tests import servers
from tests.servers import (
    HEAD,
    NUMBER_COUNT,
    MjpegServer,
    RtspServer,
    image_part,
    jpeg,
    number_of,
    numbered_image,
    stream_images,
    unresponsive_port,
)

# Maximum time in seconds for a reconnection. It usually takes less than 3 s, but longer on a busy machine.
RECONNECT_LIMIT_S = 10.0
TIMEOUTS = Timeouts(open_s=3.0, stale_s=0.5, lost_s=1.0, first_wait_s=0.05, longest_wait_s=1.0)


class WatchedFeeds:
    """Reads sources in a thread, and stores their frames, state changes and errors."""

    def __init__(self, *addresses: Address, timeouts: Timeouts = TIMEOUTS) -> None:
        self._addresses, self._timeouts = addresses, timeouts
        self.frames: list[Frame] = []
        self.changes: list[StateChange] = []
        self.errors: list[SourceError] = []

    def __enter__(self) -> WatchedFeeds:
        self._before = set(threading.enumerate())
        self._children = child_processes()
        self._supervisor = SourceSupervisor(self._addresses, self._timeouts)
        self._supervisor.__enter__()
        self._thread = threading.Thread(target=self._read_events, name="test-reader", daemon=True)
        self._thread.start()
        return self

    def _read_events(self) -> None:
        for event in self._supervisor:
            (self.frames if isinstance(event, Frame) else self.changes).append(event)

    def __exit__(self, kind, *_) -> None:
        self._supervisor.__exit__(None, None, None)
        self.errors = self._supervisor.errors
        if kind is None:
            # A read by FFmpeg may not be interruptible; it ends by FFmpeg's own timeout.
            wait_for(lambda: not self.running_threads(), 30, lambda: f"left over: {self.running_threads()}")
            assert len(child_processes()) <= len(self._children)  # a restarted server is a new process

    def running_threads(self) -> list[str]:
        """Return the names of the threads of the sources that are still running."""
        return [
            thread.name
            for thread in set(threading.enumerate()) - self._before
            if thread.name.startswith("edgerec") and thread.is_alive()
        ]

    def wait_for_frames(self, step: str, count: int = 3) -> float:
        """Wait for ``count`` new frames, and return the number of seconds until the first of them."""
        start_s, before = time.monotonic(), len(self.frames)
        wait_for(lambda: len(self.frames) >= before + count, RECONNECT_LIMIT_S, lambda: f"{step}: {self.states()}")
        elapsed_s = self.frames[before].grabbed_s - start_s
        print(f"{step}: live after {elapsed_s:.2f} s")
        return elapsed_s

    def states(self) -> list[str]:
        """Return the states of the sources in chronological order."""
        return [str(change.state) for change in self.changes]

    def wait_until(self, state: SourceState, since: int = 0) -> None:
        """Wait for a change to ``state``, and ignore the first ``since`` state changes."""
        wait_for(lambda: str(state) in self.states()[since:], 20, lambda: f"never {state}: {self.states()}")

    def assert_only_served(self) -> None:
        """Assert that each frame is an image that the server has sent, and not incomplete, black or gray."""
        unknown = [frame.index for frame in self.frames if number_of(frame.image) is None]
        assert not unknown, f"{len(unknown)} of {len(self.frames)} images were never sent: {unknown[:5]}"


def watch(server: MjpegServer | RtspServer, timeouts: Timeouts = TIMEOUTS) -> WatchedFeeds:
    return WatchedFeeds(find_source(server.url), timeouts=timeouts)


def wait_for(condition, seconds, message=lambda: ""):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message()
        time.sleep(0.01)


def child_processes() -> set[str]:
    """Return the IDs of the child processes of this process."""
    pids: set[str] = set()
    for task in os.scandir("/proc/self/task") if os.path.isdir("/proc/self/task") else ():
        with contextlib.suppress(OSError), open(f"{task.path}/children") as listed:
            pids |= set(listed.read().split())
    return pids


def test_image_numbers_can_be_read_after_jpeg_compression():
    received = [number_of(cv2.imdecode(np.frombuffer(jpeg(n), np.uint8), 1)[:, :, ::-1]) for n in range(NUMBER_COUNT)]
    assert received == list(range(NUMBER_COUNT))
    mixed = numbered_image(7).copy()
    mixed[80:] = 128
    assert number_of(mixed[:, :, ::-1]) is None
    assert number_of(np.zeros((120, 160, 3), np.uint8)) is None


def test_source_recovers_after_ten_restarts_of_the_server():
    with MjpegServer() as server, watch(server) as camera:
        camera.wait_for_frames("first")
        times = []
        for _ in range(10):
            before_count = len(camera.changes)
            server.kill()
            camera.wait_until(SourceState.LOST, before_count)
            server.start()
            times.append(camera.wait_for_frames("restarted"))
    camera.assert_only_served()
    numbers = [number_of(frame.image) for frame in camera.frames]
    steps = np.diff(numbers) % NUMBER_COUNT
    assert steps.min() >= 1, "an image was delivered twice"
    print(f"back after {max(times):.2f} s at most")


def silent(peer):
    peer.send(HEAD)
    peer.send_images(5)
    peer.wait(60)


def send_nothing(peer):
    peer.wait(60)


def half_then_silent(peer):
    peer.send(HEAD)
    peer.send_images(3)
    complete = image_part(jpeg(40))
    peer.send(complete[: len(complete) // 2])
    peer.wait(60)


def half_then_closed(peer):
    peer.send(HEAD)
    peer.send_images(3)
    complete = image_part(jpeg(40))
    peer.send(complete[: len(complete) // 2])


def drop_by_drop(peer):
    peer.send(HEAD)
    peer.send_images(2)
    for byte in image_part(jpeg(40)):
        peer.send(bytes([byte]))
        peer.wait(1)


def head_drop_by_drop(peer):
    for byte in HEAD * 10:
        peer.send(bytes([byte]))
        peer.wait(1)


def endless_part(peer):
    peer.send(HEAD)
    peer.send_images(2)
    peer.send(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg(40)[:400])
    while True:
        peer.send(b"\x55" * 100_000)
        peer.wait(0.001)


def endless_noise(peer):
    peer.send(HEAD)
    peer.send_images(2)
    noise = random.Random(0)
    while True:
        peer.send(noise.randbytes(50_000))
        peer.wait(0.001)


def not_found(peer):
    peer.send(b"HTTP/1.0 404 Not Found\r\n\r\n")


def no_http(peer):
    peer.send(b"SSH-2.0-OpenSSH_9.2\r\n")


def hang_up(peer):
    """Close the connection without sending data."""


@pytest.mark.parametrize(
    "fault",
    [
        silent,
        send_nothing,
        half_then_silent,
        half_then_closed,
        drop_by_drop,
        head_drop_by_drop,
        endless_part,
        endless_noise,
        not_found,
        no_http,
        hang_up,
    ],
)
def test_source_recovers_from_faults_of_a_connection(fault):
    """The first and the third connection have the fault; the second and the fourth connection work."""

    def send_five_images(peer):
        peer.send(HEAD)
        peer.send_images(5)

    with MjpegServer(fault, send_five_images, fault, stream_images) as server, watch(server) as camera:
        wait_for(lambda: server.connections >= 4, 30, lambda: f"{camera.states()}")
        camera.wait_for_frames(fault.__name__)
    camera.assert_only_served()
    assert "lost" in camera.states()
    assert camera.states()[-1] == "live"


def test_closing_does_not_wait_for_a_silent_server():
    with MjpegServer(silent) as server, watch(server, Timeouts()) as camera:
        wait_for(lambda: len(camera.frames) == 5, 10)
        start_s = time.monotonic()
        camera.__exit__(None)
        assert time.monotonic() - start_s < 5
        assert camera.running_threads() == []


def test_incomplete_image_in_a_stream_is_dropped():
    """An image is cut at various positions, with or without a Content-Length. All complete images are delivered."""
    complete = jpeg(41)
    cuts = [0, 1, 3, 30, 300, len(complete) // 2, len(complete) - 40, len(complete) - 2, len(complete) - 1]

    def script(peer):
        peer.send(HEAD)
        for cut in cuts:
            for length in (True, False):
                headers = image_part(complete, length=length).split(complete)[0]
                peer.send(headers + complete[:cut] + b"\r\n")
                peer.send_images(2)
        peer.send_images()

    with MjpegServer(script) as server, watch(server) as camera:
        wait_for(lambda: len(camera.frames) > 4 * len(cuts) + 5, 30)
    camera.assert_only_served()
    assert all(number_of(frame.image) != 41 or frame.index > 36 for frame in camera.frames)
    assert camera.states() == ["connecting", "live"]


def test_garbage_between_parts_is_ignored():
    noise = random.Random(1)

    def script(peer):
        peer.send(HEAD)
        while True:
            peer.send(noise.randbytes(noise.randrange(3000)).replace(b"\xff\xd8", b"") + b"\r\n")
            peer.send_images(1)

    with MjpegServer(script) as server, watch(server) as camera:
        wait_for(lambda: len(camera.frames) > 30, 30)
    camera.assert_only_served()
    assert camera.states() == ["connecting", "live"]


def test_resolution_and_color_may_change_in_a_stream():
    def script(peer):
        peer.send(HEAD)
        for image_options in (
            {},
            {"size": (320, 240)},
            {"gray": True},
            {"size": (64, 48)},
            {"size": (320, 240), "gray": True},
        ):
            peer.send_images(5, **image_options)
        peer.send_images()

    with MjpegServer(script) as server, watch(server) as camera:
        wait_for(lambda: len(camera.frames) > 30, 30)
    camera.assert_only_served()
    assert {frame.image.shape for frame in camera.frames} == {(120, 160, 3), (240, 320, 3), (48, 64, 3)}
    assert camera.states() == ["connecting", "live"]
    assert camera.changes[1].reason == "160x120, MJPG"


def test_source_connects_after_refused_connections():
    with MjpegServer() as server:
        server.kill()
        with watch(server) as camera:
            camera.wait_until(SourceState.LOST)
            server.start()
            camera.wait_for_frames("refused before")
            server.kill()
    camera.assert_only_served()
    assert "cannot be opened" in next(change.reason for change in camera.changes if change.state == "lost")


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_unreachable_host_times_out(scheme):
    with unresponsive_port() as port:
        start_s = time.monotonic()
        with pytest.raises(SourceError, match="cannot be opened"):
            find_source(f"{scheme}://127.0.0.1:{port}/camera").open()
        assert time.monotonic() - start_s < 30


def test_slow_consumer_receives_the_newest_image():
    with MjpegServer() as server, SourceSupervisor([find_source(server.url)], TIMEOUTS) as supervisor:
        lags = []
        for event in supervisor:
            if isinstance(event, Frame):
                served = next(server.numbers) - 1  # this call also skips one number
                lags.append((served - number_of(event.image)) % NUMBER_COUNT)
                time.sleep(0.15)
                if len(lags) == 12:
                    break
        assert sorted(lags)[6] <= 2, lags


@pytest.mark.parametrize("scheme", ["basic", "digest"])
def test_password_is_sent_after_a_challenge_and_not_shown(scheme):
    def script(peer):
        request = peer.request.decode()
        basic = "Basic " + base64.b64encode(b"me:se@cret").decode()
        right = basic in request if scheme == "basic" else 'Digest username="me"' in request and "response=" in request
        if right:
            stream_images(peer)
        challenge = (
            'Basic realm="c"' if scheme == "basic" else 'Digest realm="c", nonce="abc", qop="auth", algorithm=MD5'
        )
        peer.send(f"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n\r\n".encode())

    with MjpegServer(script) as server:
        address = find_source(server.url.replace("//", "//me:se%40cret@"))
        assert "cret" not in address.name
        with WatchedFeeds(address) as camera:
            camera.wait_for_frames(scheme)
        with pytest.raises(SourceError, match="requires a user name and password"):
            find_source(server.url).open()


@pytest.mark.parametrize("asked", ["Digest nonce=", 'Digest realm="c", nonce', "Digest", "Basic, Digest nonce="])
def test_invalid_authentication_challenge_is_an_error(asked):
    def script(peer):
        peer.send(f"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {asked}\r\nContent-Length: 0\r\n\r\n".encode())

    with MjpegServer(script) as server, pytest.raises(SourceError):
        find_source(server.url.replace("//", "//me:secret@")).open()


def test_password_is_not_sent_to_another_server_after_a_redirect():
    received = []

    def challenge_client(peer):
        received.append(peer.request)
        peer.send(b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="c"\r\nContent-Length: 0\r\n\r\n')

    with MjpegServer(challenge_client) as other_server:

        def script(peer):
            peer.send(f"HTTP/1.1 302 Found\r\nLocation: http://localhost:{other_server.port}/\r\n\r\n".encode())

        with MjpegServer(script) as server, pytest.raises(SourceError, match="user name and password"):
            find_source(server.url.replace("//", "//me:secret@")).open()
    assert received
    assert not any(b"Authorization" in request for request in received)


def test_chunked_response_without_part_lengths_is_read():
    def script(peer):
        peer.send(HEAD.replace(b"HTTP/1.0", b"HTTP/1.1").replace(b"Conn", b"Transfer-Encoding: chunked\r\nConn"))
        number = 0
        while True:
            content = image_part(jpeg(number % NUMBER_COUNT), length=False)
            for at in range(0, len(content), 700):
                piece = content[at : at + 700]
                peer.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            number += 1
            peer.wait(0.02)

    with MjpegServer(script) as server, watch(server) as camera:
        camera.wait_for_frames("chunked", 20)
    camera.assert_only_served()


def test_splitter_finds_complete_files_for_any_chunk_size():
    rng = random.Random(2)
    thumbnail = jpeg(3, (64, 48))
    inside = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    files = [jpeg(n, (64 + 16 * (n % 3), 48)) for n in range(20)]
    files = [file[:2] + inside + file[2:] if n % 2 else file for n, file in enumerate(files)]
    stream = b"".join(rng.randbytes(50).replace(b"\xff", b"") + image_part(file) for file in files)
    for step in (1, 7, 1000, len(stream)):
        splitter = JpegSplitter(b"--frame")
        split_files = [jpeg for at in range(0, len(stream), step) for jpeg in splitter.feed(stream[at : at + step])]
        assert split_files == files


@pytest.mark.parametrize("reduction", [1, 4])
@pytest.mark.parametrize("interval", [0, 2])
def test_truncated_jpeg_with_an_end_marker_is_dropped(interval, reduction):
    """A JPEG file is cut in the middle, and has an end marker. libjpeg fills the missing pixels with gray."""
    rng = random.Random(4)
    image = cv2.resize(np.random.default_rng(4).integers(0, 256, (15, 20, 3), np.uint8), (157, 119))
    options = [cv2.IMWRITE_JPEG_RST_INTERVAL, interval, cv2.IMWRITE_JPEG_QUALITY, 95]
    complete = cv2.imencode(".jpg", image, options)[1].tobytes()
    scan = complete.rindex(b"\xff\xda") + 14
    assert np.array_equal(decoded(cv2, complete), cv2.imdecode(np.frombuffer(complete, np.uint8), 1)[..., ::-1])
    refused = 0
    for _ in range(100):
        cut = rng.randrange(scan, len(complete) - 200)
        refused += decoded(cv2, complete[:cut] + b"\xff\xd9", reduction) is None
    assert refused > 95  # a cut exactly at a restart marker may not be detected


def test_jpeg_with_a_missing_restart_marker_is_dropped():
    image = np.random.default_rng(5).integers(0, 256, (120, 160, 3), np.uint8)
    complete = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_RST_INTERVAL, 10])[1].tobytes()
    assert decoded(cv2, complete) is not None
    at = complete.index(b"\xff\xd3")
    assert decoded(cv2, complete[:at] + complete[at + 2 :]) is None
    assert decoded(cv2, complete[: at - 100] + complete[at + 100 :]) is None


@pytest.mark.parametrize("quality", [50, 95])
def test_gray_image_is_not_mistaken_for_an_incomplete_one(quality):
    gray = np.full((120, 160, 3), 128, np.uint8)
    for image in (gray, gray[..., 0], numbered_image(5) // 2 + 64):
        image[-40:] = 128
        assert decoded(cv2, cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()) is not None


def test_splitter_accepts_random_bytes():
    rng = random.Random(3)
    complete = image_part(jpeg(5)) * 3
    for _ in range(2000):
        stream = bytearray(complete)
        for _ in range(rng.randrange(1, 20)):
            stream[rng.randrange(len(stream))] = rng.randrange(256)
        splitter = JpegSplitter(b"--frame")
        for file in splitter.feed(bytes(stream)):
            assert file[:2] == b"\xff\xd8"
            assert file[-2:] == b"\xff\xd9"
            image = decoded(cv2, file)
            assert image is None or image.size


def test_truncated_video_delivers_its_complete_frames(tmp_path):
    path = tmp_path / "numbers.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (160, 120))
    for number in range(20):
        writer.write(numbered_image(number))
    writer.release()
    content = path.read_bytes()
    starts = [at for at in range(len(content)) if content[at : at + 3] == b"\xff\xd8\xff"]
    end = content.index(b"\xff\xd9", starts[10])
    for cut in (starts[10] + 5, (starts[10] + end) // 2, end - 20):
        path.write_bytes(content[:cut])
        with WatchedFeeds(find_source(str(path))) as camera:
            wait_for(lambda: "ended" in camera.states(), 20)
        assert [number_of(frame.image) for frame in camera.frames] == list(range(10))


def test_unplugged_camera_is_reconnected(tmp_path):
    """A video file replaces the camera. It is deleted to unplug the camera, and copied to plug it in again."""
    path, original = tmp_path / "video9.avi", tmp_path / "original.avi"
    writer = cv2.VideoWriter(str(original), cv2.VideoWriter_fourcc(*"MJPG"), 25, (160, 120))
    for number in range(30):
        writer.write(numbered_image(number))
    writer.release()
    shutil.copy(original, path)

    def open_device():
        capture = cv2.VideoCapture(str(path))
        if not capture.isOpened():
            raise SourceError(f"{path} cannot be opened")
        return OpenCVSource(capture, str(path), live=True)

    with WatchedFeeds(Address("camera", True, False, open_device)) as camera:
        camera.wait_until(SourceState.LIVE)
        path.unlink()
        camera.wait_until(SourceState.LOST)
        wait_for(lambda: camera.states().count("lost") >= 3, 10)
        shutil.copy(original, path)
        camera.wait_for_frames("device", 1)
    camera.assert_only_served()
    assert any("cannot be opened" in change.reason for change in camera.changes)


def test_missing_device_ends_immediately():
    with WatchedFeeds(find_source("/dev/video97")) as camera:
        wait_for(lambda: "ended" in camera.states(), 10)
    assert camera.states() == ["connecting", "ended"]
    assert "cannot be opened" in str(camera.errors[0])


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux lists the programs that use a file")
def test_error_names_the_program_that_uses_the_camera(tmp_path):
    device = tmp_path / "video0"
    device.write_bytes(b"")
    assert programs_using(device) == []
    code = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(device)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        (user,) = programs_using(device)
        assert user.endswith(f"(process {process.pid})")
        with pytest.raises(SourceError, match=r"is in use by .*python.* \(process \d+\)"):
            OpenCVSource.camera(str(device), CaptureFormat())
        process.stdin.close()


def test_source_recovers_within_seconds_after_a_long_outage():
    """With the default timeouts, the server is down for longer than the longest pause between two attempts."""
    with MjpegServer() as server, watch(server, Timeouts()) as camera:
        camera.wait_for_frames("first")
        before_count = len(camera.changes)
        server.kill()
        camera.wait_until(SourceState.LOST, before_count)
        wait_for(lambda: camera.states()[before_count:].count("lost") >= 5, 30)
        server.start()
        camera.wait_for_frames("after a long absence")
    camera.assert_only_served()


def test_ffmpeg_writes_nothing_to_stderr(tmp_path):
    """Various broken streams are read in a separate process, which must write nothing to stderr."""
    path = tmp_path / "torn.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (160, 120))
    for number in range(20):
        writer.write(numbered_image(number))
    writer.release()
    content = bytearray(path.read_bytes())
    del content[len(content) // 2 :]
    path.write_bytes(content)
    code = """
import sys, json
from edgerec.camera.sources import find_source
from edgerec.errors import EdgerecError
results = []
for uri in sys.argv[1:]:
    try:
        source = find_source(uri).open()
        results.append(sum(1 for _ in source.images()))
    except EdgerecError as error:
        results.append(str(error))
print(json.dumps(results))
"""
    port = servers.free_port()

    def no_video(peer):
        peer.send(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp4\r\n\r\n" + b"hello" * 1000)

    with MjpegServer(no_video) as server:
        uris = [str(path), server.url, f"rtsp://127.0.0.1:{port}/x", f"http://127.0.0.1:{port}/x", "/dev/video97", "98"]
        result = subprocess.run(
            [sys.executable, "-c", code, *uris], capture_output=True, text=True, timeout=120, check=True
        )
    assert result.stderr == ""
    frame_count, *messages = json.loads(result.stdout)
    assert frame_count > 3
    assert all("cannot be opened" in message for message in messages), messages


@pytest.mark.slow
@pytest.mark.parametrize("pause_s", [60, 1])
def test_ffmpeg_timeouts_end_a_silent_or_slow_stream(tmp_path, pause_s):
    """FFmpeg reads a stream whose server sends half of a file and then nothing, or one byte per second."""
    path = tmp_path / "numbers.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (160, 120))
    for number in range(20):
        writer.write(numbered_image(number))
    writer.release()
    content = path.read_bytes()

    def script(peer):
        peer.send(b"HTTP/1.0 200 OK\r\nContent-Type: video/x-msvideo\r\n\r\n" + content[:11_000])
        for byte in content[11_000:]:
            peer.send(bytes([byte]))
            peer.wait(pause_s)

    with MjpegServer(script) as server:
        source, received, start_s = find_source(server.url).open(), [], time.monotonic()
        with pytest.raises(SourceError, match="stopped after"):
            received.extend(number_of(image) for image, _ in source.images())
        source.close()
    assert time.monotonic() - start_s < 30
    assert received == list(range(len(received)))
    assert received


@pytest.mark.slow
@pytest.mark.parametrize("pause_s", [60, 1])
def test_silent_rtsp_server_times_out(pause_s):
    def script(peer):
        for byte in b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nX: " + b"x" * 60:
            peer.wait(pause_s)
            peer.send(bytes([byte]))

    with MjpegServer(script) as server:
        start_s = time.monotonic()
        with pytest.raises(SourceError, match="cannot be opened"):
            find_source(server.url.replace("http", "rtsp")).open()
        assert time.monotonic() - start_s < 30


@pytest.fixture(scope="module")
def rtsp_folder(tmp_path_factory):
    if reason := servers.rtsp_unavailable_reason():
        pytest.skip(reason)
    return tmp_path_factory.mktemp("rtsp")


@pytest.mark.nightly
def test_source_recovers_after_ten_restarts_of_the_rtsp_server(rtsp_folder):
    timeouts = Timeouts(open_s=8.0, stale_s=0.7, lost_s=1.5, first_wait_s=0.05, longest_wait_s=1.0)
    with RtspServer(rtsp_folder) as server, watch(server, timeouts) as camera:
        camera.wait_until(SourceState.LIVE)
        times = []
        for _ in range(10):
            before_count = len(camera.changes)
            server.kill()
            camera.wait_until(SourceState.LOST, before_count)
            server.start()
            times.append(camera.wait_for_frames("RTSP restarted"))
    camera.assert_only_served()
    print(f"back after {max(times):.2f} s at most")


@pytest.mark.slow
def test_source_recovers_from_a_silent_rtsp_connection(rtsp_folder):
    timeouts = Timeouts(open_s=8.0, stale_s=0.7, lost_s=1.5, first_wait_s=0.05, longest_wait_s=1.0)
    with RtspServer(rtsp_folder) as server, watch(server, timeouts) as camera:
        camera.wait_until(SourceState.LIVE)
        before_count = len(camera.changes)
        server.freeze()
        camera.wait_until(SourceState.STALE, before_count)
        camera.wait_until(SourceState.LOST, before_count)
        server.kill()
        server.start()
        camera.wait_for_frames("RTSP after silence")
    camera.assert_only_served()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux lists a process's sockets")
def test_closing_interrupts_the_read_from_a_silent_rtsp_server(rtsp_folder, monkeypatch):
    monkeypatch.setattr(opencv_capture, "READ_MS", 60_000)  # without the interruption, FFmpeg would wait for minutes
    with RtspServer(rtsp_folder) as server, watch(server, Timeouts()) as camera:
        camera.wait_until(SourceState.LIVE)
        server.freeze()
        camera.__exit__(None)
        assert camera.running_threads() == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux lists a process's sockets")
def test_socket_opened_by_a_library_is_detected_and_shut_down():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other_server:
        port, peer = server.getsockname()[1], PeerSocket()
        before = socket.create_connection(("127.0.0.1", port))
        with peer.detect(port):
            other_connection = socket.create_connection(other_server.getsockname())
            own_connection = socket.create_connection(("127.0.0.1", port))
        waiting = threading.Thread(target=own_connection.recv, args=[1])
        waiting.start()
        peer.shut_down()
        waiting.join(20)
        assert not waiting.is_alive()
        assert before.send(b"x") == other_connection.send(b"x") == 1
        peer.close()
        peer.shut_down()
        for connection in (before, other_connection, own_connection):
            connection.close()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux lists a process's sockets")
def test_no_socket_is_selected_if_two_were_opened():
    with socket.create_server(("127.0.0.1", 0)) as server:
        descriptors, peer = len(os.listdir("/proc/self/fd")), PeerSocket()
        with peer.detect(server.getsockname()[1]):
            both = [socket.create_connection(server.getsockname()) for _ in range(2)]
        assert len(os.listdir("/proc/self/fd")) == descriptors + 2
        peer.shut_down()
        for connection in both:
            assert connection.send(b"x") == 1
            connection.close()
