"""The files that install a bundle on a device (install.sh, systemd unit, Dockerfile), and messages to systemd."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import tomllib
import uuid
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgerec import Bundle, Camera, import_tflite
from edgerec.camera.frame_filters import FrameOptions
from edgerec.camera.reconnection import Timeouts
from edgerec.camera.service_notifier import ServiceNotifier
from edgerec.camera.source_state import SourceState, StateChange
from edgerec.camera.sources import Address, CaptureFormat
from edgerec.contract.decision import Classification, DecisionSpec
from edgerec.contract.target import Target
from edgerec.errors import SourceError, TargetError
from edgerec.export.install_and_service_files import install_files
from edgerec.export.readme import readme
from tests.conftest import REPOSITORY

PYTHON = f"3.{sys.version_info[1]}"
linux = pytest.mark.skipif(sys.platform != "linux", reason="install.sh and its service are for Linux")


class Manager:
    """A stand-in for systemd, which receives the messages of a service (sd_notify)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "40000", "WATCHDOG_PID": str(os.getpid())}
        self._messages: list[str] = []
        self._received = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while (message := self._socket.recv(4096).decode()) != "END":
            with self._received:
                self._messages.append(message)
                self._received.notify_all()
        self._socket.close()

    def messages(self) -> list[str]:
        """Return the messages that were received since the last call."""
        time.sleep(0.05)
        with self._received:
            messages, self._messages = self._messages, []
            return messages

    def wait_for(self, message: str) -> None:
        """Wait until the message is received, and discard all messages up to it."""
        with self._received:
            assert self._received.wait_for(lambda: message in self._messages, 20)
            del self._messages[: self._messages.index(message) + 1]

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(b"END", f"\0{self.address[1:]}" if self.address.startswith("@") else self.address)
        self._thread.join(10)


@pytest.fixture(params=["file", "abstract"])
def manager(request, tmp_path):
    if sys.platform != "linux":
        pytest.skip("systemd exists only on Linux")
    stand_in = Manager(str(tmp_path / "notify") if request.param == "file" else f"@edgerec-test-{uuid.uuid4()}")
    yield stand_in
    stand_in.close()


class BlackImages:
    """A live source of black images that calls ``before`` before each image."""

    format = CaptureFormat()

    def __init__(self, before=lambda: None) -> None:
        self._before = before

    def images(self):
        while True:
            time.sleep(0.01)
            self._before()
            yield np.zeros((4, 4, 3), np.uint8), "black"

    def close(self):
        pass


def camera(opened, classify=None, **options) -> Camera:
    prediction = Classification("a", 0, 1.0, (), np.array([1, 0], np.float32))
    manifest = SimpleNamespace(labels=("a", "b"), decision=DecisionSpec())
    classifier = SimpleNamespace(manifest=manifest, classify=classify or (lambda image: prediction), invalid=0)
    return Camera(classifier, [Address("black", True, True, opened)], **options)


def test_camera_reports_start_state_watchdog_and_stop_to_systemd(manager):
    with camera(BlackImages) as live:
        live.run([], 50, service=ServiceNotifier.from_environment(manager.environment))
    messages = manager.messages()
    assert messages[0] == "READY=1"
    assert messages[-1] == "STOPPING=1"
    assert "STATUS=black: live" in messages
    assert messages.count("WATCHDOG=1") >= 2


def raise_lost():
    raise SourceError("gone")


@pytest.mark.parametrize(
    ("opened", "options"),
    [
        (BlackImages, {"frame_options": FrameOptions(every=100_000)}),
        (raise_lost, {"timeouts": Timeouts(first_wait_s=0.02)}),
    ],
    ids=["skipped frames", "lost source"],
)
def test_watchdog_signals_are_sent_without_predictions(manager, opened, options):
    service = ServiceNotifier.from_environment(manager.environment)
    with camera(opened, **options) as live:
        # Without frames or sinks, run() returns only after a signal, so a daemon thread executes it.
        threading.Thread(target=live.run, args=([],), kwargs={"service": service}, daemon=True).start()
        for _ in range(3):
            manager.wait_for("WATCHDOG=1")


def test_no_watchdog_signal_while_the_model_hangs(manager):
    hanging, ended = threading.Event(), threading.Event()

    def classify(image):
        hanging.set()
        ended.wait(30)
        raise SourceError("over")

    def run() -> None:
        with pytest.raises(SourceError):
            live.run([], service=ServiceNotifier.from_environment(manager.environment))

    with camera(BlackImages, classify) as live:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert hanging.wait(20)
        manager.messages()
        time.sleep(0.3)  # frames continue to arrive
        assert manager.messages() == []
        ended.set()
        thread.join(20)
    assert manager.messages()[-1] == "STOPPING=1"


