"""Tests that a transfer ends at once if the device sends an invalid reply or a file on the host disappears."""

from __future__ import annotations

import threading

import pytest

from edgerec.deploy.ssh import ConnectionLostError
from edgerec.deploy.transfer import Contents, missing_files, send_contents
from edgerec.errors import DeployError

UNKNOWN = "0" * 64


class Device:
    """A session with a device, which sends the given replies and then no reply until the connection ends."""

    label = "door"

    def __init__(self, *replies):
        self._replies = list(replies)
        self._ended = threading.Event()

    def send(self, do, **values):
        pass

    def write(self, content):
        pass

    def kill(self):
        self._ended.set()

    def reply(self):
        if self._replies:
            return self._replies.pop(0)
        assert self._ended.wait(60)
        raise ConnectionLostError("the connection was lost")


@pytest.mark.parametrize("offset", [-1, 4])
def test_impossible_number_of_received_bytes_is_refused(offset):
    contents = Contents()
    digest = contents.add(b"new")
    with pytest.raises(DeployError, match="the list of missing files does not match the deployment"):
        missing_files("door", {"missing": {digest: offset}}, contents)


def test_unknown_missing_file_is_refused():
    with pytest.raises(DeployError, match="the list of missing files does not match the deployment"):
        missing_files("door", {"missing": {UNKNOWN: 0}}, Contents())


def test_missing_files_are_mapped_to_the_bytes_already_received():
    contents = Contents()
    missing = {contents.add(b"new"): 0, contents.add(b"partial"): 3}
    assert missing_files("door", {"missing": missing}, contents) == missing


@pytest.mark.parametrize("reply", [{}, {"stored": UNKNOWN}, {"stored": []}])
def test_unknown_stored_file_is_refused(reply):
    contents = Contents()
    with pytest.raises(DeployError, match="the digest of a stored file does not match the deployment"):
        send_contents(Device(reply), contents, {contents.add(b"new"): 0}, print)


@pytest.mark.parametrize("replies", [["1"], [0], [4], [2, 2]])
def test_number_of_received_bytes_must_be_possible_and_increase(replies):
    contents = Contents()
    device = Device(*({"received": reply} for reply in replies))
    with pytest.raises(DeployError, match="the number of received bytes does not match the deployment"):
        send_contents(device, contents, {contents.add(b"new"): 0}, print)


def test_file_that_was_deleted_on_the_host_is_reported_at_once(tmp_path):
    wheel = tmp_path / "package.whl"
    wheel.write_bytes(b"wheel")
    contents = Contents()
    missing = {contents.add(wheel): 0}
    wheel.unlink()
    with pytest.raises(DeployError, match=r"cannot read a file to send .*package\.whl"):
        send_contents(Device(), contents, missing, print)
