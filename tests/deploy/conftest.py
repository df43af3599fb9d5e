"""Fixtures for deployment tests, which provide a device with an SSH server and bundles that are quick to install."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import random
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from edgerec import Bundle, import_tflite
from tests import tflite_models
from tests.deploy.device import TestDevice

# The wheel in a bundle is only installed if its version differs from the version of the running edgerec.
SMALL_VERSION = "0.0.1"
REASON = "test devices require Linux, root permissions and the programs sshd and unshare"
HAS_DEVICES = (
    sys.platform == "linux"
    and os.geteuid() == 0
    and os.path.exists("/usr/sbin/sshd")
    and shutil.which("unshare") is not None
)


def small_wheel() -> tuple[str, bytes]:
    """Return the name and content of a wheel that installs ``small_edgerec.py`` as the program ``edgerec``."""
    info = f"edgerec-{SMALL_VERSION}.dist-info"
    files = {
        "small_edgerec.py": Path(__file__).with_name("small_edgerec.py").read_text(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: edgerec\nVersion: {SMALL_VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nedgerec = small_edgerec:main\n",
        f"{info}/RECORD": "",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)
    return f"wheels/edgerec-{SMALL_VERSION}-py3-none-any.whl", buffer.getvalue()


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory):
    """Return a function that writes a bundle for this machine's architecture, and returns the bundle's path.

    The argument ``padding`` is the size of an additional file in bytes. All other keyword arguments are written to
    ``behavior.json`` in the bundle. Bundles with different arguments are different releases.
    """
    folder = tmp_path_factory.mktemp("small-bundles")
    model = folder / "model.tflite"
    model.write_bytes(tflite_models.softmax().to_bytes())
    (folder / "labels.txt").write_text("red\ngreen\nblue\n")
    target = "desktop-linux"
    report = import_tflite(model, folder / "imported", labels=folder / "labels.txt", target=target, normalize="0,255")
    imported = Bundle.open(report.bundle)

    @functools.cache
    def make(*, padding=0, **behavior):
        path = folder / f"bundle-{len(list(folder.iterdir()))}"
        files = {name: content for name, content in imported.files.items() if not name.startswith("wheels/")}
        name, wheel = small_wheel()
        files |= {name: wheel, "requirements.txt": f"edgerec=={SMALL_VERSION}\n".encode()}
        if padding:
            files["padding"] = random.Random(0).randbytes(padding)
        files["behavior.json"] = json.dumps(behavior).encode()
        Bundle.write(path, replace(imported.manifest, files={}), files)
        return path

    return make


@contextmanager
def started_devices(folder: Path) -> Iterator[Callable[..., TestDevice]]:
    """Yield a function that starts a test device with the arguments of :class:`TestDevice`."""
    if not HAS_DEVICES:
        pytest.skip(REASON)
    with ExitStack() as stack:
        numbers = itertools.count()
        yield lambda **options: stack.enter_context(TestDevice(folder / f"device-{next(numbers)}", **options))


@pytest.fixture
def make_device(tmp_path):
    """Return a function that starts a test device with the arguments of :class:`TestDevice`."""
    with started_devices(tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """Return a running test device, shared by the tests in a module."""
    with started_devices(tmp_path_factory.mktemp("devices")) as make:
        yield make()
