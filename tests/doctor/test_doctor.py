"""Tests of `edgerec doctor` with descriptions of typical machines, and on this machine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest

from edgerec.contract.target import Target
from edgerec.doctor import (
    CheckState,
    DoctorReport,
    Machine,
    check_cameras,
    check_edgetpu,
    check_machine,
    check_packages,
    check_resources,
    run_doctor,
)
from edgerec.doctor.check_cameras import Cameras
from edgerec.doctor.check_edgetpu import EdgeTpu
from edgerec.doctor.check_gpu import Gpu
from edgerec.doctor.check_opencv import OpenCV
from edgerec.doctor.check_packages import Conflict, Packages
from edgerec.doctor.check_python import Python
from edgerec.doctor.check_resources import MIB, Folder, Resources
from edgerec.doctor.check_runtimes import Runtime
from edgerec.doctor.check_system import System
from edgerec.errors import TargetError
from edgerec.runtime.video_devices import VideoDevice
from edgerec.utils.child_process import ask_python
from tests.conftest import error_line

LITERT = Runtime("ai-edge-litert", "2.3.0")
CODECS = tuple(VideoDevice(f"/dev/video{n}", "bcm2835-codec-decode", "bcm2835-codec", False) for n in range(10, 19))
PI = Machine(
    system=System(
        title="Debian GNU/Linux 12 (bookworm)",
        machine="aarch64",
        board="Raspberry Pi 4 Model B Rev 1.4",
        user="pi",
        groups=("pi", "video", "plugdev", "render"),
        member_of=("video", "plugdev", "render"),
    ),
    packages=Packages(
        {"edgerec": "0.1.0", "ai-edge-litert": "2.3.0", "numpy": "2.3.0", "opencv-python-headless": "4.12"}
    ),
    runtimes=(LITERT,),
    cameras=Cameras((VideoDevice("/dev/video0", "HD Webcam C270", "uvcvideo"), *CODECS)),
    resources=Resources(memory_bytes=1800 * MIB, available_bytes=1200 * MIB, temperature_c=51.0),
)
PI32 = replace(
    PI,
    system=replace(PI.system, bits=32),
    packages=Packages({"edgerec": "0.1.0", "tflite-runtime": "2.14.0", "numpy": "1.24.2"}),
    runtimes=(Runtime("tflite-runtime", "2.14.0"),),
)
MAC = Machine(
    system=System(os="Darwin", title="macOS 15.1", machine="arm64"),
    python=Python(version=(3, 13, 1)),
    packages=Packages({"edgerec": "0.1.0", "ai-edge-litert": "2.3.0", "numpy": "2.3.0", "opencv-python": "4.12"}),
    runtimes=(LITERT,),
    opencv=OpenCV("4.12.0", "COCOA", "", True),
    resources=Resources(memory_bytes=0, available_bytes=0),
)
TRAINED = {"tensorflow": "2.21.0", "tf-keras": "2.21.0", "keras": "3.15.1", "tensorflow-model-optimization": "0.8.1"}
LAPTOP = Machine(
    system=System(title="Ubuntu 24.04", avx=True, user="ada", groups=("ada", "video"), member_of=("video",)),
    python=Python(version=(3, 12, 3)),
    packages=Packages({"edgerec": "0.1.0", "ai-edge-litert": "2.3.0", "numpy": "2.3.0"} | TRAINED),
    runtimes=(LITERT, Runtime("tensorflow", "2.21.0")),
    opencv=OpenCV("4.12.0", "QT5", "", True),
    cameras=Cameras(
        (
            VideoDevice("/dev/video0", "Integrated Camera", "uvcvideo"),
            VideoDevice("/dev/video1", "Integrated", "uvcvideo", False),
        )
    ),
    gpu=Gpu(nvidia=("NVIDIA GeForce RTX 4060",)),
    resources=Resources(memory_bytes=16 * 1024 * MIB, available_bytes=12 * 1024 * MIB),
    tensorflow_gpus=1,
)
RENDER = "/dev/dri/renderD128"
STICK = EdgeTpu(stick="/dev/bus/usb/002/003", speed_mbps=5000, library=True)


def problems(machine: Machine, **options) -> list[tuple[str, str, str]]:
    """Return the state, the text and the command of each check whose result is not ok."""
    report = check_machine(machine, **options)
    return [
        (str(result.state), f"{result.what}: {result.detail}", result.fix)
        for result in report.results
        if result.state is not CheckState.OK
    ]


@pytest.mark.parametrize("machine", [PI, MAC, LAPTOP], ids=["pi", "mac", "laptop"])
def test_all_checks_of_a_machine_without_problems_are_ok(machine):
    assert problems(machine) == []
    assert check_machine(machine).ok


def test_codecs_are_not_listed_as_cameras():
    details = [result.detail for result in check_machine(PI).results if result.what == "camera"]
    assert details == [
        "/dev/video0 (HD Webcam C270): use --source 0",
        "/dev/video10 … video18 (9) are not cameras: bcm2835-codec",
    ]


def test_32_bit_programs_on_a_64_bit_kernel_get_a_note():
    ((state, text, fix),) = problems(PI32, target=Target.load("rpi-32bit"))
    assert (state, "pip may install packages for aarch64" in text) == ("note", True)
    assert "--no-deps edgerec tflite-runtime" in fix
    states = {text: state for state, text, _ in problems(PI32, target=Target.load("rpi"))}
    assert states["target rpi: the target requires aarch64, but this machine is armv7l"] == "problem"


# A machine, changes to it, and the expected result: state, part of the text, and part of the command.
CASES = {
    "clock": (PI, {"system": {"now_s": 1e9}}, "problem", "2001-09-09", "timedatectl set-ntp true"),
    "locale": (PI, {"system": {"encoding": "ANSI_X3.4-1968"}}, "note", "instead of UTF-8", "LC_ALL=C.UTF-8"),
    "managed": (PI, {"python": {"managed": True, "venv": False}}, "note", "pip refuses", "-m venv .venv"),
    "pip": (PI, {"python": {"pip": "20.3.4"}}, "note", "20.3.4", "install --upgrade pip"),
    "intel": (MAC, {"python": {"translated": True}}, "problem", "Intel build of Python", "arch -arm64"),
    "library": (
        PI,
        {"opencv": {"reason": "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"}},
        *("problem", "libGL.so.1", "sudo apt install libgl1 libglib2.0-0"),
    ),
    "root": (
        PI,
        {
            "system": {"root": True},
            "opencv": {"reason": "NumPy cannot be imported: libopenblas.so.0: cannot open shared object file"},
        },
        *("problem", "libopenblas.so.0", "apt install libopenblas0"),
    ),
    "headless": (LAPTOP, {"opencv": {"gui": "NONE"}}, "note", "cannot open windows", "pip install opencv-python"),
    "left over": (
        PI,
        {"opencv": {"reason": "AttributeError: module 'cv2' has no attribute 'getBuildInformation'"}},
        *("problem", "has no attribute", "--force-reinstall --no-deps opencv-python-headless"),
    ),
    "no opencv": (
        MAC,
        {"opencv": {"reason": "ModuleNotFoundError: No module named 'cv2'"}},
        *("problem", "not installed", "edgerec[desktop]"),
    ),
    "closed": (
        PI,
        {"cameras": {"devices": (VideoDevice("/dev/video0", "C270", "uvcvideo", None, "Permission denied"),)}},
        *("problem", "group video", "exec su - pi"),
    ),
    "in use": (
        PI,
        {"cameras": {"devices": (VideoDevice("/dev/video0", "C270", "uvcvideo", users=("cheese (process 812)",)),)}},
        *("note", "in use by cheese", "kill 812"),
    ),
    "no camera": (PI, {"cameras": {"devices": CODECS}}, "note", "no camera found", "rpicam-hello"),
    "container": (PI, {"cameras": {"devices": (), "hidden": ("video0",)}}, "note", "container", "--device /dev/video0"),
    "ribbon": (
        PI,
        {"cameras": {"devices": (VideoDevice("/dev/video0", "unicam-image", "unicam"),), "system_has_picamera2": True}},
        *("problem", "does not include system packages", "--system-site-packages"),
    ),
    "simplejpeg": (
        PI,
        {"cameras": {"devices": (VideoDevice("/dev/video0", "unicam"),), "picamera2": "numpy size changed"}},
        *("problem", "simplejpeg", "pip install --upgrade --force-reinstall simplejpeg"),
    ),
    "power": (PI, {"resources": {"throttled": ("under-voltage",)}}, "problem", "under-voltage", "vcgencmd"),
    "earlier": (PI, {"resources": {"earlier": ("throttled",)}}, "note", "since boot", "vcgencmd"),
    "hot": (PI, {"resources": {"temperature_c": 84.0}}, "note", "84 degrees", ""),
    "memory": (PI, {"resources": {"available_bytes": 20 * MIB}}, "problem", "not enough", "ps aux"),
    "training": (LAPTOP, {"resources": {"available_bytes": 900 * MIB}}, "note", "training requires", "--batch-size"),
    "full": (PI, {"resources": {"folders": (Folder("cache", "/c", MIB),)}}, "problem", "disk full", "pip cache purge"),
    "closed cache": (
        PI,
        {"resources": {"folders": (Folder("cache", "/c", writable=False),)}},
        *("problem", "no permission to write", "EDGEREC_CACHE"),
    ),
    "cuda": (LAPTOP, {"tensorflow_gpus": 0}, "note", "cannot use the GPU", "edgerec[train-gpu]"),
    "avx": (LAPTOP, {"system": {"avx": False}}, "problem", "AVX", "ai-edge-litert"),
    "nvidia": (LAPTOP, {"gpu": {"nvidia": (), "reason": "no driver"}}, "problem", "nvidia-smi failed", "modprobe"),
    "render": (PI, {"gpu": {"nodes": (RENDER,), "denied": (RENDER,)}}, "note", "group render", "exec su - pi"),
    "vulkan": (PI, {"gpu": {"nodes": (RENDER,), "vulkan": False}}, "note", "Vulkan", "mesa-vulkan-drivers"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_problem_is_found_with_its_command(name):
    machine, changes, state, message, fix = CASES[name]
    changed = {
        key: replace(getattr(machine, key), **value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    results = problems(replace(machine, **changed))
    assert len(results) == 1, results
    assert results[0][0] == state
    assert message in results[0][1]
    assert fix in results[0][2]
    assert bool(fix) == bool(results[0][2])


PACKAGES = {
    "numpy 2": ({"tflite-runtime": "2.14.0", "numpy": "2.1.0"}, (), "built with NumPy 1", '"numpy<2" "opencv'),
    "two": (
        {"opencv-python": "4.12", "opencv-python-headless": "4.12"},
        *((), "overwrite each other", "pip uninstall -y opencv-python opencv-python-headless && pip install opencv"),
    ),
    "conflict": (
        {},
        (Conflict("opencv-python 5.0", "numpy>=2", "1.26"), Conflict("h5py 3", "numpy>=1.19", "1.26")),
        *("numpy 1.26 is incompatible: opencv-python 5.0 requires numpy>=2; h5py 3", 'pip install "numpy>=2,>=1.19"'),
    ),
    "missing": ({}, (Conflict("keras 3", "h5py", ""),), "h5py is not installed", 'pip install "h5py"'),
    "malice": ({}, (Conflict("x 1", 'h5py"; rm -rf ~ #', ""),), "is not installed", ""),
    "keras": (TRAINED | {"tf-keras": "2.19.0"}, (), "tf_keras 2.19.0 does not match", 'pip install "tf_keras~=2.21.0"'),
    "keras 2": (TRAINED | {"keras": "2.15.0"}, (), "Keras 2.15.0 is too old", "keras>=3"),
    "old": (TRAINED | {"tensorflow": "2.15.0", "tf-keras": "2.15.0"}, (), "is too old", "edgerec[train]"),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKAGES)
def test_incompatible_packages_are_found(name):
    versions, conflicts, message, fix = PACKAGES[name]
    ((state, text, command),) = problems(
        replace(LAPTOP, packages=Packages(versions, conflicts), gpu=Gpu(), tensorflow_gpus=None)
    )
    assert state == "problem"
    assert message in text
    assert fix in command
    assert bool(fix) == bool(command)


@pytest.mark.parametrize(
    ("machine", "bits", "python", "message", "fix"),
    [
        ("aarch64", 64, 11, "no TFLite runtime is installed", "pip install ai-edge-litert"),
        ("armv7l", 32, 11, "no TFLite runtime is installed", 'pip install tflite-runtime "numpy<2"'),
        ("aarch64", 32, 11, "no TFLite runtime is installed", 'pip install tflite-runtime "numpy<2"'),
        ("armv7l", 32, 13, "no", "python3.11 -m venv"),
        ("armv6l", 32, 11, "no TFLite runtime provides wheels for Linux on armv6l", ""),
        ("x86_64", 64, 15, "use Python 3.14", "python3.14 -m venv"),
    ],
)
def test_missing_runtime_is_reported_with_the_command_that_installs_one(machine, bits, python, message, fix):
    system = replace(PI.system, machine=machine, bits=bits)
    results = problems(replace(PI, system=system, python=Python(version=(3, python, 0)), runtimes=()))
    (_, text, command) = next(item for item in results if item[1].startswith("runtime"))
    assert message in text
    assert command.startswith(fix)
    assert bool(fix) == bool(command)


@pytest.mark.parametrize(
    ("reason", "fix"),
    [
        ("ImportError: libstdc++.so.6: cannot open shared object file: No such file", "apt install libstdc++6"),
        ("it crashed with SIGILL", "newer CPU"),
        ("ImportError: /lib/libm.so.6: version `GLIBC_2.38' not found", "newer operating system"),
        ("it timed out after 60 s", "does it finish?"),
        ("something else", "--force-reinstall ai-edge-litert"),
    ],
)
def test_runtime_that_cannot_be_imported_is_reported(reason, fix):
    ((state, text, command),) = problems(replace(PI, runtimes=(replace(LITERT, reason=reason),)))
    assert state == "problem"
    assert reason in text
    assert fix in command


@pytest.mark.parametrize(
    ("tpu", "groups", "state", "message", "fix"),
    [
        (replace(STICK, speed_mbps=480), (), "note", "USB 2 port", ""),
        (replace(STICK, stick_open=False, rule=False), (), "problem", "no udev rule", "udevadm control --reload"),
        (replace(STICK, stick_open=False), (), "problem", "group plugdev", "usermod -aG plugdev pi"),
        (replace(STICK, stick_open=False), ("plugdev",), "problem", "group plugdev", "exec su - pi"),
        (replace(STICK, library=False), (), "problem", "libedgetpu is missing", "apt install ./libedgetpu1-std_"),
        (replace(STICK, library=False, reason="no libusb"), (), "problem", "loaded: no libusb", "libedgetpu1-std"),
        (replace(STICK, delegate="it crashed with SIGSEGV"), (), "problem", "SIGSEGV", "./libedgetpu1-std_"),
        (EdgeTpu(card=True, library=True), (), "problem", "driver is not loaded", "gasket-dkms"),
        (EdgeTpu(card=True, apex="/dev/apex_0", apex_open=False, library=True), (), "problem", "group apex", "apex"),
    ],
)  # fmt: skip
def test_problems_of_an_edge_tpu_are_found(tpu, groups, state, message, fix):
    machine = replace(PI, edgetpu=tpu, system=replace(PI.system, member_of=groups))
    ((got, text, command),) = problems(machine)
    assert got == state
    assert message in text
    assert fix in command


def test_machine_is_compared_with_the_target():
    coral, windows = Target.load("coral-usb"), Target.load("desktop-windows")
    assert problems(replace(PI, edgetpu=STICK), target=coral) == []
    assert "no working Edge TPU" in problems(PI, target=coral)[0][1]
    assert problems(PI, target=coral, delegate="") == []  # the bundle runs on the CPU
    assert [text for _, text, _ in problems(PI, target=windows)] == [
        "target desktop-windows: the target requires AMD64, but this machine is aarch64"
    ]
    ((_, text, fix),) = problems(replace(PI, python=Python(version=(3, 12, 1))), target=Target.load("rpi"))
    assert "the target requires Python 3.11 or 3.13, but this is Python 3.12" in text
    assert fix == "python3.13 -m venv .venv"
    old = replace(PI, runtimes=(Runtime("ai-edge-litert", "1.4.0"),))
    assert "the target requires ai-edge-litert>=2.0" in problems(old, target=Target.load("rpi"))[0][1]
    assert problems(PI, target=Target.load("android"))[0][0] == "note"


def test_every_command_has_balanced_quotes():
    """A shell would wait for more input after a command with an unclosed quote."""
    everything = [PI32, *(replace(PI, edgetpu=replace(STICK, stick_open=False, rule=False)),)]
    for machine, changes, *_ in CASES.values():
        everything.append(
            replace(
                machine,
                **{k: replace(getattr(machine, k), **v) if isinstance(v, dict) else v for k, v in changes.items()},
            )
        )
    for machine in everything:
        for _, _, fix in problems(machine):
            assert fix == "" or shlex.split(fix, comments=True)


def test_child_processes_that_crash_hang_or_print_no_json_return_a_reason(tmp_path):
    assert ask_python("print('[1, 2]')") == ([1, 2], "")
    assert ask_python("import os; os.abort()") == (None, "it crashed with SIGABRT")
    assert ask_python("import time; time.sleep(60)", timeout_s=0.3) == (None, "it timed out after 0.3 s")
    assert ask_python("print('no JSON')") == (None, "it printed no result")
    _, reason = ask_python("raise ImportError('a\\nlibGL.so.1: cannot open shared object file: no\\nb')")
    assert reason == "libGL.so.1: cannot open shared object file: no"
    (tmp_path / "colorsys.py").write_text("raise SystemExit('taken from the current folder')")
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert ask_python("import colorsys; print(1)") == (1, "")
    finally:
        os.chdir(before)


def test_querying_a_file_that_is_not_a_camera_returns_the_reason():
    replies, _ = ask_python(check_cameras._QUERY, "/dev/null", "/nowhere")
    assert replies == {
        "/dev/null": ["Inappropriate ioctl for device", 0, ""],
        "/nowhere": ["No such file or directory", 0, ""],
    }


def test_edge_tpu_stick_is_found_on_the_usb_bus(tmp_path):
    for name, values in {
        "usb1": {"idVendor": "1d6b", "idProduct": "0002"},
        "2-1": {"idVendor": "1a6e", "idProduct": "089a", "speed": "480", "busnum": "2", "devnum": "7"},
    }.items():
        folder = tmp_path / "sys/bus/usb/devices" / name
        folder.mkdir(parents=True)
        for key, value in values.items():
            (folder / key).write_text(f"{value}\n")
    tpu = check_edgetpu.collect(tmp_path)
    assert (tpu.stick, tpu.speed_mbps) == (str(tmp_path / "dev/bus/usb/002/007"), 480)


def test_folder_that_was_removed_is_not_writable(tmp_path):
    def raise_not_found():
        raise FileNotFoundError("No such file or directory")

    folder = check_resources.folder_state("current folder", raise_not_found)
    assert not folder.writable
    assert check_resources.folder_state("cache", lambda: tmp_path / "not" / "there" / "yet").writable


def test_doctor_runs_on_this_machine(edgerec):
    result = edgerec("doctor", "--json")
    report = json.loads(result.stdout)
    assert report["ok"] is (result.returncode == 0)
    assert {"system", "Python", "packages", "runtime", "OpenCV", "disk"} <= {row["what"] for row in report["findings"]}
    shown = edgerec("doctor", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert shown.stdout.isascii()
    assert shown.returncode == result.returncode
    assert "problem" in shown.stdout


def test_doctor_runs_without_numpy_and_does_not_import_tensorflow():
    code = (
        "import sys\n"
        "sys.modules['numpy'] = None\n"
        "from edgerec.doctor import run_doctor\n"
        "print(type(run_doctor()).__name__, [name for name in ('cv2', 'tensorflow') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.strip() == "DoctorReport []", result.stderr


def test_doctor_refuses_unknown_targets_and_bundles_in_one_line(edgerec, tmp_path):
    assert "did you mean 'rpi'" in error_line(edgerec("doctor", "--target", "rp"))
    assert "does not exist" in error_line(edgerec("doctor", "--bundle", tmp_path / "none"))
    with pytest.raises(TargetError):
        run_doctor("nothing-like-it")


def test_machine_is_compared_with_the_target_of_a_bundle(bundle):
    report = run_doctor(bundle=bundle)
    assert isinstance(report, DoctorReport)
    assert [result.what for result in report.results][-1] == "target rpi"


def test_conflicts_are_read_from_the_metadata_of_the_packages(monkeypatch):
    versions, requirements = (
        {"edgerec": "0.1", "numpy": "2.1.0"},
        {
            "edgerec": [
                "numpy<2",
                "h5py>=3; extra == 'train'",
                "typer>=0.15",
                "ai-edge-litert; platform_machine == 'aarch64'",
                "?",
            ]
        },
    )
    installed = {"numpy": "2.1.0"}

    def version(name):
        if name not in installed:
            raise check_packages.importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(check_packages.importlib.metadata, "requires", requirements.get)
    monkeypatch.setattr(check_packages.importlib.metadata, "version", version)
    monkeypatch.setattr(check_packages, "arch", lambda machine, bits: "armv7l")
    assert list(check_packages.find_conflicts(versions)) == [
        Conflict("edgerec 0.1", "numpy<2", "2.1.0"),
        Conflict("edgerec 0.1", "typer>=0.15"),
    ]
