"""Tests of HTTP addresses that return one image per request, and of other addresses that are not streams."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from edgerec.camera.reconnection import Timeouts
from edgerec.camera.source_state import SourceState
from edgerec.camera.sources import CaptureFormat, find_source
from edgerec.errors import SourceError
from tests.camera.test_supervisor import WatchedFeeds
from tests.servers import MjpegServer, Peer, jpeg

# The timeouts are so short that a lost source would be detected during these tests.
SHORT_TIMEOUTS = Timeouts(open_s=5.0, stale_s=2.0, lost_s=4.0, first_wait_s=0.05, longest_wait_s=0.2)


def response(body: bytes, kind: str, *, length: bool = True) -> bytes:
    lines = ["HTTP/1.0 200 OK", "Connection: close"]
    lines += [f"Content-Type: {kind}"] if kind else []
    lines += [f"Content-Length: {len(body)}"] if length else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def snapshot_server(encode=jpeg, kind: str = "image/jpeg", *, length: bool = True) -> MjpegServer:
    def respond(peer: Peer) -> None:
        peer.send(response(encode(next(server.numbers) % 20), kind, length=length))

    server = MjpegServer(respond)
    return server


def png(number: int) -> bytes:
    return cv2.imencode(".png", cv2.imdecode(np.frombuffer(jpeg(number), np.uint8), cv2.IMREAD_COLOR))[1].tobytes()


@pytest.mark.parametrize(
    ("encode", "kind", "length"),
    [(jpeg, "image/jpeg", True), (jpeg, "image/jpeg", False), (jpeg, "", True), (png, "image/png", True)],
    ids=["jpeg", "jpeg without length", "no content type", "png"],
)
def test_snapshot_address_is_one_live_source(encode, kind, length):
    with snapshot_server(encode, kind, length=length) as server:
        address = find_source(server.url, CaptureFormat(fps=20))
        with WatchedFeeds(address, timeouts=SHORT_TIMEOUTS) as watched:
            watched.wait_for_frames("snapshots", count=6)
            states = watched.states()
        watched.assert_only_served()
        assert states == ["connecting", "live"]
        assert server.connections >= 6


def test_snapshots_at_a_slow_rate_are_not_stale():
    """With one image per second, a source is not stale even if the timeout is half a second."""
    timeouts = Timeouts(open_s=5.0, stale_s=0.5, lost_s=0.7, first_wait_s=0.05, longest_wait_s=0.2)
    with (
        snapshot_server() as server,
        WatchedFeeds(find_source(server.url, CaptureFormat(fps=1)), timeouts=timeouts) as watched,
    ):
        watched.wait_for_frames("snapshots", count=3)
        assert watched.states() == ["connecting", "live"]


def test_incomplete_snapshot_is_reported_and_requested_again():
    def send_incomplete_file(peer: Peer) -> None:
        peer.send(response(jpeg(1), "image/jpeg")[:-200])

    def send_complete_file(peer: Peer) -> None:
        peer.send(response(jpeg(2), "image/jpeg"))

    with MjpegServer(send_complete_file, send_incomplete_file, send_complete_file) as server:
        with WatchedFeeds(find_source(server.url, CaptureFormat(fps=20)), timeouts=SHORT_TIMEOUTS) as watched:
            watched.wait_until(SourceState.LOST)
            watched.wait_for_frames("after a cut image")
        reasons = [change.reason for change in watched.changes if change.state is SourceState.LOST]
        assert "bytes of an image" in reasons[0]
        watched.assert_only_served()


def test_stream_that_stops_after_several_images_is_still_lost():
    def stream(peer: Peer) -> None:
        peer.send(b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + b"".join(jpeg(n) for n in range(4)))

    with MjpegServer(stream) as server, WatchedFeeds(find_source(server.url), timeouts=SHORT_TIMEOUTS) as watched:
        watched.wait_until(SourceState.LOST)


def test_error_for_a_web_page_says_that_it_is_a_web_page():
    def send_web_page(peer: Peer) -> None:
        peer.send(response(b"<html><body><img src='/?action=stream'></body></html>", "text/html"))

    with (
        MjpegServer(send_web_page) as server,
        pytest.raises(SourceError, match="is a web page, not an image or a stream"),
    ):
        find_source(server.url).open()


def test_valid_gray_frames_print_no_libjpeg_warning(capfd):
    gray = cv2.imencode(".jpg", np.full((48, 64, 3), 128, np.uint8))[1].tobytes()
    numbers = itertools.count()

    def stream(peer: Peer) -> None:
        peer.send(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
        for _ in numbers:
            peer.send(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + gray + b"\r\n")
            peer.wait(0.01)

    with MjpegServer(stream) as server:
        source = find_source(server.url).open()
        try:
            images = [image for image, _ in itertools.islice(source.images(), 5)]
        finally:
            source.close()
    assert all((image == 128).all() for image in images)
    assert "Corrupt JPEG" not in capfd.readouterr().err
