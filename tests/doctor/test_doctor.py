"""The doctor: made facts of machines that people have, and this machine's own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest

from edgerec.contract.target import Target
from edgerec.doctor import DoctorReport, Facts, State, cameras, edgetpu, examine, packages, resources, run_doctor
from edgerec.doctor.cameras import Cameras, Node
from edgerec.doctor.edgetpu import EdgeTpu
from edgerec.doctor.gpu import Gpu
from edgerec.doctor.opencv import OpenCV
from edgerec.doctor.packages import Conflict, Packages
from edgerec.doctor.python import Python
from edgerec.doctor.resources import MIB, Place, Resources
from edgerec.doctor.runtimes import Runtime
from edgerec.doctor.system import System
from edgerec.errors import TargetError
from edgerec.utils.child_process import ask_python
from tests.conftest import one_line

LITERT = Runtime("ai-edge-litert", "2.3.0")
CODECS = tuple(Node(f"/dev/video{n}", "bcm2835-codec-decode", "bcm2835-codec", False) for n in range(10, 19))
PI = Facts(
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
    cameras=Cameras((Node("/dev/video0", "HD Webcam C270", "uvcvideo"), *CODECS)),
    resources=Resources(memory_bytes=1800 * MIB, available_bytes=1200 * MIB, temperature_c=51.0),
)
PI32 = replace(
    PI,
    system=replace(PI.system, bits=32),
    packages=Packages({"edgerec": "0.1.0", "tflite-runtime": "2.14.0", "numpy": "1.24.2"}),
    runtimes=(Runtime("tflite-runtime", "2.14.0"),),
)
MAC = Facts(
    system=System(os="Darwin", title="macOS 15.1", machine="arm64"),
    python=Python(version=(3, 13, 1)),
    packages=Packages({"edgerec": "0.1.0", "ai-edge-litert": "2.3.0", "numpy": "2.3.0", "opencv-python": "4.12"}),
    runtimes=(LITERT,),
    opencv=OpenCV("4.12.0", "COCOA", "", True),
    resources=Resources(memory_bytes=0, available_bytes=0),
)
TRAINED = {"tensorflow": "2.21.0", "tf-keras": "2.21.0", "keras": "3.15.1", "tensorflow-model-optimization": "0.8.1"}
LAPTOP = Facts(
    system=System(title="Ubuntu 24.04", avx=True, user="ada", groups=("ada", "video"), member_of=("video",)),
    python=Python(version=(3, 12, 3)),
    packages=Packages({"edgerec": "0.1.0", "ai-edge-litert": "2.3.0", "numpy": "2.3.0"} | TRAINED),
    runtimes=(LITERT, Runtime("tensorflow", "2.21.0")),
    opencv=OpenCV("4.12.0", "QT5", "", True),
    cameras=Cameras(
        (Node("/dev/video0", "Integrated Camera", "uvcvideo"), Node("/dev/video1", "Integrated", "uvcvideo", False))
    ),
    gpu=Gpu(nvidia=("NVIDIA GeForce RTX 4060",)),
    resources=Resources(memory_bytes=16 * 1024 * MIB, available_bytes=12 * 1024 * MIB),
    tensorflow_gpus=1,
)
RENDER = "/dev/dri/renderD128"
STICK = EdgeTpu(stick="/dev/bus/usb/002/003", speed_mbps=5000, library=True)


def wrong(facts: Facts, **options) -> list[tuple[str, str, str]]:
    """State, text and mend of all that is not fine."""
    report = examine(facts, **options)
    return [
        (str(finding.state), f"{finding.what}: {finding.detail}", finding.mend)
        for finding in report.findings
        if finding.state is not State.OK
    ]


@pytest.mark.parametrize("facts", [PI, MAC, LAPTOP], ids=["pi", "mac", "laptop"])
def test_a_machine_where_all_is_well(facts):
    assert wrong(facts) == []
    assert examine(facts).ok


def test_what_is_no_camera_is_told_apart():
    told = [finding.detail for finding in examine(PI).findings if finding.what == "camera"]
    assert told == [
        "/dev/video0 (HD Webcam C270): --source 0",
        "/dev/video10 … video18 (9) are none: bcm2835-codec",
    ]


def test_a_32_bit_system_on_a_64_bit_kernel():
    ((state, text, mend),) = wrong(PI32, target=Target.load("rpi-32bit"))
    assert (state, "pip takes it for aarch64" in text) == ("note", True)
    assert "--no-deps edgerec tflite-runtime" in mend
    states = {text: state for state, text, _ in wrong(PI32, target=Target.load("rpi"))}
    assert states["target rpi: it is for aarch64, this is armv7l"] == "problem"


# What is changed on a machine, the state, a part of what is said, a part of the command.
CASES = {
    "clock": (PI, {"system": {"now_s": 1e9}}, "problem", "2001-09-09", "timedatectl set-ntp true"),
    "locale": (PI, {"system": {"encoding": "ANSI_X3.4-1968"}}, "note", "not UTF-8", "LC_ALL=C.UTF-8"),
    "managed": (PI, {"python": {"managed": True, "venv": False}}, "note", "pip refuses", "-m venv .venv"),
    "pip": (PI, {"python": {"pip": "20.3.4"}}, "note", "20.3.4", "install --upgrade pip"),
    "intel": (MAC, {"python": {"translated": True}}, "problem", "Intel Python", "arch -arm64"),
    "library": (
        PI,
        {"opencv": {"reason": "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"}},
        *("problem", "libGL.so.1", "sudo apt install libgl1 libglib2.0-0"),
    ),
    "root": (
        PI,
        {
            "system": {"root": True},
            "opencv": {"reason": "NumPy does not load: libopenblas.so.0: cannot open shared object file"},
        },
        *("problem", "libopenblas.so.0", "apt install libopenblas0"),
    ),
    "headless": (LAPTOP, {"opencv": {"gui": "NONE"}}, "note", "has no windows", "pip install opencv-python"),
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
        {"cameras": {"nodes": (Node("/dev/video0", "C270", "uvcvideo", None, "Permission denied"),)}},
        *("problem", "group video", "exec su - pi"),
    ),
    "in use": (
        PI,
        {"cameras": {"nodes": (Node("/dev/video0", "C270", "uvcvideo", users=("cheese (process 812)",)),)}},
        *("note", "in use by cheese", "kill 812"),
    ),
    "no camera": (PI, {"cameras": {"nodes": CODECS}}, "note", "plug one in", "rpicam-hello"),
    "container": (PI, {"cameras": {"nodes": (), "hidden": ("video0",)}}, "note", "container", "--device /dev/video0"),
    "ribbon": (
        PI,
        {"cameras": {"nodes": (Node("/dev/video0", "unicam-image", "unicam"),), "system_has_picamera2": True}},
        *("problem", "does not see the system's packages", "--system-site-packages"),
    ),
    "simplejpeg": (
        PI,
        {"cameras": {"nodes": (Node("/dev/video0", "unicam"),), "picamera2": "ValueError: numpy.dtype size changed"}},
        *("problem", "simplejpeg", "pip install --upgrade --force-reinstall simplejpeg"),
    ),
    "power": (PI, {"resources": {"throttled": ("under-voltage",)}}, "problem", "under-voltage", "vcgencmd"),
    "earlier": (PI, {"resources": {"earlier": ("throttled",)}}, "note", "since it was started", "vcgencmd"),
    "hot": (PI, {"resources": {"temperature_c": 84.0}}, "note", "84 degrees", ""),
    "memory": (PI, {"resources": {"available_bytes": 20 * MIB}}, "problem", "too little", "ps aux"),
    "training": (LAPTOP, {"resources": {"available_bytes": 900 * MIB}}, "note", "training wants", "--batch-size"),
    "full": (PI, {"resources": {"places": (Place("cache", "/c", MIB),)}}, "problem", "is full", "pip cache purge"),
    "closed cache": (
        PI,
        {"resources": {"places": (Place("cache", "/c", writable=False),)}},
        *("problem", "cannot be written", "EDGEREC_CACHE"),
    ),
    "cuda": (LAPTOP, {"tensorflow_gpus": 0}, "note", "does not see the GPU", "edgerec[train-gpu]"),
    "avx": (LAPTOP, {"system": {"avx": False}}, "problem", "AVX", "ai-edge-litert"),
    "nvidia": (LAPTOP, {"gpu": {"nvidia": (), "reason": "no driver"}}, "problem", "nvidia-smi failed", "modprobe"),
    "render": (PI, {"gpu": {"nodes": (RENDER,), "closed": (RENDER,)}}, "note", "closed", "exec su - pi"),
    "vulkan": (PI, {"gpu": {"nodes": (RENDER,), "vulkan": False}}, "note", "Vulkan", "mesa-vulkan-drivers"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_people_meet(name):
    facts, changes, state, said, mend = CASES[name]
    changed = {
        key: replace(getattr(facts, key), **value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    found = wrong(replace(facts, **changed))
    assert len(found) == 1, found
    assert found[0][0] == state
    assert said in found[0][1]
    assert mend in found[0][2]
    assert bool(mend) == bool(found[0][2])


PACKAGES = {
    "numpy 2": ({"tflite-runtime": "2.14.0", "numpy": "2.1.0"}, (), "built with NumPy 1", '"numpy<2" "opencv'),
    "two": (
        {"opencv-python": "4.12", "opencv-python-headless": "4.12"},
        *((), "overwrite each other", "pip uninstall -y opencv-python opencv-python-headless && pip install opencv"),
    ),
    "conflict": (
        {},
        (Conflict("opencv-python 5.0", "numpy>=2", "1.26"), Conflict("h5py 3", "numpy>=1.19", "1.26")),
        *("numpy 1.26 does not suit: opencv-python 5.0 needs numpy>=2; h5py 3", 'pip install "numpy>=2,>=1.19"'),
    ),
    "missing": ({}, (Conflict("keras 3", "h5py", ""),), "h5py is not installed", 'pip install "h5py"'),
    "malice": ({}, (Conflict("x 1", 'h5py"; rm -rf ~ #', ""),), "is not installed", ""),
    "keras": (TRAINED | {"tf-keras": "2.19.0"}, (), "tf_keras 2.19.0 is not for", 'pip install "tf_keras~=2.21.0"'),
    "keras 2": (TRAINED | {"keras": "2.15.0"}, (), "Keras 2.15.0 is too old", "keras>=3"),
    "old": (TRAINED | {"tensorflow": "2.15.0", "tf-keras": "2.15.0"}, (), "is too old", "edgerec[train]"),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_that_do_not_fit(name):
    versions, conflicts, said, mend = PACKAGES[name]
    ((state, text, command),) = wrong(
        replace(LAPTOP, packages=Packages(versions, conflicts), gpu=Gpu(), tensorflow_gpus=None)
    )
    assert state == "problem"
    assert said in text
    assert mend in command
    assert bool(mend) == bool(command)


@pytest.mark.parametrize(
    ("machine", "bits", "python", "said", "mend"),
    [
        ("aarch64", 64, 11, "none is installed", "pip install ai-edge-litert"),
        ("armv7l", 32, 11, "none is installed", 'pip install tflite-runtime "numpy<2"'),
        ("aarch64", 32, 11, "none is installed", 'pip install tflite-runtime "numpy<2"'),
        ("armv7l", 32, 13, "no", "python3.11 -m venv"),
        ("armv6l", 32, 11, "none has a wheel for Linux on armv6l", ""),
        ("x86_64", 64, 15, "the last is for 3.14", "python3.14 -m venv"),
    ],
)
def test_a_runtime_that_can_be_installed_is_named(machine, bits, python, said, mend):
    system = replace(PI.system, machine=machine, bits=bits)
    found = wrong(replace(PI, system=system, python=Python(version=(3, python, 0)), runtimes=()))
    (_, text, command) = next(item for item in found if item[1].startswith("runtime"))
    assert said in text
    assert command.startswith(mend)
    assert bool(mend) == bool(command)


@pytest.mark.parametrize(
    ("reason", "mend"),
    [
        ("ImportError: libstdc++.so.6: cannot open shared object file: No such file", "apt install libstdc++6"),
        ("it crashed with SIGILL", "newer processor"),
        ("ImportError: /lib/libm.so.6: version `GLIBC_2.38' not found", "newer system"),
        ("it timed out after 60 s", "does it end?"),
        ("something else", "--force-reinstall ai-edge-litert"),
    ],
)
def test_a_runtime_that_does_not_load(reason, mend):
    ((state, text, command),) = wrong(replace(PI, runtimes=(replace(LITERT, reason=reason),)))
    assert state == "problem"
    assert reason in text
    assert mend in command


@pytest.mark.parametrize(
    ("tpu", "groups", "state", "said", "mend"),
    [
        (replace(STICK, speed_mbps=480), (), "note", "USB 2 port", ""),
        (replace(STICK, stick_open=False, rule=False), (), "problem", "udev has no rule", "udevadm control --reload"),
        (replace(STICK, stick_open=False), (), "problem", "group plugdev", "usermod -aG plugdev pi"),
        (replace(STICK, stick_open=False), ("plugdev",), "problem", "group plugdev", "exec su - pi"),
        (replace(STICK, library=False), (), "problem", "libedgetpu is missing", "apt install ./libedgetpu1-std_"),
        (replace(STICK, library=False, reason="no libusb"), (), "problem", "load: no libusb", "libedgetpu1-std"),
        (replace(STICK, delegate="it crashed with SIGSEGV"), (), "problem", "SIGSEGV", "./libedgetpu1-std_"),
        (EdgeTpu(card=True, library=True), (), "problem", "no driver", "gasket-dkms"),
        (EdgeTpu(card=True, apex="/dev/apex_0", apex_open=False, library=True), (), "problem", "group apex", "apex"),
    ],
)  # fmt: skip
def test_an_edge_tpu_that_is_not_ready(tpu, groups, state, said, mend):
    facts = replace(PI, edgetpu=tpu, system=replace(PI.system, member_of=groups))
    ((got, text, command),) = wrong(facts)
    assert got == state
    assert said in text
    assert mend in command


def test_targets_that_do_not_fit():
    coral, windows = Target.load("coral-usb"), Target.load("desktop-windows")
    assert wrong(replace(PI, edgetpu=STICK), target=coral) == []
    assert "no Edge TPU works here" in wrong(PI, target=coral)[0][1]
    assert wrong(PI, target=coral, delegate="") == []  # its model was not compiled
    assert [text for _, text, _ in wrong(PI, target=windows)] == [
        "target desktop-windows: it is for AMD64, this is aarch64"
    ]
    ((_, text, mend),) = wrong(replace(PI, python=Python(version=(3, 12, 1))), target=Target.load("rpi"))
    assert "it is for Python 3.11 or 3.13, this is 3.12" in text
    assert mend == "python3.13 -m venv .venv"
    old = replace(PI, runtimes=(Runtime("ai-edge-litert", "1.4.0"),))
    assert "it runs with ai-edge-litert>=2.0" in wrong(old, target=Target.load("rpi"))[0][1]
    assert wrong(PI, target=Target.load("android"))[0][0] == "note"


def test_every_command_is_one_that_a_shell_reads():
    """Quotes that do not close would hang the terminal that they are copied into."""
    everything = [PI32, *(replace(PI, edgetpu=replace(STICK, stick_open=False, rule=False)),)]
    for facts, changes, *_ in CASES.values():
        everything.append(
            replace(
                facts, **{k: replace(getattr(facts, k), **v) if isinstance(v, dict) else v for k, v in changes.items()}
            )
        )
    for facts in everything:
        for _, _, mend in wrong(facts):
            assert mend == "" or shlex.split(mend, comments=True)


def test_child_processes_that_crash_hang_or_print_nothing(tmp_path):
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


def test_a_file_that_is_no_camera_says_why():
    replies, _ = ask_python(cameras._QUERY, "/dev/null", "/nowhere")
    assert replies == {
        "/dev/null": ["Inappropriate ioctl for device", 0, ""],
        "/nowhere": ["No such file or directory", 0, ""],
    }


def test_an_edge_tpu_is_found_on_the_bus(tmp_path, monkeypatch):
    for name, values in {
        "usb1": {"idVendor": "1d6b", "idProduct": "0002"},
        "2-1": {"idVendor": "1a6e", "idProduct": "089a", "speed": "480", "busnum": "2", "devnum": "7"},
    }.items():
        (tmp_path / name).mkdir()
        for key, value in values.items():
            (tmp_path / name / key).write_text(f"{value}\n")
    monkeypatch.setattr(edgetpu, "_USB", tmp_path)
    found = edgetpu.look()
    assert (found.stick, found.speed_mbps) == ("/dev/bus/usb/002/007", 480)


def test_places_that_are_gone(tmp_path, monkeypatch):
    def gone():
        raise FileNotFoundError("No such file or directory")

    place = resources._place("current folder", gone)
    assert not place.writable
    assert resources._place("cache", lambda: tmp_path / "not" / "there" / "yet").writable


def test_this_machine(edgerec):
    done = edgerec("doctor", "--json")
    report = json.loads(done.stdout)
    assert report["ok"] is (done.returncode == 0)
    assert {"system", "Python", "packages", "runtime", "OpenCV", "disk"} <= {row["what"] for row in report["findings"]}
    shown = edgerec("doctor", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert shown.stdout.isascii()
    assert shown.returncode == done.returncode
    assert "problem" in shown.stdout


def test_it_runs_without_numpy_and_opens_no_tensorflow():
    code = (
        "import sys\n"
        "sys.modules['numpy'] = None\n"
        "from edgerec.doctor import run_doctor\n"
        "print(type(run_doctor()).__name__, [name for name in ('cv2', 'tensorflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "DoctorReport []", done.stderr


def test_it_refuses_in_one_line(edgerec, tmp_path):
    assert "did you mean 'rpi'" in one_line(edgerec("doctor", "--target", "rp"))
    assert "does not exist" in one_line(edgerec("doctor", "--bundle", tmp_path / "none"))
    with pytest.raises(TargetError):
        run_doctor("nothing-like-it")


def test_a_bundle_s_target_is_looked_at(bundle):
    report = run_doctor(bundle=bundle)
    assert isinstance(report, DoctorReport)
    assert [finding.what for finding in report.findings][-1] == "target rpi"


def test_conflicts_are_what_the_packages_themselves_say(monkeypatch):
    versions, needs = (
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
    found = {"numpy": "2.1.0"}

    def version(name):
        if name not in found:
            raise packages.importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(packages.importlib.metadata, "requires", needs.get)
    monkeypatch.setattr(packages.importlib.metadata, "version", version)
    monkeypatch.setattr(packages, "arch", lambda machine, bits: "armv7l")
    assert list(packages._conflicts(versions)) == [
        Conflict("edgerec 0.1", "numpy<2", "2.1.0"),
        Conflict("edgerec 0.1", "typer>=0.15"),
    ]
