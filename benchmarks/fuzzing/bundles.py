"""Damaged bundles, which are opened, run and verified in a child process, so that a crash is detected."""

from __future__ import annotations

import contextlib
import hashlib
import json
import select
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
from common import data_folder

from edgerec.errors import EdgerecError
from fuzzing.isolation import Target
from fuzzing.mutate import damaged_bytes, damaged_json
from fuzzing.tally import LIMIT_S, Attempt, Broken
from fuzzing.tflite import damaged_model

START_S = 60.0

# Limit the memory, because a damaged size may be many gigabytes.
_CHILD = """
import json, resource, sys, traceback
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import numpy as np
from edgerec import Classifier, EdgerecError, verify
from edgerec.runtime.interpreter import find_runtime
find_runtime()
image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
print("ready", flush=True)
for line in sys.stdin:
    try:
        Classifier.open(json.loads(line)).classify(image)
        verify(json.loads(line))
        outcome = "accepted", ""
    except EdgerecError as error:
        outcome = "refused", str(error)
    except BaseException as error:
        outcome = "other", repr(error)[:200] + " at " + repr(traceback.extract_tb(error.__traceback__)[-1])
    print(json.dumps(outcome), flush=True)
"""


class Child:
    """A process that opens bundles. It is started again after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def open(self, path: Path) -> None:
        """Open the bundle, classify an image and verify it; raise EdgerecError, or :class:`Broken` for a defect."""
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps(str(path)) + "\n")
        process.stdin.flush()
        kind, message = json.loads(self._line(LIMIT_S))
        if kind == "refused":
            raise EdgerecError(message)
        if kind == "other":
            raise Broken(message)

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._line(START_S) == "ready\n"
        return self._process

    def _line(self, seconds: float) -> str:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], seconds)[0]:
            self._end()
            raise Broken(f"hangs: nothing for {seconds:g} s")
        if line := process.stdout.readline():
            return line
        code = process.wait()
        self._end()
        raise Broken(f"crashes with {signal.Signals(-code).name}" if code < 0 else f"ends with exit code {code}")

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process = None


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Replace the content of a file of the bundle, and update its digest."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = hashlib.sha256(content).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (bundle / name).write_bytes(content)


@contextlib.contextmanager
def manifests(bundle: Path, work: Path) -> Iterator[Attempt]:
    """Damage manifest.json: change, remove or repeat keys and values."""
    values = json.loads((bundle / "manifest.json").read_text())
    with _copied_bundle(bundle, work) as (copy, child):

        def attempt(rng: Random) -> None:
            (copy / "manifest.json").write_bytes(damaged_json(rng, values))
            child.open(copy)

        yield attempt


def _damage_file(name: str, damaged: Callable[[Random, bytes], bytes]) -> Callable[..., Iterator[Attempt]]:
    """Return the kind of input that damages one file and updates its digest."""

    def kind(bundle: Path, work: Path) -> Iterator[Attempt]:
        content = (bundle / name).read_bytes()
        with _copied_bundle(bundle, work) as (copy, child):

            def attempt(rng: Random) -> None:
                rewrite(copy, name, damaged(rng, content))
                child.open(copy)

            yield attempt

    return kind


def _damaged_model(rng: Random, model: bytes) -> bytes:
    """Damage a model, in most cases in its tables, which are at both ends of a flatbuffer, around the weights."""
    changed = damaged_bytes(rng, model, within=((8, 4000), (max(8, len(model) - 20_000), len(model))))
    return changed[:4] + b"TFL3" + changed[8:] if rng.random() < 0.9 else changed


golden = contextlib.contextmanager(
    _damage_file("golden/golden.json", lambda rng, content: damaged_json(rng, json.loads(content)))
)
golden_images = contextlib.contextmanager(_damage_file("golden/000.png", damaged_bytes))
models = contextlib.contextmanager(_damage_file("model.tflite", _damaged_model))


@contextlib.contextmanager
def archives(bundle: Path, work: Path) -> Iterator[Attempt]:
    """Damage the .zip of a bundle, in most cases in its directory, which is at the end of the file."""
    path = work / "bundle.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(bundle.rglob("*")):
            archive.write(file, file.relative_to(bundle))
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")
    with Child() as child:

        def attempt(rng: Random) -> None:
            path.write_bytes(damaged_bytes(rng, content, within=((directory, len(content)), (0, 200))))
            child.open(path)

        yield attempt


@contextlib.contextmanager
def _copied_bundle(bundle: Path, work: Path) -> Iterator[tuple[Path, Child]]:
    copy = work / "bundle"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(bundle, copy)
    with Child() as child:
        yield copy, child


def start(work: Path) -> Path:
    """Return a small valid bundle."""
    from edgerec import Classifier, import_tflite, verify  # noqa: F401

    path = work / "bundle"
    model = data_folder() / "edgetpu" / "mobilenet_v1_0.25_128_quant.tflite"
    import_tflite(model, path, labels=data_folder() / "imagenet_labels.txt")
    return path


def make(rng: Random, bundle: Path, folder: Path) -> Path:
    """Write a copy of the bundle with one damaged file. In most cases, update the digest of this file."""
    copy = folder / rng.choice(("bundle", "bundle", "bundle", "bundle.zip"))
    shutil.copytree(bundle, folder / "bundle")
    name = rng.choice(("manifest.json", "manifest.json", "golden/golden.json", "golden/000.png", "model.tflite"))
    content = (bundle / name).read_bytes()
    if name.endswith(".json"):
        changed = damaged_json(rng, json.loads(content))
    elif name.endswith(".tflite"):
        changed = damaged_model(rng, content)
    else:
        changed = damaged_bytes(rng, content)
    (folder / "bundle" / name).write_bytes(changed)
    if name != "manifest.json" and rng.random() < 0.9:
        rewrite(folder / "bundle", name, changed)
    if copy.suffix:
        shutil.make_archive(str(folder / "bundle"), "zip", folder / "bundle")
    return copy


def use(path: Path, out: Path) -> None:
    """Open, verify and run the bundle."""
    from edgerec import Classifier, verify

    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Classifier.open(path).classify(image)
    verify(path)


TARGET = Target(start, make, use)
