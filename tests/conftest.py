"""Fixtures for all tests: a separate cache, a small trained run, a bundle, a video, real data and CLI calls."""

from __future__ import annotations

import logging
import os
import shutil
import signal
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

# Substrings of the reasons for which tests may be skipped in continuous integration (CI=true). Any other skip is a
# failure there, because tests must not be skipped silently if a program is missing.
ALLOWED_SKIPS = (
    "runs these tests and is covered by the other tests",  # the interpreter of this test run is covered by another test
    "with ensurepip is not installed",  # other Python versions are not packaged for every distribution
    "tflite_micro is not installed",  # only development wheels exist
    "not to be had from",  # the package mirror does not offer the package at the moment
)


def pytest_configure():
    """Handle Ctrl-C even if the tests were started in the background of a shell script, where SIGINT is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
        report.longrepr = f"skipped in continuous integration, where this skip is not allowed: {reason}"
    return report


@pytest.fixture
def fuzz_target(monkeypatch):
    """Return a function that runs cases of a fuzz target of ``benchmarks/fuzz.py``, and returns their statistics."""
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
    """Return the folder of real data; skip the test if the folder does not exist."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA} (EDGEREC_TEST_DATA)")
    return REAL_DATA


@pytest.fixture(scope="session")
def recipe():
    """Return a recipe that trains on the digits data set in a few seconds."""
    from edgerec import Recipe

    return Recipe.from_dict({"train": {"epochs": 4}, "compress": {"epochs": 1, "max_drop": 3.0}})


@contextmanager
def shared_folder(tmp_path_factory) -> Iterator[Path]:
    """Yield a folder that all workers of pytest-xdist share, and lock it against the other workers."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield base
        return
    from filelock import FileLock

    with FileLock(base.parent / "shared.lock"):
        yield base.parent


@pytest.fixture(scope="session")
def first_run(recipe, tmp_path_factory):
    """Return a finished run on the digits data set with the variant int8-qat.

    All tests share this run, and must not change it.
    """
    from edgerec import Run, fit, quantize

    with shared_folder(tmp_path_factory) as folder:
        path = folder / "first" / "digits"
        if not (path / "int8-qat").is_dir():
            quantize(fit(recipe, path, overwrite=path.exists()), "qat")
    return Run.open(path)


@pytest.fixture(scope="module")
def run(first_run, tmp_path_factory):
    """Return a copy of ``first_run`` without the record of its exports. The tests of a module may change this copy."""
    from edgerec import Run

    path = tmp_path_factory.mktemp("runs") / "digits"
    shutil.copytree(first_run.path, path, ignore=shutil.ignore_patterns("exports.json"))
    return Run.open(path)


@pytest.fixture(scope="session")
def bundle(first_run, tmp_path_factory) -> Path:
    """Return the path of a bundle of ``first_run`` for the Raspberry Pi. Tests must not change it."""
    from edgerec import export_bundle

    path = first_run.path.with_name("digits-rpi")
    with shared_folder(tmp_path_factory):
        if not path.exists():
            export_bundle(first_run, "rpi")
    return path


@pytest.fixture(scope="session")
def golden_images(bundle) -> list[Path]:
    """Return the paths of the bundle's golden images: one digit of each class."""
    return sorted((bundle / "golden").glob("*.png"))


@pytest.fixture(scope="session")
def video(golden_images, tmp_path_factory) -> Path:
    """Return the path of a Motion JPEG video of 30 frames, 160×120, which shows each digit for three frames."""
    import cv2

    path = tmp_path_factory.mktemp("video") / "digits.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (160, 120))
    for image in golden_images:
        digit = cv2.resize(cv2.imread(str(image)), (120, 120), interpolation=cv2.INTER_LINEAR)
        frame = cv2.copyMakeBorder(digit, 0, 0, 20, 20, cv2.BORDER_CONSTANT)
        for _ in range(3):
            writer.write(frame)
    writer.release()
    return path


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Return an image folder with a reddish and a bluish class of 20 images each, 40×30.

    The file names contain the names of four people.
    """
    return write_red_and_blue_images(tmp_path / "pictures")


def write_red_and_blue_images(folder: Path) -> Path:
    """Write the images of the fixture ``image_folder``, and return the folder."""
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
    """Return a function that runs the command line in a separate process, and returns the completed process."""

    def call(*arguments, timeout: float = 120, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "edgerec", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)

    return call


@pytest.fixture
def invoke():
    """Return a function that runs the command line in this process, where TensorFlow is already loaded.

    The configuration of the log is restored after each call.
    """
    from typer.testing import CliRunner

    from edgerec.cli.app import app

    def call(*arguments) -> subprocess.CompletedProcess:
        log = logging.getLogger("edgerec")
        configuration = log.handlers[:], log.level, log.propagate
        try:
            result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        finally:
            log.handlers[:], log.level, log.propagate = configuration
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def brief_training(monkeypatch):
    """Leave out the plots and the Keras 3 file at the end of training, which are tested elsewhere and take long."""
    from edgerec.train import results, training_plots

    for drawing in ("learning_curves", "confusion_matrix", "worst_mistakes"):
        monkeypatch.setattr(training_plots, drawing, lambda *_: None)
    monkeypatch.setattr(results, "offer_keras3", lambda *_: None)


def error_line(process: subprocess.CompletedProcess, code: int = 1) -> str:
    """Return the error message of a failed command; fail unless the message is a single line without a traceback."""
    assert process.returncode == code, (process.returncode, process.stdout, process.stderr)
    assert "Traceback" not in process.stderr
    lines = [line for line in process.stderr.splitlines() if line.strip() and line != "starting TensorFlow …"]
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
