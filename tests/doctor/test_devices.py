"""The doctor's rules for Coral devices and cameras, with a copy of another machine's /sys, /proc and /dev."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from edgerec.doctor import Machine, check_edgetpu, check_machine, inspect_machine, run_doctor
from edgerec.doctor.check_edgetpu import EdgeTpu
from edgerec.doctor.check_result import CheckState
from edgerec.doctor.check_runtimes import Runtime
from edgerec.doctor.check_system import System

PI5 = "Raspberry Pi 5 Model B Rev 1.0"
CORAL_CARD_FILES = {
    "sys/bus/pci/devices/0000:01:00.0/vendor": "0x1ac1",
    "sys/bus/pci/devices/0000:01:00.0/device": "0x089a",
}
STICK = {
    "sys/bus/usb/devices/2-1/idVendor": "18d1",
    "sys/bus/usb/devices/2-1/idProduct": "9302",
    "sys/bus/usb/devices/2-1/speed": "5000",
    "sys/bus/usb/devices/2-1/busnum": "2",
    "sys/bus/usb/devices/2-1/devnum": "3",
    "dev/bus/usb/002/003": "",
    "etc/udev/rules.d/60-libedgetpu1-std.rules": 'SUBSYSTEM=="usb",ATTRS{idVendor}=="1a6e",GROUP="plugdev"',
}
OVERLAYS = "dtparam=audio=on\ndtoverlay=pciex1-compat-pi5,no-mip\ndtoverlay=pcie-32bit-dma-pi5 # Coral\n"


def package(version: str, name: str = "libedgetpu1-std", status: str = "install ok installed") -> dict[str, str]:
    text = f"Package: bash\nStatus: install ok installed\nVersion: 5.2\n\nPackage: {name}\nStatus: {status}\n"
    return {"var/lib/dpkg/status": f"{text}Description: Support library\n Version: none\nVersion: {version}\n"}


def machine(folder: Path, *overlays: dict[str, str], kernel: str = "6.1.0-rpi8", board: str = "") -> Path:
    files = {"proc/sys/kernel/osrelease": kernel, "proc/device-tree/model": f"{board}\0"}
    for name, text in {key: value for part in (files, *overlays) for key, value in part.items()}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")
    return folder


def problems(root: Path, subject: str = "Edge TPU") -> list[tuple[str, str]]:
    """Detail and command of each problem that the doctor finds below ``root``."""
    results = [(f.detail, f.fix) for f in run_doctor(root=root).of(CheckState.PROBLEM) if f.what == subject]
    assert all(shlex.split(fix, comments=True) for _, fix in results)
    return results


@pytest.mark.parametrize(
    ("kernel", "command"),
    [
        ("6.1.0-rpi8-rpi-v8", "apt install gasket-dkms"),
        ("6.3.13", "apt install gasket-dkms"),
        ("6.4.0", "apt install ./gasket-dkms_*.deb"),
        ("6.12.47+rpt-rpi-v8", "apt install ./gasket-dkms_*.deb"),
        ("10.0", "apt install ./gasket-dkms_*.deb"),
    ],
)
def test_driver_package_for_a_card_depends_on_the_kernel(tmp_path, kernel, command):
    (detail, fix), *_ = problems(machine(tmp_path, CORAL_CARD_FILES, kernel=kernel))
    assert "driver is not loaded" in detail
    assert command in fix
    assert ("does not build on kernel" in detail) is ("./" in command)


def test_loaded_driver_without_a_device_is_not_installed_again(tmp_path):
    root = machine(
        tmp_path, CORAL_CARD_FILES, {"proc/modules": "gasket 1 1 apex\napex 24576 0 - Live"}, kernel="6.12.47"
    )
    (detail, fix), *_ = problems(root)
    assert "is loaded" in detail
    assert "dmesg" in fix


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ({"boot/firmware/config.txt": OVERLAYS}, ["kernel=kernel8.img"]),
        ({"boot/firmware/config.txt": f"{OVERLAYS}kernel=kernel8.img"}, []),
        ({"boot/config.txt": "#dtoverlay=pcie-32bit-dma-pi5"}, ["pciex1-compat-pi5", "pcie-32bit-dma-pi5", "kernel8"]),
    ],
)
def test_a_card_on_a_raspberry_pi_5_needs_its_overlays(tmp_path, config, missing):
    (tmp_path / "pi4").mkdir()
    assert not any(
        "config.txt" in detail for detail, _ in problems(machine(tmp_path / "pi4", CORAL_CARD_FILES, config))
    )
    results = [
        item for item in problems(machine(tmp_path, CORAL_CARD_FILES, config, board=PI5)) if "config.txt" in item[0]
    ]
    assert len(results) == bool(missing)
    assert all(line in results[0][0] and line in results[0][1] for line in missing)


@pytest.mark.parametrize(
    ("version", "runtime", "crashes"),
    [
        ("16.0", Runtime("ai-edge-litert", "2.3.0"), True),
        ("16.0", Runtime("tflite-runtime", "2.14.0"), True),
        ("16.0", Runtime("tflite-runtime", "2.11.0"), False),
        ("16.0tf2.17.1-1", Runtime("tflite-runtime", "2.17.1"), False),
        ("16.0tf2.19.1-1", Runtime("ai-edge-litert", "2.3.0"), False),
        ("", Runtime("ai-edge-litert", "2.3.0"), False),
    ],
)
def test_libedgetpu_is_checked_against_the_runtime(tmp_path, version, runtime, crashes):
    tpu = check_edgetpu.collect(machine(tmp_path, STICK, package(version)))
    assert (tpu.version, tpu.stick, tpu.rule) == (version, str(tmp_path / "dev/bus/usb/002/003"), True)
    tpu = replace(tpu, library=True, reason="", delegate="", stick_open=True)
    report = check_machine(Machine(edgetpu=tpu, runtimes=(runtime,)))
    results = [result for result in report.results if result.what == "Edge TPU"]
    assert [result.state is CheckState.PROBLEM for result in results] == [crashes]
    if crashes:
        assert "crashes" in results[0].detail
        assert "apt install ./libedgetpu1-std_*.deb" in results[0].fix


@pytest.mark.parametrize("entry", [package("16.0", status="deinstall ok config-files"), package("1.0", name="libfoo")])
def test_version_of_libedgetpu_is_empty_if_it_is_not_installed(tmp_path, entry):
    assert check_edgetpu.collect(machine(tmp_path, STICK, entry)).version == ""


@pytest.mark.parametrize("library", [EdgeTpu(), EdgeTpu(library=True, delegate="it crashed with SIGSEGV")])
def test_no_command_upgrades_libedgetpu_from_a_source_without_newer_versions(library):
    tpu = replace(library, stick="/dev/bus/usb/002/003", version="16.0")
    for system in (System(), System(os="Darwin")):
        for result in check_edgetpu.check(tpu, system, (Runtime("ai-edge-litert", "2.3.0"),)):
            assert result.state is CheckState.PROBLEM
            assert "--only-upgrade" not in result.fix
            assert ("apt" in result.fix) is (system.os == "Linux")


def video(number: int, name: str, index: int = 0) -> dict[str, str]:
    entry = f"sys/class/video4linux/video{number}"
    return {f"{entry}/name": name, f"{entry}/index": str(index), f"dev/video{number}": ""}


def test_cameras_are_read_from_a_copy_of_another_machine(tmp_path):
    root = machine(
        tmp_path,
        *(video(0, "rp1-cfe-csi2_ch0"), video(8, "HD Webcam C270"), video(9, "HD Webcam C270", 1)),
        *(video(20, "pispbe-input"), {"sys/class/video4linux/video30/name": "Hidden"}),
        {"usr/lib/python3/dist-packages/picamera2/__init__.py": ""},
        board=PI5,
    )
    machine_info = inspect_machine(root)
    assert machine_info.system.board == PI5
    assert [device.path for device in machine_info.cameras.devices if device.raw] == [str(tmp_path / "dev/video0")]
    details = [f.detail for f in run_doctor(root=root).results if f.what == "camera"]
    assert any("video0" in detail and "--source auto" in detail for detail in details)
    assert any("HD Webcam C270" in detail and "video8" in detail for detail in details)
    assert any("video9" in detail and "are not cameras" in detail for detail in details)
    assert any("video30 not available in this container" in detail for detail in details)
    ((detail, fix),) = problems(root, "picamera2")
    assert "does not include system packages" in detail
    assert "--system-site-packages" in fix


def test_missing_picamera2_is_installed_with_the_command_of_the_readme(tmp_path):
    ((_, fix),) = problems(machine(tmp_path, video(0, "unicam-image"), board=PI5), "picamera2")
    assert "apt-get install --no-install-recommends python3-picamera2 && " in fix
    assert "--system-site-packages" in fix
