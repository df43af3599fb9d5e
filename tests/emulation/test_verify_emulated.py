"""Verification of a bundle in an emulated Debian system for ARM, and the error messages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgerec import __version__, verify_emulated
from edgerec.contract.bundle import Bundle
from edgerec.contract.target import Target
from edgerec.emulation import device_wheels, emulated_system, qemu
from edgerec.emulation import root_file_system as root
from edgerec.emulation.debian import MIRROR, call, find_mirror, require_program, unpack_packages
from edgerec.emulation.emulated_verification import EmulationResult, Expectation, with_failure, with_output
from edgerec.emulation.image_selection import select_images
from edgerec.emulation.root_file_system import RootFileSystem
from edgerec.emulation.score_comparison import compare
from edgerec.errors import BundleError, TargetError
from edgerec.runtime.interpreter import Fingerprint
from edgerec.utils.child_process import Outcome
from tests.conftest import error_line

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the emulation needs Linux")
pytestmark = LINUX


def program(folder: Path, name: str, text: str) -> Path:
    """Write a shell script that replaces a system program, and return its path."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def empty_path(tmp_path, monkeypatch) -> Path:
    """A PATH that contains only an empty folder, to which a test can add programs."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on", "rip"], "did you mean 'rpi'"),
        (["--on", "desktop"], "it does not run Debian on ARM: choose rpi or rpi-32"),
        (["--on", "rpi", "--data", "nowhere"], "unknown data set 'nowhere'"),
    ],
)
def test_verify_on_refuses_unsuitable_targets_and_data(bundle, edgerec, arguments, message):
    assert message in error_line(edgerec("verify", bundle, *arguments))


def test_data_without_on_is_a_usage_error(bundle, edgerec):
    result = edgerec("verify", bundle, "--data", "digits")
    assert result.returncode == 2
    assert "add --on rpi" in result.stderr


def test_json_output_reports_a_failure(bundle, edgerec):
    result = edgerec("verify", bundle, "--on", "web", "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["ok"] is False


def test_missing_apt_is_reported(empty_path):
    with pytest.raises(
        TargetError, match=r"--on requires the program apt-get, which is not installed: run apt install apt"
    ):
        find_mirror()


def test_missing_user_namespaces_are_reported(empty_path, monkeypatch):
    program(empty_path, "unshare", "echo 'unshare: unshare failed: Operation not permitted' >&2; exit 1")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(
        TargetError, match=r"requires root permissions or user namespaces \(unshare: .* run the command as root"
    ):
        root.chroot_command()


def test_mirror_is_read_from_apt_or_the_environment(empty_path, monkeypatch):
    monkeypatch.delenv(MIRROR, raising=False)
    sources = [
        "https://flat/||Packages",
        "https://one/debian-security|trixie-security|Packages",
        "cdrom:[d]/|trixie|Packages",
    ]
    sources += ["https://two/debian/|trixie|Translations", "https://two/debian/|trixie|Packages"]
    program(empty_path, "apt-get", "\n".join(f"echo '{line}'" for line in sources))
    assert find_mirror() == "https://two/debian/"
    program(empty_path, "apt-get", "echo 'https://three/ubuntu|noble|Packages'")
    with pytest.raises(TargetError, match="set EDGEREC_DEBIAN_MIRROR"):
        find_mirror()
    monkeypatch.setenv(MIRROR, "https://four/debian")
    assert find_mirror() == "https://four/debian"
    monkeypatch.setenv(MIRROR, "https://four/debian main\ndeb [trusted=yes] https://evil/")
    with pytest.raises(TargetError, match="must be the URL of a Debian mirror"):
        find_mirror()


def test_old_emulator_is_not_used(empty_path, monkeypatch, tmp_path):
    monkeypatch.setattr(qemu.platform, "machine", lambda: "x86_64")
    program(empty_path, "qemu-aarch64", "echo 'qemu-aarch64 version 7.2.15 (Debian 1:7.2+dfsg-7)'")
    with pytest.raises(
        TargetError, match="requires the program mmdebstrap"
    ):  # because edgerec downloads a newer version
        qemu.find_qemu("arm64", tmp_path / "cache")
    old = program(empty_path, "old", "echo 'qemu-aarch64 version 7.2.15'")
    (tmp_path / "cache" / "qemu").mkdir(parents=True, exist_ok=True)
    shutil.copy2(old, tmp_path / "cache" / "qemu" / "qemu-aarch64")
    with pytest.raises(TargetError, match=r"expected QEMU 10 or newer, but .* is version 7: delete this file"):
        qemu.find_qemu("arm64", tmp_path / "cache")


def test_emulator_cannot_be_downloaded_for_an_unknown_cpu(empty_path, monkeypatch, tmp_path):
    monkeypatch.setattr(qemu.platform, "machine", lambda: "loongarch64")
    with pytest.raises(TargetError, match="Debian does not provide it for loongarch64"):
        qemu.find_qemu("armhf", tmp_path / "cache")


def test_no_emulator_is_needed_on_the_same_architecture(monkeypatch, tmp_path):
    monkeypatch.setattr(qemu.platform, "machine", lambda: "aarch64")
    assert qemu.find_qemu("arm64", tmp_path) is None


def test_timeout_stops_a_program_and_its_children(tmp_path):
    started = time.monotonic()
    with pytest.raises(TargetError, match=r"sh timed out after 0.3 s"):
        call(["sh", "-c", f"(sleep 60; touch {tmp_path}/alive) & wait"], timeout_s=0.3)
    assert time.monotonic() - started < 30
    assert not (tmp_path / "alive").exists()


def test_error_for_a_missing_wheel_lists_available_versions(tmp_path, monkeypatch):
    here = RootFileSystem(tmp_path, "trixie", "arm64", None)
    available = {"3.9": "2.14.0, 2.13.0", "3.11": "2.14.0"}

    def pip(command, **_):
        python = command[command.index("--python-version") + 1]
        if "install" in command:
            return Outcome(1, "", "ERROR: No matching distribution found for tflite-runtime==2.14.0")
        return Outcome(
            0, f"tflite-runtime (2)\nAvailable versions: {available[python]}" if python in available else "", ""
        )

    monkeypatch.setattr(device_wheels, "call", pip)
    with pytest.raises(TargetError) as error:
        device_wheels.find_site("tflite-runtime==2.14.0\n", here, None, "")
    assert str(error.value) == (
        "no wheel of tflite-runtime==2.14.0 is available for Python 3.13 on aarch64 (Debian trixie). "
        "Available versions: Python 3.9: 2.14.0, 2.13.0; Python 3.11: 2.14.0"
    )
    assert not list((tmp_path / "opt").glob("site-*[!k]"))


def test_concurrent_processes_install_a_root_only_once(tmp_path, monkeypatch):
    installed = []

    def unpack(release, architecture, packages, folder):
        installed.append(release)
        time.sleep(0.3)

    monkeypatch.setattr(root, "unpack_packages", unpack)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(root.find_root, "trixie", "arm64", [], None, tmp_path) for _ in range(3)]
        (folder,) = {future.result(timeout=60).folder for future in futures}
    assert installed == ["trixie"]
    assert (folder / "sys/devices/system/cpu/possible").read_text() == "0-3\n"


def test_failed_installation_leaves_no_files(empty_path, tmp_path, monkeypatch):
    monkeypatch.setenv(MIRROR, "https://anna:secret@mirror/debian")
    program(empty_path, "apt-config", "echo 'Acquire::http::Proxy \"http://proxy:3128\";'")
    program(
        empty_path,
        "mmdebstrap",
        f'echo "$@" >{tmp_path}/arguments; '
        "for argument; do case $argument in --aptopt=*) settings=${argument#*=};; esac; done; "
        f'{{ read -r retries; read -r proxy; read -r source <"$argument"; }} <"$settings"; '
        f'echo "$proxy $source" >{tmp_path}/settings; '
        "echo 'I: running'; echo 'E: Failed to fetch it' >&2; echo 'E: mmdebstrap failed to run' >&2; exit 25",
    )
    with pytest.raises(
        TargetError, match=r"cannot install Debian .* from https://.*@?mirror/debian: E: Failed to"
    ) as error:
        root.find_root("trixie", "arm64", ["python3-numpy"], None, tmp_path / "cache")
    assert "secret" not in str(error.value)
    assert not list((tmp_path / "cache").glob("*"))
    arguments = (tmp_path / "arguments").read_text()
    assert "--architectures=arm64" in arguments
    assert "python3-numpy" in arguments
    # Other users can see the arguments of a program.
    assert "secret" not in arguments
    assert "proxy:3128" not in arguments
    proxy = 'Acquire::http::Proxy "http://proxy:3128";'
    assert (tmp_path / "settings").read_text() == f"{proxy} deb https://anna:secret@mirror/debian trixie main\n"


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("E: install arch-test for foreign architecture support", "run sudo apt install arch-test qemu-user-static"),
        ("E: arm64 can neither be executed natively nor via qemu", "run sudo apt install arch-test qemu-user-static"),
        ("E: chroot: Exec format error", "run sudo apt install arch-test qemu-user-static"),
        ("E: GPG error: NO_PUBKEY 0E98404D386FA1D9", "run sudo apt install debian-archive-keyring"),
        ("E: Failed to fetch it", "check the network and the free disk space"),
    ],
)
def test_error_of_mmdebstrap_names_the_missing_package(reason, advice, empty_path, tmp_path, monkeypatch):
    monkeypatch.setenv(MIRROR, "https://mirror/debian")
    program(empty_path, "apt-config", "")
    # mmdebstrap also prints this line if it can run programs for the architecture.
    emulation = "I: arm64 cannot be executed natively, but transparently using qemu-user binfmt emulation"
    program(empty_path, "mmdebstrap", f"echo '{emulation}' >&2; echo '{reason}' >&2; exit 25")
    with pytest.raises(TargetError) as error:
        root.find_root("trixie", "arm64", ["python3-numpy"], None, tmp_path / "cache")
    assert str(error.value).partition(reason)[2].startswith(f": {advice}")


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://evil/simple", "-e .", "evil==1", "edgerec @ https://evil/edgerec.whl", "./edgerec.whl",
        "edgerec==1 --global-option=x", "-r /etc/passwd", "edgerec==1 ; python_version > '3' \\",
    ],
)  # fmt: skip
def test_requirements_with_other_packages_or_options_are_refused(line):
    allowed = Target.load("rpi").requirements
    device_wheels.check_requirements("# ours\nedgerec[headless]==0.1.0\nai_edge_litert>=2.0,<3\n", allowed, "here")
    with pytest.raises(BundleError, match="is not allowed; expected only versions of ai-edge-litert, edgerec"):
        device_wheels.check_requirements(f"{line}\n", allowed, "here")


def wheel(folder: Path, name: str, *requirements: str) -> None:
    """Write an empty wheel with these requirements."""
    metadata = "".join(f"Requires-Dist: {requirement}\n" for requirement in requirements)
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{metadata}")
        archive.writestr(f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}-1.dist-info/RECORD", "")


def test_pip_evaluates_markers_for_the_device(tmp_path):
    wheel(
        tmp_path,
        "demo",
        "arm ; platform_machine == 'armv7l'",
        "newpython ; python_version >= '3.13'",
        "intel ; platform_machine == 'x86_64'",
        "oldpython ; python_version < '3.13'",
    )
    for name in ("arm", "intel", "newpython", "oldpython"):
        wheel(tmp_path, name)
    device = RootFileSystem(tmp_path, "trixie", "armhf", None)
    command = [*device_wheels.device_pip(device), "install", "--no-index", "--find-links", str(tmp_path)]
    command += ["--target", str(tmp_path / "site"), *device_wheels.wheel_options(device, "3.13"), "demo"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    installed = {path.name.partition("-")[0] for path in (tmp_path / "site").glob("*.dist-info")}
    assert installed == {"demo", "arm", "newpython"}


# Comparison of results


@pytest.fixture(scope="module")
def spec(bundle):
    return Bundle.open(bundle).manifest.models[0]


def test_compare_counts_differences_of_pixels_scores_and_labels(spec):
    expected = {"a": {"pixels": "x", "scores": [[10, 20]]}, "b": {"pixels": "y", "scores": [[30, 20]]}, "text": None}
    same = compare(expected, expected, [spec], [2])
    assert (same.images, same.same_pixels, same.same_top1, same.max_difference, same.problem) == (2, 2, 2, 0, "")
    received = expected | {"a": {"pixels": "x", "scores": [[13, 12]]}}
    comparison = compare(expected, received, [spec], [2])
    assert (comparison.same_top1, comparison.max_difference) == (1, 8)
    assert comparison.problem.startswith(
        "scores differ by up to 8 steps of 1/256, but must not differ by more than 2; the predicted label is the same "
        "for 1 of 2"
    )
    assert "different pixels for 1 of 2" in compare(expected, expected | {"a": None}, [spec], [2]).problem
    assert compare(expected, expected | {"a": {"pixels": "x", "scores": [[np.nan, 1]]}}, [spec], [2]).problem


@pytest.fixture(scope="module")
def expected(bundle):
    return Expectation.of(Bundle.open(bundle), Target.load("rpi"))


NOT_RUN = EmulationResult("bookworm", "3.11", "aarch64", "cortex-a72")


def test_missing_libraries_and_import_errors_are_named(expected):
    missing_library = "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"
    result = with_output(NOT_RUN, {"imports": {"cv2": missing_library, "edgerec.camera": missing_library}}, expected)
    assert result.missing_libraries == ("libGL.so.1",)
    assert result.import_errors[0] == f"cv2: {missing_library}"
    assert "and 1 more" in result.problem
    stderr = (
        "python3: error while loading shared libraries: libexpat.so.1: cannot open shared object file: No such file"
    )
    failed = with_failure(NOT_RUN, Outcome(127, "", stderr))
    assert failed.missing_libraries == ("libexpat.so.1",)
    assert "signal 11" in with_failure(NOT_RUN, Outcome(-11, "", "")).problem


def test_emulated_scores_are_compared_with_the_golden_vectors(expected):
    device = Fingerprint("ai-edge-litert", expected.made_on.version, "aarch64", "0xd08").to_dict()
    results = {
        name: {"pixels": one["pixels"], "scores": np.array(one["scores"]).tolist()}
        for name, one in expected.golden.items()
    }
    output = {"imports": {}, "here": device, "edgerec": "0", "verify": "", "images": results}
    assert with_output(NOT_RUN, output, expected).problem == ""
    results["golden-000.png"]["scores"][0][0] += 17
    assert "differ by up to 17 steps" in with_output(NOT_RUN, output, expected).problem


def test_selected_images_are_evenly_spread_and_not_decoded(image_folder):
    chosen = select_images(str(image_folder), 4)
    assert list(chosen) == [f"image-{n:05d}.jpg" for n in (0, 10, 20, 30)]
    assert all(content[:2] == b"\xff\xd8" for content in chosen.values())
    assert len(select_images("digits", 7)) == 7


# Emulation


@pytest.fixture
def emulation():
    """Skip the test if mmdebstrap or a Debian mirror is missing."""
    try:
        root.chroot_command()
        find_mirror()
        require_program("mmdebstrap", "mmdebstrap")
    except TargetError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_packages_of_another_architecture_are_unpacked_with_merged_folders(emulation, tmp_path):
    try:
        unpack_packages("bookworm", "armhf", ["base-files", "zlib1g"], tmp_path)
    except TargetError as error:
        if "cannot install Debian" in str(error):
            pytest.skip(str(error))
        raise
    assert (tmp_path / "lib").is_symlink()
    (library,) = (tmp_path / "usr/lib/arm-linux-gnueabihf").glob("libz.so.1.*")
    assert library.read_bytes()[:5] == b"\x7fELF\x01"  # 32-bit


@pytest.mark.nightly
def test_trained_bundle_gives_the_same_scores_on_an_emulated_raspberry_pi_4(bundle, image_folder, emulation):
    try:
        report = verify_emulated(
            bundle, "rpi", data=image_folder, images=20, releases=["bookworm"], cpus=["cortex-a72"]
        )
    except TargetError as error:
        if "cannot install Debian" in str(error):
            pytest.skip(str(error))
        raise
    (result,) = report.results
    assert report.problem == ""
    assert (result.release, result.python, result.machine, result.runtime) == (
        "bookworm",
        "3.11",
        "aarch64",
        "ai-edge-litert",
    )
    assert result.edgerec == __version__  # edgerec's own wheel is installed
    assert (result.golden.images, result.golden.same_top1, result.golden.max_difference <= 1) == (10, 10, True)
    assert (result.images.images, result.images.same_pixels) == (20, 20)
    assert report.to_dict()["ok"] is True
    # No temporary files are left.
    cache = emulated_system.cache_folder() / "userland"
    assert not list(cache.glob("*/tmp/*"))
    assert not list(cache.glob("**/.*.partial"))
