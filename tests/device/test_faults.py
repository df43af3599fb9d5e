"""Tests that a failed deployment to an emulated device reports the cause, and that the previous release keeps running.

Each test starts from a snapshot of a device on which a release is running.
"""

from __future__ import annotations

import functools
import io
import random
import subprocess
import threading
import time
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import pytest

from edgerec import Bundle, __version__, deploy_bundle, device_status, export_bundle, rollback
from edgerec.contract.signing import sign_bundle
from edgerec.emulation.device_wheels import edgerec_wheel
from edgerec.errors import DeployError
from tests.device.camera import OPTIONS, classifying_release

# This version must differ from the running version of edgerec, because a bundle's wheel of that version is not used.
FAULTY_VERSION = "0.0.1"
# This code is appended to edgerec/camera/pipeline.py. The file "fault" in the bundle contains "crash" or "hang".
FAULT = """
_events_without_fault = Camera._events


def _events_with_fault(self, service, idle_s):
    import os
    import sys

    with open("/opt/edgerec/current/bundle/fault") as file:
        fault = file.read()
    results = 0
    for event in _events_without_fault(self, service, idle_s):
        results += isinstance(event, Result)
        if results == 10 and fault == "crash":
            print("error: the camera crashed at frame 10", file=sys.stderr, flush=True)
            os._exit(3)
        while results == 10 and fault == "hang":
            time.sleep(1)
        yield event


Camera._events = _events_with_fault
"""


def faulty_wheel():
    """Return the name and content of a wheel of edgerec whose camera crashes or hangs at its tenth frame."""
    name, content = edgerec_wheel()
    version = name.split("-")[1]
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename == "edgerec/camera/pipeline.py":
                data += FAULT.encode()
            elif info.filename.endswith(".dist-info/METADATA"):
                data = data.replace(f"\nVersion: {version}\n".encode(), f"\nVersion: {FAULTY_VERSION}\n".encode())
            elif info.filename.endswith(".dist-info/RECORD"):
                data = b""
            info.filename = info.filename.replace(f"edgerec-{version}.dist-info", f"edgerec-{FAULTY_VERSION}.dist-info")
            target.writestr(info, data)
    return f"wheels/edgerec-{FAULTY_VERSION}-py3-none-any.whl", buffer.getvalue()


@pytest.fixture(scope="module")
def make_bundle(releases, tmp_path_factory):
    """Return a function that writes a copy of the second release with additional or replaced files."""
    folder = tmp_path_factory.mktemp("bundles")
    original = Bundle.open(releases[1])

    def make(name, files, removed=()):
        kept = {path: content for path, content in original.files.items() if path not in removed}
        Bundle.write(folder / name, replace(original.manifest, files={}), {**kept, **files})
        return folder / name

    return make


@pytest.fixture(scope="module")
def make_faulty_bundle(make_bundle, releases):
    """Return a function that writes a bundle whose camera crashes or hangs."""
    original = Bundle.open(releases[1])
    wheels = [name for name in original.files if name.startswith("wheels/edgerec-")]
    requirements = original.files["requirements.txt"].decode()
    name, wheel = faulty_wheel()
    files = {name: wheel, "requirements.txt": requirements.replace(f"=={__version__}", f"=={FAULTY_VERSION}").encode()}
    return functools.cache(lambda fault: make_bundle(fault, {**files, "fault": fault.encode()}, wheels))


@pytest.fixture(scope="module")
def running_release(device, address, releases):
    """Deploy the first release, save a snapshot of the device, and return the digest of the release."""
    release = deploy_bundle(releases[0], address, OPTIONS).release
    device.save_snapshot("deployed")
    return release


@pytest.fixture
def installed(device, address, running_release):
    """Restore the snapshot, and check after the test that the first release is still classifying frames."""
    device.cut_power()
    device.start(snapshot="deployed")
    yield running_release
    classifying_release(device, address)  # Wait until the restored release has started.
    status = device_status(address)
    assert (status.release, status.service, status.on_trial) == (running_release, "active", False)
    assert classifying_release(device, address, status.camera["frames"] + 10) == running_release


def refusal(bundle, address, listener=bool, **options):
    with pytest.raises(DeployError) as caught:
        deploy_bundle(bundle, address, replace(OPTIONS, **options), listener)
    print(caught.value, *caught.value.log, sep="\n")
    return caught.value


@contextmanager
def changed_device(device, change, undo):
    """Return a context manager that runs a shell command on the device, and another one at the end."""
    run_shell(device, change)
    try:
        yield
    finally:
        run_shell(device, undo)


def run_shell(device, command):
    done = device.run(["sh", "-c", command], timeout_s=300)
    assert not done.code, done.reason


def test_crash_at_the_tenth_frame(installed, address, make_faulty_bundle):
    error = refusal(make_faulty_bundle("crash"), address)
    assert f"release {installed} was restored, because the service crashed with exit code 3" in str(error)
    assert error.restored
    assert "error: the camera crashed at frame 10" in error.log


def test_service_that_hangs(installed, address, make_faulty_bundle):
    error = refusal(make_faulty_bundle("hang"), address, settle_s=120)
    assert f"release {installed} was restored" in str(error)
    assert "hung, so that its watchdog restarted it" in str(error) or "stopped processing frames" in str(error)
    assert error.restored


def test_bundle_that_fails_its_golden_vectors(installed, address, make_bundle, releases):
    files = Bundle.open(releases[1]).files
    images = sorted(name for name in files if name.startswith("golden/") and name.endswith(".png"))
    swapped = make_bundle("swapped", {images[0]: files[images[1]], images[1]: files[images[0]]})
    error = refusal(swapped, address)
    assert "failed verification on the device" in str(error)
    assert error.step == "verify"


