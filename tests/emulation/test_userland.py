"""A bundle on Debian's ARM userland; and what is said where something for it is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgerec import __version__
from edgerec.contract.bundle import Bundle
from edgerec.contract.target import Target
from edgerec.emulation import machine, proof, prove, qemu, root, tools, wheels
from edgerec.emulation.debian import MIRROR, find_mirror
from edgerec.emulation.proof_images import some_pictures
from edgerec.emulation.score_comparison import compare
from edgerec.errors import BundleError, TargetError
from edgerec.runtime.interpreter import Fingerprint
from edgerec.utils import subprocesses as programs
from tests.conftest import one_line

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the proof needs Linux")
pytestmark = LINUX


def program(folder: Path, name: str, text: str) -> Path:
    """A stand-in for a program of the system."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def empty_path(tmp_path, monkeypatch) -> Path:
    """A PATH with nothing on it but what a test puts there."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


# What is missing, and what is wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--on", "rip"], "did you mean 'rpi'"),
        (["--on", "desktop"], "there is no userland for target desktop, expected one of Debian on ARM: rpi or rpi-32"),
        (["--on", "rpi", "--data", "nowhere"], "unknown data set 'nowhere'"),
    ],
)
def test_verify_on_refuses(bundle, edgerec, arguments, said):
    assert said in one_line(edgerec("verify", bundle, *arguments))


def test_pictures_without_a_userland_are_wrong_usage(bundle, edgerec):
    done = edgerec("verify", bundle, "--data", "digits")
    assert done.returncode == 2
    assert "add --on rpi" in done.stderr


def test_json_says_what_is_wrong_too(bundle, edgerec):
    done = edgerec("verify", bundle, "--on", "web", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False


def test_without_apt(empty_path):
    with pytest.raises(TargetError, match=r"apt-get is missing.*apt install apt"):
        find_mirror()


def test_without_root_and_without_user_namespaces(empty_path, monkeypatch):
    program(empty_path, "unshare", "echo 'unshare: unshare failed: Operation not permitted' >&2; exit 1")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(TargetError, match=r"needs root or user namespaces \(unshare: .* run it as root, or allow"):
        root.entering()


def test_mirror_is_asked_of_apt_or_of_the_person(empty_path, monkeypatch):
    monkeypatch.delenv(MIRROR, raising=False)
    listed = [
        "https://flat/||Packages",
        "https://one/debian-security|trixie-security|Packages",
        "cdrom:[d]/|trixie|Packages",
    ]
    listed += ["https://two/debian/|trixie|Translations", "https://two/debian/|trixie|Packages"]
    program(empty_path, "apt-get", "\n".join(f"echo '{line}'" for line in listed))
    assert find_mirror() == "https://two/debian/"
    program(empty_path, "apt-get", "echo 'https://three/ubuntu|noble|Packages'")
    with pytest.raises(TargetError, match="set EDGEREC_DEBIAN_MIRROR"):
        find_mirror()
    monkeypatch.setenv(MIRROR, "https://four/debian")
    assert find_mirror() == "https://four/debian"
    monkeypatch.setenv(MIRROR, "https://four/debian main\ndeb [trusted=yes] https://evil/")
    with pytest.raises(TargetError, match="expected the address of a Debian mirror"):
        find_mirror()


def test_an_old_emulator_is_not_taken(empty_path, monkeypatch, tmp_path):
    monkeypatch.setattr(qemu.platform, "machine", lambda: "x86_64")
    program(empty_path, "qemu-aarch64", "echo 'qemu-aarch64 version 7.2.15 (Debian 1:7.2+dfsg-7)'")
    taken = []
    monkeypatch.setattr(qemu, "_take", lambda name, path: taken.append(name))
    with pytest.raises(TargetError):
        qemu.find_qemu("arm64", tmp_path / "cache")
    assert taken == ["qemu-aarch64"]
    old = program(empty_path, "old", "echo 'qemu-aarch64 version 7.2.15'")
    (tmp_path / "cache" / "qemu").mkdir(parents=True, exist_ok=True)
    shutil.copy2(old, tmp_path / "cache" / "qemu" / "qemu-aarch64")
    with pytest.raises(TargetError, match=r"is qemu 7, expected 10 or newer: delete it"):
        qemu.find_qemu("arm64", tmp_path / "cache")


def test_a_device_of_its_own_kind_needs_no_emulator(monkeypatch, tmp_path):
    monkeypatch.setattr(qemu.platform, "machine", lambda: "aarch64")
    assert qemu.find_qemu("arm64", tmp_path) is None


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path):
    begun = time.monotonic()
    with pytest.raises(TargetError, match=r"sh timed out after 0.3 s"):
        programs.call(["sh", "-c", f"(sleep 60; touch {tmp_path}/alive) & wait"], timeout_s=0.3)
    assert time.monotonic() - begun < 30
    assert not (tmp_path / "alive").exists()


def test_no_wheel_for_this_python_says_which_there_are(tmp_path, monkeypatch):
    here = root.Root(tmp_path, "trixie", "arm64", None)
    said = {"3.9": "2.14.0, 2.13.0", "3.11": "2.14.0"}

    def pip(command, **_):
        python = command[command.index("--python-version") + 1]
        if "install" in command:
            return programs.ProgramResult(1, "", "ERROR: No matching distribution found for tflite-runtime==2.14.0")
        return programs.ProgramResult(
            0, f"tflite-runtime (2)\nAvailable versions: {said[python]}" if python in said else "", ""
        )

    monkeypatch.setattr(wheels, "call", pip)
    with pytest.raises(TargetError) as error:
        wheels.find_site("tflite-runtime==2.14.0\n", here, None, "")
    assert str(error.value) == (
        "no wheel of tflite-runtime==2.14.0 for Python 3.13 on aarch64 (Debian trixie); "
        "there are Python 3.9: 2.14.0, 2.13.0; Python 3.11: 2.14.0"
    )
    assert not list((tmp_path / "opt").glob("site-*[!k]"))


def test_two_at_once_build_a_root_once(tmp_path, monkeypatch):
    built = []

    @contextmanager
    def apt(release, architecture):
        built.append(release)
        time.sleep(0.3)
        yield SimpleNamespace(with_dependencies=lambda packages: [])

    monkeypatch.setattr(root, "apt", apt)
    with ThreadPoolExecutor(3) as pool:
        made = [pool.submit(root.find_root, "trixie", "arm64", [], None, tmp_path) for _ in range(3)]
        (folder,) = {done.result(timeout=60).folder for done in made}
    assert built == ["trixie"]
    assert (folder / "lib").is_symlink()
    assert (folder / "sys/devices/system/cpu/possible").read_text() == "0-3\n"


def test_a_build_that_fails_leaves_nothing_half_there(tmp_path, monkeypatch):
    @contextmanager
    def apt(release, architecture):
        yield SimpleNamespace(with_dependencies=lambda packages: [tmp_path / "damaged.deb"])

    monkeypatch.setattr(root, "apt", apt)
    (tmp_path / "damaged.deb").write_bytes(b"no package")
    with pytest.raises(TargetError, match=r"damaged.deb cannot be taken apart|dpkg-deb is missing"):
        root.find_root("trixie", "arm64", [], None, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://evil/simple", "-e .", "evil==1", "edgerec @ https://evil/edgerec.whl", "./edgerec.whl",
        "edgerec==1 --global-option=x", "-r /etc/passwd", "edgerec==1 ; python_version > '3' \\",
    ],
)  # fmt: skip
def test_requirements_of_a_bundle_name_only_what_its_target_names(line):
    allowed = Target.load("rpi").requirements
    wheels.check_requirements("# ours\nedgerec[headless]==0.1.0\nai_edge_litert>=2.0,<3\n", allowed, "here")
    with pytest.raises(BundleError, match="is not taken, expected versions of ai-edge-litert, edgerec"):
        wheels.check_requirements(f"{line}\n", allowed, "here")


def test_pip_judges_markers_as_on_the_device(tmp_path):
    """The launcher tells pip's own marker code of the device, whatever machine this is."""
    code = wheels._PIP_OF_THE_DEVICE.replace(
        'runpy.run_module("pip", run_name="__main__", alter_sys=True)',
        "from pip._vendor.packaging.markers import Marker\nprint(*(Marker(text).evaluate() for text in sys.argv[1:]))",
    )
    markers = ["platform_machine == 'armv7l'", "python_version >= '3.13'", "platform_machine == 'x86_64'"]
    done = subprocess.run([sys.executable, "-c", code, "armv7l", "3.13", *markers], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True", "False"], done.stderr


# What is compared


@pytest.fixture(scope="module")
def spec(bundle):
    return Bundle.open(bundle).manifest.models[0]


def test_scores_pixels_and_labels_are_compared(spec):
    ours = {"a": {"pixels": "x", "scores": [[10, 20]]}, "b": {"pixels": "y", "scores": [[30, 20]]}, "text": None}
    same = compare(ours, ours, [spec], [2])
    assert (same.pictures, same.same_pixels, same.same_top1, same.max_difference, same.problem) == (2, 2, 2, 0, "")
    theirs = ours | {"a": {"pixels": "x", "scores": [[13, 12]]}}
    off = compare(ours, theirs, [spec], [2])
    assert (off.same_top1, off.max_difference) == (1, 8)
    assert off.problem.startswith("scores are off by 8 units of 1/256, allowed are 2; top-1 is the same for 1 of 2")
    assert "other pixels of 1 of 2" in compare(ours, ours | {"a": None}, [spec], [2]).problem
    assert compare(ours, ours | {"a": {"pixels": "x", "scores": [[np.nan, 1]]}}, [spec], [2]).problem


def case_of(bundle):
    return proof._case(Bundle.open(bundle), Target.load("rpi"), None, 1)


def test_missing_libraries_and_import_errors_are_named(bundle):
    here = proof.Proof("bookworm", "3.11", "aarch64", "cortex-a72")
    lost = "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"
    judged = proof._judged(case_of(bundle), here, {"imports": {"cv2": lost, "edgerec.camera": lost}})
    assert judged.missing_libraries == ("libGL.so.1",)
    assert judged.import_errors[0] == f"cv2: {lost}"
    assert "and 1 more" in judged.problem
    said = "python3: error while loading shared libraries: libexpat.so.1: cannot open shared object file: No such file"
    ended = proof._ended(here, programs.ProgramResult(127, "", said))
    assert ended.missing_libraries == ("libexpat.so.1",)
    assert "signal 11" in proof._ended(here, programs.ProgramResult(-11, "", "")).problem


def test_answers_of_a_userland_are_judged_by_the_golden_vectors(bundle):
    case = case_of(bundle)
    there = Fingerprint("ai-edge-litert", case.made_on.version, "aarch64", "0xd08").to_dict()
    answers = {
        name: {"pixels": v["pixels"], "scores": np.array(v["scores"]).tolist()} for name, v in case.golden.items()
    }
    found = {"imports": {}, "here": there, "edgerec": "0", "verify": "", "pictures": answers}
    here = proof.Proof("bookworm", "3.11", "aarch64", "cortex-a72")
    assert proof._judged(case, here, found).problem == ""
    answers["golden-000.png"]["scores"][0][0] += 17
    assert "off by 17 units" in proof._judged(case, here, found).problem


def test_pictures_are_spread_over_all_and_stay_files(image_folder):
    chosen = some_pictures(str(image_folder), 4)
    assert list(chosen) == [f"picture-{n:05d}.jpg" for n in (0, 10, 20, 30)]
    assert all(content[:2] == b"\xff\xd8" for content in chosen.values())
    assert len(some_pictures("digits", 7)) == 7


# The real thing


@pytest.fixture
def ready_to_prove():
    """Debian's programs, and somewhere to take packages from; skips with what is missing."""
    try:
        root.entering()
        find_mirror()
        for name in ("dpkg-deb", "tar"):
            tools.need(name, name)
    except TargetError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_a_trained_bundle_answers_on_a_raspberry_pi_4s_userland(bundle, image_folder, ready_to_prove):
    try:
        report = prove(bundle, "rpi", data=image_folder, pictures=20, releases=["bookworm"], processors=["cortex-a72"])
    except TargetError as error:
        if "not to be had from" in str(error):
            pytest.skip(str(error))
        raise
    (only,) = report.proofs
    assert report.problem == ""
    assert (only.release, only.python, only.machine, only.runtime) == ("bookworm", "3.11", "aarch64", "ai-edge-litert")
    assert only.edgerec == __version__  # its wheel, installed there
    assert (only.golden.pictures, only.golden.same_top1, only.golden.max_difference <= 1) == (10, 10, True)
    assert (only.pictures.pictures, only.pictures.same_pixels) == (20, 20)
    assert report.to_dict()["ok"] is True
    # The proof leaves nothing behind, and the second one finds everything there.
    cache = machine.cache_folder() / "userland"
    assert not list(cache.glob("*/tmp/*"))
    assert not list(cache.glob("**/.*.partial"))