def test_watchdog_of_another_process_and_invalid_environments_are_ignored(manager, monkeypatch):
    other_notifier = ServiceNotifier.from_environment(manager.environment | {"WATCHDOG_PID": "1"})
    other_notifier.ready()
    other_notifier.alive()
    assert manager.messages() == ["READY=1"]
    ServiceNotifier.from_environment({}).ready()
    ServiceNotifier.from_environment(manager.environment | {"WATCHDOG_USEC": "many"}).alive()
    assert manager.messages() == []
    patient = ServiceNotifier(manager.address, watchdog_s=4000)
    # The monotonic clock can be near 0, because it starts when the device boots.
    monkeypatch.setattr(time, "monotonic", lambda: 1.0)
    for _ in range(50):
        patient.alive()
    assert manager.messages() == ["WATCHDOG=1"]
    other_notifier.report_state(StateChange("a\nREADY=0", SourceState.LOST, 0.0, "x"))
    assert manager.messages() == ["STATUS=a\\nREADY=0: lost (x)"]
    ServiceNotifier("/nowhere/at/all", 1).ready()
    ServiceNotifier("x" * 500, 1).ready()


# Content of the files.


def this_machine(**changes) -> Target:
    """Return a target for this machine that needs Python 3.99, which only the stand-in for Python reports."""
    base = replace(Target.load("rpi"), name="mine", arch=(platform.machine(),), python=("3.99",), system_packages=())
    return replace(base, **changes)


def test_install_files_match_the_target(bundle):
    assert {"install.sh", "edgerec.service", "Dockerfile"} <= {path.name for path in bundle.iterdir()}
    readme = (bundle / "README.md").read_text()
    assert "sudo sh install.sh --service" in readme
    assert "\nFROM debian:trixie-slim\n" in (bundle / "Dockerfile").read_text()
    assert "Dockerfile" not in install_files(Target.load("rpi-32bit"))
    unit = install_files(replace(Target.load("coral-usb"), service=True, requirements=("edgerec",)))[
        "edgerec.service"
    ].decode()
    assert "SupplementaryGroups=video plugdev" in unit
    assert "DeviceAllow=char-usb_device rw" in unit
    assert "RuntimeDirectory=edgerec" in unit
    assert " --config /etc/edgerec/camera.toml --status-file /run/edgerec/status.json\n" in unit
    assert "EnvironmentFile=-/etc/edgerec/secrets.env" in unit
    for file in install_files(Target.load("rpi")).values():
        assert not re.search(rb"@[A-Z]+@", file)


@pytest.mark.parametrize("key", ["arch", "python", "system_packages"])
def test_install_files_refuse_shell_code_in_target_values(key):
    with pytest.raises(TargetError, match=rf"the target's {key} contains the invalid value"):
        install_files(this_machine(**{key: ("$(reboot)",)}))


