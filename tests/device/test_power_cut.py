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


@pytest.fixture(scope="module")
def update(device, address, releases):
    """Save a snapshot before an update, and return the old release, the new release and the update's duration."""
    old = deploy_bundle(releases[0], address, OPTIONS).release
    device.save_snapshot("deployed")
    result = deploy_bundle(releases[1], address, OPTIONS)
    return old, result.release, result.seconds


@pytest.mark.parametrize("number", range(CUTS))
def test_camera_works_after_a_power_cut_during_an_update(device, address, releases, update, number):
    old, new, duration_s = update
    # Divide the update into as many intervals as there are power cuts, and choose a random moment in each interval.
    moment_s = random.Random(number).uniform(number, number + 1) / CUTS * duration_s
    device.cut_power()
    device.start(snapshot="deployed")
    steps = []

    def deploy():
        try:
            deploy_bundle(releases[1], address, OPTIONS, steps.append)
        except EdgerecError as error:
            steps.append(error)

    thread = threading.Thread(target=deploy, daemon=True)
    thread.start()
    time.sleep(moment_s)
    device.cut_power()
    interrupted = steps[-1] if steps else None
    device.start()
    release = classifying_release(device, address)
    print(
        f"cut {number} at {moment_s:.1f} s of {duration_s:.1f} s: {interrupted}: {'old' if release == old else 'new'}"
    )
    assert release in (old, new)
    thread.join(600)
    assert not thread.is_alive()
    assert deploy_bundle(releases[1], address, OPTIONS).release == new
    assert classifying_release(device, address) == new
