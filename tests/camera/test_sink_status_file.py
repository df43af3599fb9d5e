"""Tests of the status file."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import threading
from types import SimpleNamespace

import pytest

from edgerec import CameraConfig, run_camera
from edgerec.camera.sinks import status_file as module
from edgerec.camera.sinks.status_file import MAX_SOURCES, StatusFile
from edgerec.contract.status import parse_status
from edgerec.errors import EdgerecError, OutputExistsError, OutputNameError
from edgerec.utils.atomic import sha256
from tests.conftest import error_line
from tests.network import result, state_change, wait_for

COUNTERS = SimpleNamespace(classified=7, skipped={"motion": 3, "roi": 1}, invalid=2)


def status_sink(path, counters=COUNTERS):
    return contextlib.closing(StatusFile(path, "ab" * 32, "signs", lambda: counters))


def completed_at(seconds, captured_s=0.0):
    """Return a result that was complete at a monotonic time."""
    original = result("stop")
    return dataclasses.replace(
        original, completed_s=seconds, frame=dataclasses.replace(original.frame, grabbed_s=captured_s)
    )


def read(path):
    return parse_status(path.read_bytes())


def test_status_contains_counters_states_and_last_decision(tmp_path):
    path = tmp_path / "run" / "status.json"
    with status_sink(path) as sink:
        sink.state(state_change("connecting", "0"))
        sink.state(state_change("live", "0", "640x480"))
        sink.state(state_change("lost", "rtsp://camera/door", "no\nroute"))
        sink.write(result("go", source="0", score=0.5))
        last = result("stop", source="0", score=0.75)
        sink.write(last)
    status = read(path)
    assert (status["pid"], status["bundle"], status["name"]) == (os.getpid(), "ab" * 32, "signs")
    assert (status["frames"], status["skipped"], status["invalid"]) == (7, 4, 2)
    assert status["sources"] == [
        {"name": "0", "state": "live", "reason": "640x480"},
        {"name": "rtsp://camera/door", "state": "lost", "reason": "no\\nroute"},
    ]
    captured_s = last.to_dict()["captured_s"]
    assert status["last"] == {"source": "0", "label": "stop", "score": 0.75, "at_s": captured_s}
    assert status["started_s"] <= status["updated_s"]
    assert [entry.name for entry in path.parent.iterdir()] == ["status.json"]


def test_frame_rate_is_measured_over_the_last_ten_seconds(tmp_path):
    path = tmp_path / "status.json"
    with status_sink(path) as sink:
        for index in range(50):
            sink.write(completed_at(100 + index))
        for index in range(101):
            sink.write(completed_at(200 + index / 20))
    assert read(path)["fps"] == 20.0


def test_frame_rate_of_video_files_does_not_depend_on_their_timestamps(tmp_path):
    path = tmp_path / "status.json"
    with status_sink(path) as sink:
        for index in range(11):
            sink.write(completed_at(100 + index / 4, captured_s=1000 * (index % 2)))
    assert read(path)["fps"] == 4.0


def test_file_is_updated_while_no_frames_arrive(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.02)
    path = tmp_path / "status.json"
    with status_sink(path) as sink:
        sink.state(state_change("connecting", "0"))
        wait_for(path.exists)
        first = read(path)["updated_s"]
        wait_for(lambda: read(path)["updated_s"] > first)


def test_file_is_not_written_again_before_the_interval_has_passed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "INTERVAL_S", 3600.0)
    path = tmp_path / "status.json"
    with status_sink(path) as sink:
        sink.state(state_change("connecting", "0"))
        wait_for(path.exists)
        first = path.read_bytes()
        for index in range(1000):
            sink.write(result(index=index))
        assert path.read_bytes() == first
    assert read(path)["last"] is not None


@pytest.mark.skipif(os.name != "posix", reason="Windows has no umask")
def test_all_users_may_read_the_file_of_a_service(tmp_path):
    path = tmp_path / "status.json"
    umask = os.umask(0o077)
    try:
        with status_sink(path) as sink:
            sink.state(state_change("live"))
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_readers_never_see_a_partial_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "INTERVAL_S", 0.0005)
    path = tmp_path / "status.json"
    with status_sink(path) as sink:
        sink.state(state_change("live"))
        wait_for(path.exists)
        inodes = set()
        while len(inodes) < 20:
            sink.write(result())
            inodes.add(path.stat().st_ino)
            read(path)


def test_omitted_sources_are_logged_once(tmp_path, caplog):
    path = tmp_path / "status.json"
    regions = {"yard": ("gate", "wall", "tree")}
    with contextlib.closing(StatusFile(path, "ab" * 32, "signs", lambda: COUNTERS, regions)) as sink:
        for number in range(MAX_SOURCES - 1):
            sink.state(state_change("live", f"camera {number}"))
        assert not caplog.messages
        for state in ("connecting", "live"):
            sink.state(state_change(state, "yard"))
    names = [source["name"] for source in read(path)["sources"]]
    assert (len(names), names[-1]) == (MAX_SOURCES, "yard/gate")
    (message,) = caplog.messages
    assert message.endswith("contains only the first 64 sources and regions: yard/wall and later ones are omitted")


def test_unwritable_folder_is_reported_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgerecError, match=r"cannot be written .*: choose a file in a writable folder"):
        StatusFile(tmp_path / "file" / "status.json", "", "signs", lambda: COUNTERS)


def test_failing_write_is_logged_and_does_not_stop_the_camera(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    path = tmp_path / "status.json"
    with status_sink(path) as sink:
        path.mkdir()
        (path / "entry").touch()
        sink.write(result())
        wait_for(lambda: "cannot be written" in caplog.text)
        (path / "entry").unlink()
        path.rmdir()
        sink.write(result())
        wait_for(path.is_file)


def test_other_files_are_not_replaced(tmp_path):
    other = tmp_path / "manifest.json"
    other.write_text('{"pid": 1}')
    with pytest.raises(OutputExistsError, match="is not a status file"):
        StatusFile(other, "", "signs", lambda: COUNTERS)
    with pytest.raises(OutputNameError):
        StatusFile(tmp_path / "photo.jpg", "", "signs", lambda: COUNTERS)
    assert other.read_text() == '{"pid": 1}'
    empty = tmp_path / "status.json"
    empty.touch()
    for _ in range(2):  # The second camera replaces the file of the first one.
        with status_sink(empty) as sink:
            sink.state(state_change("live"))
        assert read(empty)["name"] == "signs"


def test_camera_writes_the_status_of_its_bundle(bundle, video, tmp_path):
    path = tmp_path / "status.json"
    config = CameraConfig(bundle=bundle, sources=str(video), output="none", status_file=path)
    assert config.output_paths == (path,)
    report = run_camera(config)
    status = read(path)
    assert status["bundle"] == sha256((bundle / "manifest.json").read_bytes())
    assert status["frames"] == report.classified == 30
    assert [source["state"] for source in status["sources"]] == ["ended"]
    assert status["last"] is not None
    assert not [thread for thread in threading.enumerate() if "status" in thread.name]


def test_command_writes_the_status_file_and_refuses_to_replace_other_files(bundle, video, edgerec, tmp_path):
    path = tmp_path / "status.json"
    command = ("camera", bundle, "--source", video, "--headless", "--max-frames", "3", "--status-file")
    assert edgerec(*command, path).returncode == 0
    assert read(path)["frames"] == 3
    assert "is not a status file" in error_line(edgerec(*command, bundle / "manifest.json"))
