"""Shared by all tests: a cache of their own, a small trained run, a bundle, a video, real data where it lies."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("EDGEREC_TEST_DATA") or REPOSITORY.parent / "shared" / "data")

# Tests that may be skipped in continuous integration (CI=true), by a part of the reason. Any other skip fails there,
# because a green run must not mean that a program was missing.
ALLOWED_SKIPS = (
    "runs these tests: the device above has it",  # the interpreter of this test run is covered by another test
    "with ensurepip at hand",  # other Python versions are not packaged for every distribution
    "tflite_micro is not installed",  # only development wheels exist
    "not to be had from",  # a package that the mirror does not offer at the moment
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    return _refuse_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    return _refuse_skip(report)


def _refuse_skip(report):
    """Turn a skip into a failure in continuous integration, unless its reason is allowed."""
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(allowed in reason for allowed in ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"skipped in continuous integration, where nothing may be missing: {reason}"
    return report


@pytest.fixture
def fuzz_target(monkeypatch):
    """Return a function that runs cases of a target of ``benchmarks/fuzz.py``, and returns the figures."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import fuzz

    def run_cases(name, folder, count, *, first=0, seed=0, **changes):
        return fuzz.run_target(
            name, replace(fuzz.TARGETS[name], **changes), folder, seed=seed, count=count, first=first
        )

    return run_cases


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    os.environ["EDGEREC_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA} (EDGEREC_TEST_DATA)")
    return REAL_DATA


@pytest.fixture(scope="session")
def recipe():
    """Digits, quick."""
    from edgerec import Recipe

    return Recipe.from_dict({"train": {"epochs": 4}, "compress": {"epochs": 1, "max_drop": 3.0}})


@contextmanager
def shared_folder(tmp_path_factory) -> Iterator[Path]:
    """A folder that all of pytest-xdist's workers share, while no other works in it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield base
        return
    from filelock import FileLock

    with FileLock(base.parent / "shared.lock"):
        yield base.parent


@pytest.fixture(scope="session")
def first_run(recipe, tmp_path_factory):
    """A finished run on the embedded digits, with the variant int8-qat; made once, and nobody changes it."""
    from edgerec import Run, fit, quantize

    with shared_folder(tmp_path_factory) as folder:
        path = folder / "first" / "digits"
        if not (path / "int8-qat").is_dir():
            quantize(fit(recipe, path, overwrite=path.exists()), "qat")
    return Run.open(path)


@pytest.fixture(scope="module")
def run(first_run, tmp_path_factory):
    """A copy of ``first_run`` without the record of its exports, for the tests of a file, which may change it."""
    from edgerec import Run

    path = tmp_path_factory.mktemp("runs") / "digits"
    shutil.copytree(first_run.path, path, ignore=shutil.ignore_patterns("exports.json"))
    return Run.open(path)


@pytest.fixture(scope="session")
def bundle(first_run, tmp_path_factory) -> Path:
    """That run's bundle for the Raspberry Pi; nobody changes it either."""
    from edgerec import export_bundle

    path = first_run.path.with_name("digits-rpi")
    with shared_folder(tmp_path_factory):
        if not path.exists():
            export_bundle(first_run, "rpi")
    return path


@pytest.fixture(scope="session")
def pictures(bundle) -> list[Path]:
    """The bundle's golden pictures: one digit of each class."""
    return sorted((bundle / "golden").glob("*.png"))


@pytest.fixture(scope="session")
def video(pictures, tmp_path_factory) -> Path:
    """A motion-JPEG video of 30 frames, 160×120, three of each digit in turn."""
    import cv2

    path = tmp_path_factory.mktemp("video") / "digits.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (160, 120))
    for picture in pictures:
        digit = cv2.resize(cv2.imread(str(picture)), (120, 120), interpolation=cv2.INTER_LINEAR)
        frame = cv2.copyMakeBorder(digit, 0, 0, 20, 20, cv2.BORDER_CONSTANT)
        for _ in range(3):
            writer.write(frame)
    writer.release()
    return path


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Two classes of 20 colour pictures, 40×30: one reddish, one bluish; four people in the file names."""
    return red_and_blue(tmp_path / "pictures")


def red_and_blue(folder: Path) -> Path:
    """What the fixture ``image_folder`` has."""
    import cv2

    rng = np.random.default_rng(0)
    for label, channel in (("red", 2), ("blue", 0)):
        (folder / label).mkdir(parents=True)
        for number in range(20):
            image = rng.integers(0, 90, (30, 40, 3), np.uint8)
            image[:, :, channel] += 150
            cv2.imwrite(str(folder / label / f"person{number % 4}_{number:02d}.jpg"), image)
    return folder


@pytest.fixture
def edgerec():
    """Run the command line in a process of its own; gives the completed process."""

    def call(*arguments, timeout: float = 120, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "edgerec", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)

    return call


@pytest.fixture
def here():
    """The same in this process, where TensorFlow is loaded already; what it does to the log is undone."""
    from typer.testing import CliRunner

    from edgerec.cli.app import app

    def call(*arguments) -> subprocess.CompletedProcess:
        log = logging.getLogger("edgerec")
        before = log.handlers[:], log.level, log.propagate
        try:
            done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        finally:
            log.handlers[:], log.level, log.propagate = before
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    return call


def one_line(done: subprocess.CompletedProcess, code: int = 1) -> str:
    """The only line of an error, as the person sees it."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip() and line != "starting TensorFlow …"]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
