"""Real servers on the loopback interface that reproduce faults of network cameras. All servers end by themselves."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

# The color of each image encodes the image's number. JPEG and video codecs preserve the differences of these levels.
LEVELS = (24, 88, 152, 216)
NUMBER_COUNT = len(LEVELS) ** 3
FPS = 25
LIFETIME_S = 120


def numbered_image(number: int, size: tuple[int, int] = (160, 120), *, gray: bool = False) -> np.ndarray:
    """Return an image whose color encodes ``number``, uint8 ``(H, W, 3)`` BGR or ``(H, W)`` gray.

    The lower half has the inverse color, so that :func:`number_of` can detect an image that consists of two frames.
    """
    digits = [number // len(LEVELS) ** i % len(LEVELS) for i in range(3)]
    if gray:
        digits = [digits[0]] * 3
    color = np.array([LEVELS[digit] for digit in digits], np.uint8)
    image = np.empty((size[1], size[0], 3), np.uint8)
    image[: size[1] // 2], image[size[1] // 2 :] = color, 240 - color
    return image[..., 0] if gray else image


def number_of(image: np.ndarray) -> int | None:
    """Return the number of a received RGB image; None if the image is not one of :func:`numbered_image`."""
    rows = image.shape[0]
    upper, lower = image[: rows // 2 - 8].reshape(-1, 3), image[rows // 2 + 8 :].reshape(-1, 3)
    mean = upper.mean(axis=0)
    digits = np.array([np.abs(np.array(LEVELS) - value).argmin() for value in mean])
    color = np.array(LEVELS)[digits]
    deviation = max(np.abs(upper - color.astype(int)).max(), np.abs(lower - (240 - color.astype(int))).max())
    return None if deviation > 24 else int(digits[2] + digits[1] * len(LEVELS) + digits[0] * len(LEVELS) ** 2)


def jpeg(number: int, size: tuple[int, int] = (160, 120), *, gray: bool = False) -> bytes:
    """Return the image of :func:`numbered_image` as the content of a JPEG file."""
    return cv2.imencode(".jpg", numbered_image(number, size, gray=gray))[1].tobytes()


def free_port() -> int:
    """Return a TCP port on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


HEAD = (
    b"HTTP/1.0 200 OK\r\nServer: test\r\nConnection: close\r\n"
    b"Content-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
)


def image_part(content: bytes, *, length: bool = True) -> bytes:
    """Return one part of a multipart response, including its boundary."""
    length_header = f"Content-Length: {len(content)}\r\n" if length else ""
    return f"--frame\r\nContent-Type: image/jpeg\r\n{length_header}\r\n".encode() + content + b"\r\n"


Script = Callable[["Peer"], None]


class Peer:
    """A client's connection to a server. Scripts use it to send the response."""

    def __init__(self, connected: socket.socket, server: MjpegServer, request: bytes) -> None:
        self._connected, self._server, self.request = connected, server, request

    def send(self, content: bytes) -> None:
        self._connected.sendall(content)

    def wait(self, seconds: float) -> None:
        """Stay connected without sending anything; raise OSError if the server ends during this time."""
        if self._server.ended.wait(seconds):
            raise OSError("the server has ended")

    def send_images(self, count: int | None = None, **options) -> None:
        """Send ``count`` numbered images at the frame rate, or images until the connection ends.

        Numbers increase over all connections of the server. ``options`` are passed to :func:`jpeg`.
        """
        for _ in itertools.count() if count is None else range(count):
            self.send(image_part(jpeg(next(self._server.numbers) % NUMBER_COUNT, **options)))
            self.wait(1 / FPS)


def stream_images(peer: Peer) -> None:
    """Script of a camera without faults, which sends images until the connection ends."""
    peer.send(HEAD)
    peer.send_images()


