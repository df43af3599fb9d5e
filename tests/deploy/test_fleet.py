"""Tests of deployments to several devices, in which a mock replaces the deployment to each device."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from edgerec import DeployOptions, Device
from edgerec.camera import interrupts
from edgerec.cli.fleet_output import show_outcomes
from edgerec.deploy import DeployResult, Step
from edgerec.deploy import fleet as module
from edgerec.deploy.devices_file import FleetDevice
from edgerec.deploy.fleet import deploy_to_fleet, run_on_fleet
from edgerec.errors import DeployError
from tests.network import wait_for

STEPS = ("connect", "send", "install", "monitor")


def fleet(count, **changes):
    return [FleetDevice(Device(f"root@10.0.0.{n}", f"device-{n}"), **changes) for n in range(count)]


class Deployment:
    """A mock deployment that records its calls.

    Attributes:
        started: names of the devices, in the order of the calls.
        peak: maximum number of simultaneous calls.
        devices: the devices, in the order of the calls.
    """

    def __init__(self, failing=(), before_step=lambda device, step: None):
        self.failing, self.before_step = failing, before_step
        self.started, self.devices, self.running, self.peak = [], [], 0, 0
        self._lock = threading.Lock()

    def __call__(self, entry, options, listener):
        device = entry.device
        with self._lock:
            self.started.append(device.name)
            self.devices.append(device)
            self.running += 1
            self.peak = max(self.peak, self.running)
        try:
            for name in STEPS:
                self.before_step(device.name, name)
                listener(Step(device.name, name, "done"))
            if device.name in self.failing:
                raise DeployError(f"{device.name}: the disk is full", step="send", restored=True, log=["a line"])
            return DeployResult(device.name, "new", "old", True, 10, 1.0)
        finally:
            with self._lock:
                self.running -= 1


def states(outcomes):
    return {outcome.device: outcome.state for outcome in outcomes}


def test_devices_are_updated_in_parallel_and_outcomes_keep_the_order():
    everyone_runs = threading.Barrier(4)
    deployment = Deployment(before_step=lambda device, step: step == "install" and everyone_runs.wait(30))
    finished = []
    outcomes = run_on_fleet(deployment, fleet(8), parallel=4, finished=finished.append)
    assert deployment.peak == 4
    assert [outcome.device for outcome in outcomes] == [f"device-{n}" for n in range(8)]
    assert {outcome.state for outcome in outcomes} == {"updated"}
    assert sorted(finished, key=lambda outcome: outcome.device) == outcomes
    assert all(outcome.succeeded for outcome in outcomes)


def test_failing_device_does_not_stop_the_others():
    outcomes = run_on_fleet(Deployment(failing=["device-1"]), fleet(4))
    assert [outcome.state for outcome in outcomes] == ["updated", "failed", "updated", "updated"]
    failed = outcomes[1]
    assert (failed.error, failed.step, failed.restored, failed.log) == ("the disk is full", "send", True, ("a line",))
    assert not failed.succeeded
    assert failed.to_dict()["result"] is None


def test_failed_canary_stops_the_rollout():
    devices = fleet(5)
    devices[3] = FleetDevice(devices[3].device, tags=("canary",))
    deployment = Deployment(failing=["device-3"])
    outcomes = run_on_fleet(deployment, devices, canary=1)
    assert deployment.started == ["device-3"]
    assert outcomes[3].state == "failed"
    others = [outcome for outcome in outcomes if outcome.device != "device-3"]
    assert {outcome.state for outcome in others} == {"not started"}
    assert {outcome.error for outcome in others} == {"the deployment to the canary device-3 failed"}


def test_canaries_are_finished_before_other_devices_are_started():
    canaries_run = threading.Barrier(2)
    deployment = Deployment(
        before_step=lambda device, step: device < "device-2" and step == "install" and canaries_run.wait(30)
    )
    outcomes = run_on_fleet(deployment, fleet(5), canary=2)
    assert set(deployment.started[:2]) == {"device-0", "device-1"}
    assert {outcome.state for outcome in outcomes} == {"updated"}


def test_stop_cancels_devices_before_the_installation_and_waits_for_the_others():
    stop, installing, sending = threading.Event(), threading.Event(), threading.Event()

    def before_step(device, step):
        if (device, step) == ("device-0", "monitor"):
            installing.set()
            assert stop.wait(30)
        if (device, step) == ("device-1", "send"):
            sending.set()
            assert stop.wait(30)

    def stop_when_both_are_ready():
        assert installing.wait(30)
        assert sending.wait(30)
        stop.set()

    deployment = Deployment(before_step=before_step)
    thread = threading.Thread(target=stop_when_both_are_ready)
    thread.start()
    outcomes = run_on_fleet(deployment, fleet(4), parallel=2, stop=stop)
    thread.join()
    assert [outcome.state for outcome in outcomes] == ["updated", "canceled", "canceled", "canceled"]
    assert deployment.started == ["device-0", "device-1"] or deployment.started == ["device-1", "device-0"]
    assert outcomes[1].error == "the deployment was stopped before the device was changed"


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot send SIGINT to itself")
def test_first_ctrl_c_cancels_and_second_stops_waiting(monkeypatch):
    monkeypatch.setattr(interrupts, "DEBOUNCE_S", 0.0)
    monitoring, release = threading.Event(), threading.Event()
    finished = []

    def before_step(device, step):
        if step == "monitor":
            monitoring.set()
            release.wait(60)

    def interrupt_twice():
        assert monitoring.wait(30)
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: finished)  # The first signal cancels the deployment that has not started.
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_twice)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_on_fleet(Deployment(before_step=before_step), fleet(2), parallel=1, finished=finished.append)
    release.set()
    thread.join()
    assert states(finished) == {"device-0": "unknown", "device-1": "canceled"}


def test_dry_run_distinguishes_planned_from_unchanged_devices(capsys):
    def dry_run(entry, options, listener):
        planned = Step(entry.name, "switch", "planned", "switch from release old to new")
        steps = (planned,) if entry.name == "device-0" else ()
        return DeployResult(entry.name, "new", "old", False, 10, 1.0, steps)

    outcomes = run_on_fleet(dry_run, fleet(2), DeployOptions(dry_run=True))
    assert states(outcomes) == {"device-0": "planned", "device-1": "unchanged"}
    show_outcomes(outcomes)
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line == "planned  2 of 2 devices; no changes were made (--dry-run)"


def test_unexpected_error_is_raised_in_the_callers_thread():
    def operation(*arguments):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_on_fleet(operation, fleet(3), parallel=1)


def test_devices_cannot_ask_for_a_password():
    deployment = Deployment()
    run_on_fleet(deployment, [FleetDevice(Device("a", "own", interactive=True))])
    assert not deployment.devices[0].interactive


def test_device_without_a_bundle_is_reported_before_any_device_is_updated():
    with_bundle = FleetDevice(Device("a", "own"), bundle=Path("own-bundle"))
    finished = []
    with pytest.raises(DeployError, match=r"there is no bundle for device-0: specify BUNDLE"):
        deploy_to_fleet(None, [with_bundle, *fleet(1)], finished=finished.append)
    assert not finished


def test_own_configuration_and_bundle_of_a_device_are_used_by_default(monkeypatch):
    calls = []

    def deploy(bundle, device, options, listener):
        calls.append((bundle, options.config))
        return DeployResult(device.name, "new", "old", False, 10, 1.0)

    monkeypatch.setattr(module, "deploy_bundle", deploy)
    own = FleetDevice(Device("a", "own"), config=Path("own.toml"), bundle=Path("own-bundle"))
    (outcome,) = deploy_to_fleet(None, [own])
    deploy_to_fleet("bundle", [own], DeployOptions(config=Path("c.toml")))
    assert calls == [(Path("own-bundle"), Path("own.toml")), (Path("bundle"), Path("c.toml"))]
    assert outcome.state == "unchanged"