def test_network_lost_during_the_transfer(installed, device, address, make_bundle):
    # Random content cannot be compressed by ssh.
    large = make_bundle("large", {"padding": random.Random(0).randbytes(30_000_000)})
    received = []

    def disconnect(step):
        if step.name == "send" and step.done > 5_000_000 and not received:
            received.append(step.done)
            device.set_network(connected=False)

    error = refusal(large, address, disconnect)
    assert "the connection to device was lost" in str(error)
    assert error.step == "send"
    device.set_network(connected=True)
    # The device still holds the lock of the lost connection, because it does not know that the connection is lost.
    run_shell(device, "until flock -n /opt/edgerec/lock true; do sleep 1; done")
    result = deploy_bundle(large, address, OPTIONS)
    assert result.sent_bytes < 30_000_000 - received[0] + 1_000_000
    assert rollback(address, OPTIONS).release == installed


def test_network_lost_during_the_installation_does_not_stop_it(device, address, releases, running_release):
    device.cut_power()
    device.start(snapshot="deployed")
    timers = []

    def disconnect(step):
        if step.name == "verify" and not timers:
            device.set_network(connected=False)
            timers.append(threading.Timer(60, device.set_network, kwargs={"connected": True}))
            timers[0].start()

    result = deploy_bundle(releases[1], address, OPTIONS, disconnect)
    timers[0].join()
    assert result.previous == running_release
    assert classifying_release(device, address) == result.release


def test_disk_that_is_full(installed, device, address, releases):
    fill = "fallocate -l $(($(df --output=avail -B1 / | tail -1) - 30000000)) /large"
    with changed_device(device, fill, "rm /large"):
        error = refusal(releases[1], address)
    assert "MB are required in /opt/edgerec, but only" in str(error)


def test_disk_that_becomes_full_during_the_installation(installed, device, address, make_faulty_bundle):
    def fill_disk(step):
        if step.name == "install" and step.text.startswith("installing"):
            run_shell(device, "head -c 4G /dev/zero >/large || true")

    error = refusal(make_faulty_bundle("crash"), address, fill_disk)
    run_shell(device, "rm /large")
    assert "No space left on device" in str(error) or "the disk of the device is full" in str(error)


def test_wrong_architecture(installed, address, first_run, tmp_path):
    report = export_bundle(first_run, "rpi-32bit", out=tmp_path / "other")
    error = refusal(report.bundle, address)
    assert "but the bundle is for armv7l (target rpi-32bit); export the bundle again with a --target for" in str(error)


def test_python_that_is_too_old(installed, device, address, releases):
    change = (
        "printf '#!/bin/sh\\necho 3.8\\n' >/old && chmod +x /old && mount --bind /old $(readlink -f /usr/bin/python3)"
    )
    with changed_device(device, change, "umount $(readlink -f /usr/bin/python3)"):
        error = refusal(releases[1], address)
    assert "it has Python 3.8, but the bundle needs 3.11" in str(error)


def test_clock_in_1970(installed, device, address, releases):
    with changed_device(device, "date -s @3600", f"date -s @{time.time():.0f}"):
        error = refusal(releases[1], address)
    assert "its clock is set to the year 1970; set the clock or start time synchronization" in str(error)


def test_device_without_a_camera(installed, device, address, releases):
    driver = "/sys/bus/platform/drivers/vivid"
    with changed_device(device, f"echo vivid.0 >{driver}/unbind", f"echo vivid.0 >{driver}/bind"):
        error = refusal(releases[1], address)
    assert 'it has no camera, but its configuration has sources = ["auto"]; connect a camera' in str(error)


def test_two_deployments_at_the_same_time(installed, device, address, make_faulty_bundle, releases):
    started, results = threading.Event(), []

    def report(step):
        if step.name == "install":
            started.set()

    bundle = make_faulty_bundle("crash")
    thread = threading.Thread(target=lambda: results.append(refusal(bundle, address, report)), daemon=True)
    thread.start()
    assert started.wait(300)
    error = refusal(releases[1], address)
    thread.join(1200)
    assert "another deployment is in progress (started by " in str(error)
    assert "crashed" in str(results[0])


def test_signatures_by_another_key_and_of_an_older_release(installed, device, address, make_bundle, tmp_path):
    alice, mallory = tmp_path / "alice", tmp_path / "mallory"
    for key in (alice, mallory):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    signers = tmp_path / "allowed_signers"
    signers.write_text(f"alice {alice.with_suffix('.pub').read_text()}")
    bundles = [make_bundle(f"signed-{name}", {"note": name.encode()}) for name in ("newer", "older", "foreign")]
    for bundle, key, serial in zip(bundles, (alice, alice, mallory), (2, 1, 3), strict=True):
        sign_bundle(bundle, key, serial=serial)
    newer = deploy_bundle(bundles[0], address, replace(OPTIONS, require_signature=True, allowed_signers=signers))
    error = refusal(bundles[1], address)
    assert error.step == "verify"
    assert "the bundle has the serial number 1, but the device has already accepted 2" in str(error)
    error = refusal(bundles[2], address)
    assert error.step == "verify"
    assert "not in" in str(error)
    assert classifying_release(device, address) == newer.release
    assert "is not signed" in str(refusal(make_bundle("unsigned", {"note": b""}), address))
    assert classifying_release(device, address) == newer.release
    options = replace(OPTIONS, allow_downgrade=True)
    assert deploy_bundle(bundles[1], address, options).previous == newer.release
    device.cut_power()
    device.start(snapshot="deployed")
