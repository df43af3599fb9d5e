"""Tests of deployments to ten devices, each with its own SSH server, network namespace and IP address."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from tests.deploy.conftest import HAS_DEVICES, REASON
from tests.deploy.device import TestDevice
from tests.deploy.network_namespaces import PrivateNetwork, can_create_networks

WORKING = [f"camera-{number}" for number in range(1, 9)]

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not HAS_DEVICES, reason=REASON),
    pytest.mark.skipif(not (shutil.which("ip") and shutil.which("nsenter")), reason="no ip or nsenter"),
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Return eight working devices, one with a read-only disk, and one that is switched off."""
    if not can_create_networks():
        pytest.skip("this container must not create network namespaces")
    folder = tmp_path_factory.mktemp("fleet")
    with ExitStack() as stack:
        network = stack.enter_context(PrivateNetwork())
        devices = {name: TestDevice(folder / name, place=network.add()) for name in [*WORKING, "broken"]}
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(stack.enter_context, devices.values()))
        devices["broken"].run("mount -o remount,ro /opt/edgerec")
        off = folder / "off"
        off.write_text(f"Host *\n  HostName {network.unused_address()}\n  Port 2222\n")
        configs = {name: device.ssh_config for name, device in devices.items()} | {"off": off}
        tables = [
            f'[[device]]\nname = "{name}"\nhost = "root@test-device"\nssh_config = "{config}"\n'
            + ('tags = ["canary"]\n' if name == "camera-5" else "")
            for name, config in configs.items()
        ]
        (folder / "devices.toml").write_text("\n".join(tables))

        def edgerec(*words):
            return subprocess.run(
                [*network.reach, sys.executable, "-m", "edgerec", *map(str, words)],
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "COLUMNS": "100"},
            )

        def start(*words):
            command = [*network.reach, sys.executable, "-m", "edgerec", *map(str, words)]
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            return subprocess.Popen(command, text=True, cwd=folder, **pipes)

        yield SimpleNamespace(edgerec=edgerec, start=start, devices=devices)


def states(fleet, *words):
    """Run ``edgerec deploy``, and return the exit code and the outcomes keyed by device name."""
    result = fleet.edgerec("deploy", *words, "--json")
    assert "Traceback" not in result.stderr
    return result.returncode, {outcome["device"]: outcome for outcome in json.loads(result.stdout)}


def status_reports(fleet):
    """Run ``edgerec devices``, and return the reports keyed by device name."""
    result = fleet.edgerec("devices", "--json")
    assert result.returncode == 1  # One of the devices is switched off.
    return {report["name"]: report for report in json.loads(result.stdout)}


def test_eight_of_ten_devices_are_updated(fleet, make_bundle):
    result = fleet.edgerec("deploy", make_bundle(number=1), "--all", "--parallel", "5")
    assert result.returncode == 1, result.stderr
    lines = result.stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[:11]}
    assert [line.split()[0] for line in lines[1:11]] == [*WORKING, "broken", "off"]
    assert {tuple(rows[name][:2]) for name in WORKING} == {("updated", rows["camera-1"][1])}
    assert (rows["broken"][0], rows["off"][0]) == ("failed", "failed")
    (broken,) = [line for line in lines if line.startswith("broken: ")]
    assert "read-only" in broken.lower()
    (off,) = [line for line in lines if line.startswith("off: ")]
    assert "no route to the host" in off or "no response" in off
    assert lines[-1] == "done     8 of 10 devices succeeded"

    reports = status_reports(fleet)
    assert {reports[name]["state"] for name in WORKING} == {"running"}
    assert {reports[name]["status"]["release"] for name in WORKING} == {rows["camera-1"][1]}
    assert reports["broken"]["state"] == "not installed"
    assert reports["off"]["state"] == "unreachable"


def test_failed_canary_leaves_the_other_devices_unchanged(fleet, make_bundle):
    states(fleet, make_bundle(number=1), *WORKING[:6], "--parallel", "6")
    before = status_reports(fleet)
    code, outcomes = states(fleet, make_bundle(crash=10), *WORKING[:6], "--canary", "1")
    assert code == 1
    assert outcomes["camera-5"]["state"] == "failed"
    assert outcomes["camera-5"]["restored"]
    assert "error: the model of this bundle crashes" in outcomes["camera-5"]["log"]
    others = [outcome for name, outcome in outcomes.items() if name != "camera-5"]
    assert {outcome["state"] for outcome in others} == {"not started"}
    after = status_reports(fleet)
    for name in WORKING[:6]:
        assert after[name]["state"] == "running"
        assert after[name]["status"]["release"] == before[name]["status"]["release"]
        if name != "camera-5":
            assert after[name]["status"]["camera"]["pid"] == before[name]["status"]["camera"]["pid"]


def test_rollback_of_selected_devices(fleet, make_bundle):
    states(fleet, make_bundle(number=1), *WORKING[:2])
    _, updated = states(fleet, make_bundle(number=2), *WORKING[:2])
    code, outcomes = states(fleet, "--rollback", *WORKING[:2])
    assert code == 0
    for name in WORKING[:2]:
        assert outcomes[name]["result"]["release"] == updated[name]["result"]["previous"]


def test_ctrl_c_completes_devices_that_are_being_changed_and_cancels_the_others(fleet, make_bundle):
    states(fleet, make_bundle(number=1), *WORKING[:3], "--parallel", "3")
    before = status_reports(fleet)
    process = fleet.start("deploy", make_bundle(number=3), *WORKING[:3], "--parallel", "1")
    while not process.stderr.readline().startswith("camera-1  install"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "stopping: waiting for camera-1" in errors
    rows = [line.split()[:2] for line in output.splitlines()[1:4]]
    assert rows == [["camera-1", "updated"], ["camera-2", "canceled"], ["camera-3", "canceled"]]
    after = status_reports(fleet)
    assert {after[name]["state"] for name in WORKING[:3]} == {"running"}
    assert after["camera-1"]["status"]["release"] != before["camera-1"]["status"]["release"]
    for name in WORKING[1:3]:
        assert after[name]["status"]["release"] == before[name]["status"]["release"]