class MjpegServer:
    """MJPEG server that runs one script per connection, and repeats the last script for all further connections.

    The server can be killed and restarted on the same port.
    """

    def __init__(self, *scripts: Script) -> None:
        self.port = free_port()
        self.numbers = itertools.count()
        self.connections = 0
        self.ended = threading.Event()
        self._scripts = list(scripts or [stream_images])
        self._threads: list[threading.Thread] = []
        self._peers: list[socket.socket] = []
        self._listener: socket.socket | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/camera.mjpg"

    def __enter__(self) -> MjpegServer:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def start(self) -> None:
        """Start to listen for connections."""
        self.ended.clear()
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self._listener.settimeout(LIFETIME_S)
        self._run(self._accept, self._listener)

    def kill(self) -> None:
        """End like a killed process: close all connections at once, even while data is being sent."""
        self.ended.set()
        for open_socket in (self._listener, *self._peers):
            if open_socket is not None:
                with contextlib.suppress(OSError):
                    open_socket.shutdown(socket.SHUT_RDWR)
                open_socket.close()
        for thread in self._threads:
            thread.join(10)
        self._threads, self._peers, self._listener = [], [], None

    def _run(self, work: Callable, *arguments) -> None:
        thread = threading.Thread(target=work, args=arguments, name="test-server", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not self.ended.is_set():
                connected, _ = listener.accept()
                connected.settimeout(LIFETIME_S)
                self._peers.append(connected)
                script = self._scripts[min(self.connections, len(self._scripts) - 1)]
                self.connections += 1
                self._run(self._serve, connected, script)

    def _serve(self, connected: socket.socket, script: Script) -> None:
        with contextlib.suppress(OSError), connected:
            request = b""
            while b"\r\n\r\n" not in request:
                received = connected.recv(4096)
                if not received:
                    return
                request += received
            script(Peer(connected, self, request))


@contextlib.contextmanager
def unresponsive_port() -> Iterator[int]:
    """Yield a port to which connecting hangs, as with a host that is switched off, because its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        time.sleep(0.1)
        yield listener.getsockname()[1]


# Program that serves the numbered images as H.264 over RTSP. It is run by the system's Python, because Debian installs
# the GStreamer bindings there.
_RTSP = """
import sys, signal, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer, GLib
Gst.init(None)
if not Gst.ElementFactory.find("x264enc"): sys.exit("no x264enc")
server = GstRtspServer.RTSPServer(); server.set_address("127.0.0.1"); server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory(); factory.set_shared(True)
factory.set_launch(
    "( multifilesrc location=" + sys.argv[2] + "/%02d.png start-index=0 stop-index=63 loop=true"
    " caps=image/png,framerate=25/1 ! pngdec ! videoconvert ! video/x-raw,format=I420 ! identity sync=true"
    " ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 qp-max=18"
    " ! rtph264pay name=pay0 pt=96 config-interval=1 )")
server.get_mount_points().add_factory("/camera", factory)
if not server.attach(None): sys.exit("the port is taken")
print("ready", flush=True)
loop = GLib.MainLoop(); GLib.timeout_add_seconds(120, loop.quit); loop.run()
"""


def rtsp_unavailable_reason() -> str:
    """Return the reason why this machine cannot run the RTSP server; an empty string if it can."""
    code = (
        "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer; "
        "Gst.init(None); "
        "raise SystemExit(not all(map(Gst.ElementFactory.find, ('x264enc', 'pngdec', 'rtph264pay', 'multifilesrc'))))"
    )
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if (
            subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, timeout=30, check=False).returncode
            == 0
        ):
            return ""
    return (
        "no RTSP server (apt install python3-gst-1.0 gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good "
        "gstreamer1.0-plugins-ugly)"
    )


class RtspServer:
    """A GStreamer RTSP server in a separate process."""

    def __init__(self, folder: Path) -> None:
        self.port, self._folder = free_port(), folder
        self._process: subprocess.Popen | None = None
        for number in range(NUMBER_COUNT):
            cv2.imwrite(str(folder / f"{number:02d}.png"), numbered_image(number))

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/camera"

    def __enter__(self) -> RtspServer:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def start(self) -> None:
        """Start the server, and wait until it listens."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        self._process = subprocess.Popen(
            ["/usr/bin/python3", "-c", _RTSP, str(self.port), str(self._folder)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert select.select([self._process.stdout], [], [], 30)[0], "the RTSP server does not start"
        assert self._process.stdout.readline() == b"ready\n"

    def freeze(self) -> None:
        """Stop the process, so that it sends nothing but keeps its connections."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process.stdout.close()
            self._process = None
