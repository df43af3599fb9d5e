"""Tests that an emulated device always has a working release after a power failure during an update."""

from __future__ import annotations

import os
import random
import threading
import time

import pytest

from edgerec import deploy_bundle
from edgerec.errors import EdgerecError
from tests.device.camera import OPTIONS, classifying_release

CUTS = int(os.environ.get("EDGEREC_POWER_CUTS", "3"))
# Steps that change files on the device.
CRITICAL_STEPS = ("install", "switch", "monitor", "prune", "verify")
TIMEOUT_S = 900


class StepTimes(dict[str, float]):
    """A listener for an update, which maps each step to its start in seconds after the start of the update."""

    def __init__(self):
        super().__init__()
        self.start_s = time.monotonic()
        self.changed = threading.Condition()

    def __call__(self, step):
        with self.changed:
            self.setdefault(step.name, time.monotonic() - self.start_s)
            self.changed.notify_all()

    def wait_for(self, name):
        with self.changed:
            assert self.changed.wait_for(lambda: name in self, TIMEOUT_S), f"the step {name} was not reached: {self}"


@pytest.fixture(scope="module")
def update(device, address, releases):
    """Save a snapshot before an update. Return the old release, the new release, the steps and the total time."""
    old = deploy_bundle(releases[0], address, OPTIONS).release
    device.save_snapshot("deployed")
    times = StepTimes()
    result = deploy_bundle(releases[1], address, OPTIONS, times)
    return old, result.release, times, result.seconds


def random_moment(number, times, duration_s):
    """Return a step and a time in seconds after its start at which the power is cut.

    Two thirds of the power cuts are spread over the whole update. The others are in the first two seconds of the steps
    that change files. The moment is relative to a step, because the speed of the emulator varies.
    """
    generator = random.Random(number)
    if number % 3 == 2:
        return CRITICAL_STEPS[number // 3 % len(CRITICAL_STEPS)], generator.uniform(0, 2)
    moment_s = generator.uniform(number, number + 1) / CUTS * duration_s
    step = max((name for name in times if times[name] <= moment_s), key=times.__getitem__, default="connect")
    return step, moment_s - times.get(step, 0)


@pytest.mark.parametrize("number", range(CUTS))
def test_camera_works_after_a_power_cut_during_an_update(device, address, releases, update, number):
    old, new, times, duration_s = update
    step, delay_s = random_moment(number, times, duration_s)
    device.cut_power()
    device.start(snapshot="deployed")
    listener, outcomes = StepTimes(), []

    def deploy():
        try:
            outcomes.append(deploy_bundle(releases[1], address, OPTIONS, listener).release)
        except EdgerecError as error:
            outcomes.append(error)

    thread = threading.Thread(target=deploy, daemon=True)
    thread.start()
    listener.wait_for(step)
    time.sleep(delay_s)
    device.cut_power()
    device.start()
    release = classifying_release(device, address)
    started = "old" if release == old else "new"
    thread.join(TIMEOUT_S)
    print(f"cut {number}: {delay_s:.1f} s after the start of {step}: {started} release; {outcomes}", flush=True)
    assert release in (old, new)
    assert outcomes, "the interrupted deployment did not end with a result or an error message"
    assert deploy_bundle(releases[1], address, OPTIONS).release == new
    assert classifying_release(device, address) == new
