"""Tests that the process ends cleanly while native code still waits for a silent peer."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import pytest

# When the interpreter ends, it deletes the object that sleeps. The connection attempt fails during this sleep.
SLOW_DESTRUCTOR = """
import sys, time
from edgerec.camera.sources import opencv_capture
opencv_capture.OPEN_MS = 2500

class SlowEnd:
    def __del__(self, sleep=time.sleep):
        sleep(3)

slow_end = SlowEnd()
"""
API = """
from edgerec.camera.supervisor import SourceSupervisor
from edgerec.camera.sources import find_source
with SourceSupervisor([find_source(sys.argv[1])]) as supervisor:
    next(iter(supervisor))
    sys.stdin.readline()
"""
CLI = "from edgerec.cli.app import main\nmain()\n"


@pytest.fixture
def silent_peer():
    """Return the URL of a server that is silent after its first response, and a function that accepts a client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def accept():
            client, _ = listener.accept()
            client.recv(4096)
            client.sendall(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: DESCRIBE\r\n\r\n")
            return client

        yield f"rtsp://127.0.0.1:{listener.getsockname()[1]}/camera", accept


def test_script_ends_without_abort(silent_peer):
    url, accept = silent_peer
    command = [sys.executable, "-c", SLOW_DESTRUCTOR + API, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process, accept():
        _, errors = process.communicate("\n", timeout=60)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_camera_command_ends_without_abort(silent_peer, bundle, stop):
    url, accept = silent_peer
    command = [sys.executable, "-c", SLOW_DESTRUCTOR + CLI, "camera", str(bundle), "--source", url, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process, accept():
        assert '"connecting"' in process.stdout.readline()
        process.send_signal(stop)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
