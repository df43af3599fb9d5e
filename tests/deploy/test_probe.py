"""Tests of the checks whether a bundle can be installed on a device."""

from __future__ import annotations

import pytest

from edgerec import Device, Target
from edgerec.deploy.device import DeviceFacts
from edgerec.deploy.probe import check_device
from edgerec.errors import DeployError

PI = {
    "kernel": "Linux",
    "bits": "64",
    "machine": "aarch64",
    "system": "Debian GNU/Linux 12 (bookworm)",
    "glibc": "2.36",
    "clock": "1770000000",
    "systemd": "yes",
    "root": "sudo",
    "free_kib": "8000000",
    "python": "3.11 /usr/bin/python3",
    "venv": "3.11",
}


def facts(*lines, **changes):
    return DeviceFacts.parse([*(f"{key} {value}" for key, value in (PI | changes).items()), *lines])


def refusal(**changes):
    with pytest.raises(DeployError) as caught:
        check_device(facts(**changes), Target.load("rpi"), Device("pi@raspberrypi"))
    return str(caught.value)


def test_suitable_device_is_accepted_with_its_python_version():
    assert check_device(facts(), Target.load("rpi"), Device("pi@raspberrypi")) == "3.11"


def test_output_of_login_scripts_is_ignored():
    assert facts("Welcome to this device!", "", "camera") == facts("camera")


def test_codecs_of_a_raspberry_pi_are_not_cameras():
    found = facts(
        "camera /dev/video10 bcm2835-codec-decode", "camera /dev/video0 unicam", "camera /dev/video1 USB Camera"
    )
    assert found.cameras == ("/dev/video0", "/dev/video1")
    assert found.camera_module


def test_packages_that_are_installed_on_a_pi_later_can_be_used():
    rpi, desktop = Target.load("rpi"), Target.load("desktop-linux")
    assert facts("camera /dev/video0 USB Camera").uses_system_packages(rpi, "3.11")
    assert not facts().uses_system_packages(desktop, "3.11")
    # Only the system's own Python can import Debian's packages.
    assert not facts(python="3.11 /usr/local/bin/python3.11").uses_system_packages(rpi, "3.11")


def test_32_bit_system_with_64_bit_kernel_is_32_bit():
    assert facts(bits="32").machine == "armv7l"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": "FreeBSD"}, "its operating system is FreeBSD, but only Linux is supported"),
        ({"bits": "32"}, "its architecture is armv7l, but the bundle is for aarch64 (target rpi)"),
        ({"root": ""}, "root permissions are required, but pi cannot use sudo without a password"),
        ({"systemd": ""}, "it does not run systemd"),
        ({"clock": "0"}, "its clock is set to the year 1970"),
        ({"python": "3.9 /usr/bin/python3", "venv": "3.9"}, "it has Python 3.9, but the bundle needs 3.11 or 3.13"),
        ({"venv": ""}, "Python 3.11 cannot create virtual environments; run sudo apt-get install python3-venv"),
        ({"python": ""}, "Python is not installed; run sudo apt-get install python3 python3-venv"),
    ],
)
def test_unsuitable_device_is_refused_with_reason_and_fix(changes, message):
    text = refusal(**changes)
    assert text.startswith("cannot deploy to pi@raspberrypi: ")
    assert message in text