def test_no_dockerfile_without_a_known_architecture():
    assert "Dockerfile" not in install_files(this_machine(arch=()))


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("name", ["rpi", "rpi-32bit"])
def test_install_script_passes_shellcheck(name, tmp_path):
    (tmp_path / "install.sh").write_bytes(install_files(Target.load(name))["install.sh"])
    result = subprocess.run(["shellcheck", tmp_path / "install.sh"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_unit_is_valid_and_hardened(tmp_path):
    program = tmp_path / "venv" / "bin" / "edgerec"
    executable(program, "")
    unit = tmp_path / "edgerec.service"
    unit.write_text(
        install_files(Target.load("rpi"))["edgerec.service"].decode().replace("/opt/edgerec", str(tmp_path))
    )
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(unit)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in result.stderr:
        pytest.skip("this systemd-analyze cannot analyze files that are not installed")
    assert result.returncode == 0, result.stdout[-200:]


# install.sh with stand-ins for Python and apt-get, so that no root, network or packages are needed.


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


PYTHON_STAND_IN = """
case $* in
  *version_info*) echo "$FAKE_VERSION" ;;
  *find_spec*) exit 1 ;;
  '-m venv'*)
    for folder; do :; done
    echo "$*" >"$STATE/venv"
    mkdir -p "$folder/bin" "$folder/lib/python$FAKE_VERSION/site-packages/pip"
    case $* in *--system-site-packages*) site=true ;; *) site=false ;; esac
    echo "include-system-site-packages = $site" >"$folder/pyvenv.cfg"
    cp "$0" "$folder/bin/python"
    printf '#!/bin/sh\\necho "verified $2"\\n' >"$folder/bin/edgerec"
    chmod +x "$folder/bin/edgerec"
    echo venv-created ;;
  *Bundle.open*) for folder; do :; done; mkdir -p "$folder" ;;
  *' install '*)
    echo "$*" >>"$STATE/pip"
    if [ -n "$FAKE_PIP_FAILS" ]; then echo "ERROR: No matching distribution found for edgerec"; exit 1; fi ;;
esac
"""
# The file `installed` lists the installed packages. libneeded depends on libdependency.
APT_STAND_IN = """
case $* in
  *-s*install*) echo 'Inst libdependency (1)'; echo 'Inst libneeded (1)'; echo 'Inst libc6 [1] (2)' ;;
  *-s*remove*) echo 'Remv libneeded [1]'; echo 'Remv libdependency [1]'; cat "$STATE/also_removed" 2>/dev/null ;;
  *purge*) : >"$STATE/installed"; echo "purged $*" ;;
  *install*) printf 'libneeded libdependency' >"$STATE/installed" ;;
esac
"""


@pytest.fixture
def install_sh(tmp_path):
    """Return a function that runs install.sh with the stand-ins on the PATH, and returns the completed process."""
    if sys.platform != "linux":
        pytest.skip("install.sh is for Linux")
    tools, folder = tmp_path / "tools", tmp_path / "bundle"
    executable(tools / "python3", PYTHON_STAND_IN)
    executable(tools / "apt-get", APT_STAND_IN)
    executable(
        tools / "dpkg-query", 'case " $(cat "$STATE/installed" 2>/dev/null) " in *" $4 "*) echo installed ;; esac'
    )
    executable(tools / "id", "echo ${FAKE_USER:-0}")
    folder.mkdir()

    def call(*arguments, target=None, **environment):
        for name, content in install_files(target or this_machine(system_packages=("libneeded",))).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(
                content.replace(b"'python3 libneeded'", b"libneeded").replace(b"=python3\n", b"=\n")
            )
        (folder / "requirements.txt").write_text("edgerec\n")
        values = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "STATE": str(tmp_path), "FAKE_VERSION": "3.99"}
        return subprocess.run(
            ["sh", str(folder / "install.sh"), "--prefix", str(tmp_path / "prefix"), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
            env=values | environment,
        )

    call.path = tmp_path
    return call


@pytest.mark.parametrize("name", ["rpi", "rpi-32bit"])
def test_readme_and_install_script_create_the_same_environment(bundle, name):
    target, manifest = Target.load(name), Bundle.open(bundle).manifest
    manifest = replace(manifest, provenance={"imported": {"file": "a.tflite", "sha256": "0" * 64}})
    text, script = readme(manifest, target, None), install_files(target)["install.sh"].decode()
    values = dict(re.findall(r"^(SITE|PACKAGES|CSI_PACKAGES)=(.*)$", script, re.MULTILINE))
    packages = [command.split()[4:] for command in re.findall("`(sudo apt-get install [^`]+)`", text)]
    assert packages[0] == shlex.split(values["PACKAGES"])[0].removeprefix("python3 ").split()
    assert packages[1] == ["python3-picamera2"] == [values["CSI_PACKAGES"]]
    (environment,) = [line for line in text.splitlines() if "-m venv" in line]
    assert environment == f"python3 -m venv {values['SITE']} .venv && . .venv/bin/activate"
    assert values["SITE"] == "--system-site-packages"  # otherwise, picamera2 and libcamera are not visible
    sources = re.findall(r"--source (\S+)", text) + re.findall(r"--source (\S+) --headless", script)
    assert set(sources) <= {"auto", "auto`"}
    assert len(sources) >= 3
    assert 'sources = ["auto"]' in script
    assert ("`edgerec deploy BUNDLE USER@DEVICE`" in text) is (
        name == "rpi"
    )  # deployments to 32-bit systems are refused


@pytest.mark.parametrize("driver", ["unicam-image", "rp1-cfe-csi2_ch0", "HD Webcam C270"])
@pytest.mark.parametrize("offered", [True, False])
def test_install_adds_picamera2_for_a_camera_module(install_sh, driver, offered):
    name = install_sh.path / "sys" / "class" / "video4linux" / "video0" / "name"
    name.parent.mkdir(parents=True)
    name.write_text(f"{driver}\n")
    # The stand-in knows picamera2 only after apt-get update.
    apt_cache = '[ -e "$STATE/updated" ]' if offered else "exit 100"
    executable(install_sh.path / "tools" / "apt-cache", apt_cache)
    executable(install_sh.path / "tools" / "apt-get", f'case $* in *update*) : >"$STATE/updated" ;; esac{APT_STAND_IN}')
    result = install_sh("--yes", SYSFS=str(install_sh.path / "sys"))
    assert result.returncode == 0, result.stderr
    module = "Webcam" not in driver
    assert ("missing: libneeded python3-picamera2" in result.stdout) is (module and offered)
    assert ("only USB cameras and streams can be used" in result.stdout) is (module and not offered)
    assert "--system-site-packages" in (install_sh.path / "venv").read_text()


def refused(process, code=1) -> str:
    assert process.returncode == code, (process.stdout, process.stderr)
    (line,) = process.stderr.strip().splitlines()
    return line


def test_install_checks_the_machine_before_it_changes_anything(install_sh):
    assert "this bundle is for sparc, but this system is" in refused(install_sh(target=this_machine(arch=("sparc",))))
    message = refused(install_sh(FAKE_VERSION="3.9"))
    assert message == "error: this bundle needs Python 3.99, but this system has 3.9: install a supported version"
    assert "unknown option --prefx" in refused(install_sh("--prefx"), 2)
    assert "needs a folder" in refused(install_sh("--find-links"), 2)
    assert "the folder of --find-links does not exist" in refused(install_sh("--find-links", "/nowhere"))
    assert "expected a path of letters" in refused(install_sh("--prefix", "/tmp/a|b"))
    assert "nothing to undo" in refused(install_sh("--undo"))
    assert not (install_sh.path / "prefix").exists()


def test_install_asks_before_it_installs_packages(install_sh):
    result = install_sh()
    assert "missing: libneeded" in result.stdout
    assert "these are 2 packages: libdependency libneeded" in result.stdout
    assert "to agree, add --yes" in refused(result)
    assert not (install_sh.path / "prefix").exists()
    assert "only root can install system packages: sudo apt-get install" in refused(install_sh(FAKE_USER="1000"))
    result = install_sh("--dry-run", FAKE_USER="1000")
    assert (result.returncode, result.stderr) == (0, "")
    assert "would run: env DEBIAN_FRONTEND=noninteractive apt-get" in result.stdout
    assert f"Would create {install_sh.path}/prefix/venv" in result.stdout
    assert "Would install the packages in" in result.stdout
    assert f"Would copy the bundle to {install_sh.path}/prefix/bundle" in result.stdout
    assert not re.search("Creating|Installing|Copying|To start the camera", result.stdout)
    assert result.stdout.endswith("\nNo changes were made (--dry-run).\n")
    assert not (install_sh.path / "prefix").exists()
    assert not (install_sh.path / "installed").exists()


def test_repeated_install_changes_nothing_and_undo_removes_everything(install_sh):
    first = install_sh("--yes")
    assert first.returncode == 0, first.stderr
    assert "venv-created" in first.stdout
    assert f"verified {install_sh.path}/prefix/bundle" in first.stdout
    second = install_sh()
    assert second.returncode == 0, second.stderr
    assert "venv-created" not in second.stdout
    assert "System packages" not in second.stdout
    record = (install_sh.path / "prefix" / ".edgerec-brought").read_text()
    assert record.splitlines() == ["package libdependency", "package libneeded"]  # libc6 was only upgraded
    upgraded = install_sh(
        "--yes", FAKE_VERSION="3.98", target=this_machine(python=("3.99", "3.98"))
    )  # the system was upgraded
    assert "venv-created" in upgraded.stdout
    result = install_sh("--undo", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("\nNo changes were made (--dry-run).\n")
    assert "was removed" not in result.stdout
    result = install_sh("--undo", "--yes")
    assert result.returncode == 0, result.stderr
    assert "purge libdependency libneeded" in result.stdout
    assert not (install_sh.path / "prefix").exists()


def test_install_tries_the_wheel_folder_before_the_package_index(install_sh):
    (install_sh.path / "bundle" / "wheels").mkdir()
    assert install_sh("--yes").returncode == 0
    (call,) = (install_sh.path / "pip").read_text().splitlines()
    assert f"--only-binary :all: --no-index --find-links {install_sh.path}/bundle/wheels -r " in call
    message = refused(install_sh(FAKE_PIP_FAILS="yes"))
    assert message.startswith("error: pip: No matching distribution found for edgerec (")
    calls = (install_sh.path / "pip").read_text().splitlines()
    assert len(calls) == 3  # the second run tries the folder alone, then the folder and the index
    assert "--no-index" not in calls[2]


def test_install_works_on_a_32_bit_system_with_a_64_bit_kernel(install_sh):
    """pip must not resolve edgerec's requirements, because it would look for wheels for a 64-bit system."""
    executable(install_sh.path / "tools" / "uname", "case $1 in -s) echo Linux ;; *) echo aarch64 ;; esac")
    executable(install_sh.path / "tools" / "getconf", "echo 32")
    refusal = refused(install_sh(target=this_machine(arch=("aarch64",))))
    assert "this bundle is for aarch64, but this system is armv7l" in refusal
    assert install_sh(target=this_machine(arch=("armv7l",))).returncode == 0
    first, second = (install_sh.path / "pip").read_text().splitlines()
    assert "--no-deps -r " in first
    assert set(second.split()) > required_packages("rpi-32bit")


def required_packages(target):
    """Return edgerec's requirements on a target, without the runtime and the packages without wheels for 32-bit ARM."""
    without = ("numpy", "opencv", "ai-edge-litert", "tflite-runtime", "lgpio")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = re.search(r"\[(.*)\]", Target.load(target).requirements[0])[1].split(",")
    requirements = [*project["dependencies"], *chain(*(project["optional-dependencies"][extra] for extra in extras))]
    return {text for text in requirements if not text.startswith(without)}


def test_readme_of_a_32_bit_bundle_installs_all_packages():
    (line,) = [line for line in Target.load("rpi-32bit").commands if "--no-deps" in line]
    assert set(re.findall(r"'(.*?)'", line)) == required_packages("rpi-32bit")


def test_bundle_for_desktop_linux_does_not_require_lgpio_which_has_no_wheels_for_glibc_2_31():
    assert "gpio" not in Target.load("desktop-linux").requirements[0]
    assert "glibc 2.31" in Target.load("desktop-linux").systems[0]


def test_undo_keeps_packages_that_others_need_and_files_of_the_user(install_sh):
    assert install_sh("--yes").returncode == 0
    (install_sh.path / "also_removed").write_text("Remv a-program-of-mine [1]\n")
    (install_sh.path / "prefix" / "mine.txt").write_text("mine")
    result = install_sh("--undo", "--yes")
    assert "are kept, because a-program-of-mine needs them" in result.stdout
    assert "purged" not in result.stdout
    assert [path.name for path in (install_sh.path / "prefix").iterdir()] == ["mine.txt"]
    assert "contains files that this script did not install" in refused(install_sh("--yes"))


def test_install_refuses_a_prefix_that_is_a_file(install_sh):
    (install_sh.path / "prefix").write_text("mine")
    assert "contains files that this script did not install" in refused(install_sh("--yes"))
    assert (install_sh.path / "prefix").read_text() == "mine"


# Installation without stand-ins.


@pytest.mark.nightly
@linux
def test_install_repeat_and_undo_work_with_real_python_and_pip(bundle, tmp_path):
    """Install a real wheel in a real virtual environment, repeat the installation, and undo it."""
    wheels, prefix, toml = tmp_path / "wheels", tmp_path / "prefix", tmp_path / "mine.toml"
    toml.write_text(f'like = "rpi"\narch = ["{platform.machine()}"]\npython = ["{PYTHON}"]\nsystem_packages = []\n')
    copy = tmp_path / "copy"
    import_tflite(bundle / "model.tflite", copy, labels=bundle / "labels.txt", target=str(toml))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, REPOSITORY]
    subprocess.run(build, check=True, capture_output=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "EDGEREC"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PIP_CONSTRAINT": str(REPOSITORY / "constraints.txt"),
    }

    def install(*arguments):
        command = ["sh", copy / "install.sh", "--prefix", prefix, "--find-links", wheels, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, env=environment, cwd=tmp_path
        )

    result = install()
    if "System packages that are missing" in result.stdout:
        pytest.skip(f"needs {result.stdout.splitlines()[0].partition(': ')[2]}")
    assert result.returncode == 0, result.stderr
    assert "golden images equal" in result.stdout
    package = prefix / "venv" / "lib" / f"python{PYTHON}" / "site-packages" / "edgerec"
    shipped = package / "_shipped" / "targets" / "service"
    assert {path.name for path in shipped.iterdir()} == {"install.sh", "edgerec.service", "Dockerfile", "ansible"}
    second = install()
    assert second.returncode == 0, second.stderr
    assert "Creating" not in second.stdout
    assert sorted(path.name for path in (prefix / "bundle").iterdir()) == sorted(path.name for path in copy.iterdir())
    assert install("--undo").returncode == 0
    assert not prefix.exists()
