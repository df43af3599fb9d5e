"""Tests of the function fleet_status() and the command ``edgerec devices``."""

from __future__ import annotations

import json
import re
import threading
import time
from importlib import import_module

import pytest

from edgerec import Device
from edgerec.deploy import DeviceStatus
from edgerec.deploy.devices_file import FleetDevice
from edgerec.deploy.fleet_status import DeviceReport, fleet_status
from edgerec.errors import DeployError
from tests.contract.test_status import STATUS
from tests.network import free_port


def status(device="door", *, age_s=1.0, camera=None, **changes):
    fields = {"name": "signs", "target": "rpi", "on_trial": False, "service": "active", "free_bytes": 5_000_000_000}
    values = {"release": "ab" * 8, "previous": "", "releases": ("ab" * 8,), **fields, **changes}
    return DeviceStatus(device, camera=STATUS if camera is None else camera, age_s=age_s, **values)


def entry(name="door"):
    return FleetDevice(Device(f"pi@{name}", name), tags=("x",))


def report(answer):
    return fleet_status([entry()], query=lambda device: answer)[0]


def source(state, reason=""):
    return STATUS | {"sources": [{"name": "0", "state": state, "reason": reason}]}


@pytest.mark.parametrize(
    ("answer", "state", "error"),
    [
        (status(), "running", ""),
        (status(on_trial=True), "on trial", ""),
        (status(release="", releases=()), "not installed", ""),
        (status(service="failed"), "failed", "the service failed: run journalctl -u edgerec on the device"),
        (status(service="inactive", camera={}), "stopped", ""),
        (status(camera={}), "starting", ""),
        (
            status(camera={"version": 99}),
            "running",
            "the status of the camera has an unknown format: deploy a bundle of this version of edgerec",
        ),
        (status(age_s=40.0), "hanging", "the camera has not updated its status for 40 s"),
        (status(camera=source("lost", "no signal")), "no frames", "0 is lost (no signal)"),
    ],
)
def test_state_is_derived_from_service_and_camera(answer, state, error):
    result = report(answer)
    assert (result.state, result.error) == (state, error)
    assert result.status is answer
    json.dumps(result.to_dict())


def test_devices_are_queried_in_parallel_and_a_silent_device_is_reported():
    everyone_is_asked, never = threading.Barrier(3), threading.Event()

    def query(device):
        everyone_is_asked.wait(30)
        if device.name == "silent":
            assert never.wait(60)
        if device.name == "refused":
            raise DeployError("cannot connect to refused: connection refused; start the SSH server on the device")
        return status(device.name)

    reports = fleet_status([entry("silent"), entry("refused"), entry("door")], timeout_s=1, query=query)
    never.set()
    assert [result.state for result in reports] == ["unreachable", "unreachable", "running"]
    assert reports[0].error == "no response within 1 s"
    assert reports[1].error == "connection refused; start the SSH server on the device"
    assert reports[0].status is None


def test_silent_devices_do_not_use_up_the_connections():
    never = threading.Event()

    def query(device):
        if device.name.startswith("silent"):
            assert never.wait(60)
        return status(device.name)

    names = ["silent-1", "silent-2", "door", "gate"]
    reports = fleet_status([entry(name) for name in names], timeout_s=0.5, parallel=2, query=query)
    never.set()
    assert [result.state for result in reports] == ["unreachable", "unreachable", "running", "running"]


def test_time_of_the_last_response_is_remembered():
    def refuse(device):
        raise DeployError("cannot connect")

    name = f"device-{time.time_ns()}"
    assert fleet_status([entry(name)], query=refuse)[0].seen_s is None
    seen_s = fleet_status([entry(name)], query=lambda device: status(name))[0].seen_s
    assert abs(seen_s - time.time()) < 60
    assert fleet_status([entry(name)], query=refuse)[0].seen_s == seen_s


def test_unexpected_error_is_raised_in_the_callers_thread():
    with pytest.raises(ZeroDivisionError):
        fleet_status([entry()], query=lambda device: 1 // 0)


@pytest.fixture
def devices_table(invoke, tmp_path, monkeypatch):
    """Return a function that returns the rows of ``edgerec devices`` for reports, as dictionaries."""
    path = tmp_path / "devices.toml"
    path.write_text("[[device]]\nname = 'door'\nhost = 'door'\n")

    def rows(*reports):
        monkeypatch.setattr(import_module("edgerec.deploy.fleet_status"), "fleet_status", lambda *_, **__: reports)
        header, *lines = invoke("devices", "--devices", path).stdout.splitlines()[: len(reports) + 1]
        names = re.split(r"\s{2,}", header)
        return [dict(zip(names, re.split(r"\s{2,}", line), strict=True)) for line in lines]

    return rows


def test_table_shows_the_name_of_the_bundle_and_the_digest_of_the_release(devices_table):
    running = report(status())
    installed_nothing = report(status(release="", releases=(), name="", camera={}))
    rows = devices_table(running, installed_nothing)
    assert [(row["bundle"], row["release"]) for row in rows] == [("signs", "ab" * 8), ("–", "–")]


def test_unreachable_device_is_not_shown_as_seen_now(devices_table):
    def unreachable(seen_s):
        return DeviceReport("door", "door", (), "unreachable", error="no route to the host", seen_s=seen_s)

    now_s = time.time()
    # A time in the future is treated as now, so that the test does not depend on its own duration.
    times_s = (None, now_s + 3600, now_s - 3 * 3600)
    rows = devices_table(report(status()), *map(unreachable, times_s))
    assert [row["last seen"] for row in rows] == ["now", "never", "< 1 min ago", "3 h ago"]


def test_command_reports_an_unreachable_device_and_exits_with_1(edgerec, tmp_path):
    path = tmp_path / "devices.toml"
    path.write_text(f"[[device]]\nname = 'door'\nhost = 'root@127.0.0.1'\nport = {free_port()}\n")
    result = edgerec("devices", "--devices", path)
    assert result.returncode == 1
    assert "unreachable" in result.stdout
    result = edgerec("devices", "door", "--devices", path, "--json")
    assert result.returncode == 1
    (shown,) = json.loads(result.stdout)
    assert (shown["name"], shown["state"], shown["status"]) == ("door", "unreachable", None)
    assert shown["error"]
