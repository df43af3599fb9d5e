"""Compare bundles in an emulated Raspberry Pi (QEMU) with this machine: scores, pixels, sizes and times.

    python benchmarks/userland.py scores preprocess sizes --work FOLDER

``scores`` trains each kind of model briefly (or uses FOLDER/runs/NAME), exports it, and compares 300 real images in
every emulated system with this machine. ``preprocess`` compares the preprocessed pixels of 300 images of
different sizes and formats. ``sizes`` measures the size of the files that are installed on a Raspberry Pi. Data is read
from $EDGEREC_TEST_DATA, or ../shared/data. The output is Markdown. Emulated times do not indicate the speed of a
device.

LiteRT and tflite-runtime round differently. To compare the 32-bit system with its own runtime on this machine:

    python3.11 -m venv ENV && ENV/bin/pip install tflite-runtime "numpy<2" "opencv-python-headless<4.12" typer
    python benchmarks/userland.py scores --work FOLDER --tflite-runtime ENV/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import userland_preprocess
from common import REPOSITORY, data_folder, signs_by_person, unpacked

from edgerec import Recipe, export_bundle, fit, quantize, verify_emulated
from edgerec.contract.target import Target
from edgerec.emulation.device_wheels import device_pip, wheel_options, write_placeholder_wheels
from edgerec.emulation.emulated_system import EmulatedSystem, emulated_systems
from edgerec.export.readme import requirements
from edgerec.train.run import Run
from edgerec.utils.progress import ignore

IMAGES = 300
TARGETS = ("rpi", "rpi-32bit")
SIGNS = {"data.group_by": "person_([0-9]+)", "train.learning_rate": 0.002, "compress.epochs": 1}
# The models are trained only briefly on real images, because their accuracy does not matter here.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "simple_cnn": ("mnist", {"model.arch": "simple_cnn", "train.epochs": 2, "compress.epochs": 1}),
    "mobilenet_v1": ("signs", {"model.arch": "mobilenet_v1", "model.width": 0.25, "train.epochs": 6, **SIGNS}),
    "mobilenet_v2": ("signs", {"model.arch": "mobilenet_v2", "model.width": 0.35, "train.epochs": 6, **SIGNS}),
    "resnet8": ("cifar10", {"model.arch": "resnet8", "train.epochs": 2, "compress.epochs": 1}),
}


def source(name: str, work: Path) -> str:
    """Return the location of a dataset."""
    if name == "mnist":
        return str(data_folder() / "mnist.npz")
    return str(signs_by_person(work) if name == "signs" else unpacked("cifar10", work))


def train_run(name: str, work: Path) -> Run:
    """Return a briefly trained run with an int8 variant; an existing run is used."""
    data, changes = RECIPES[name]
    path = work / "runs" / name
    recipe = Recipe().override({"data.source": source(data, work)} | changes)
    run = Run(path) if Run(path).finished else fit(recipe, path, resume=(path / "recipe.toml").is_file())
    if "int8-qat" not in run.variants():
        quantize(run, "qat", max_drop=100)
    return run


def scores(names: list[str], work: Path, tflite_runtime: str) -> None:
    """Print a table of every model and emulated system; with ``tflite_runtime``, compare the 32-bit system with it."""
    print("| model | system | CPU | runtime | golden images: difference, top-1 | 300 images: difference, top-1 | s |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        run = train_run(name, work)
        for target in TARGETS:
            out = work / f"{name}-{target}"
            data = source(RECIPES[name][0], work)
            export_bundle(run, target, out=out, variant="int8-qat", max_drop=100, data=data, overwrite=True)
            report = verify_emulated(out, target, data=data, images=IMAGES).to_dict()
            _rows(name, "compared with LiteRT", report)
            if target == "rpi-32bit" and tflite_runtime:
                command = [tflite_runtime, "-m", "edgerec", "verify", out, "--on", target, "--data", data, "--json"]
                environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
                process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)
                _rows(name, "compared with tflite-runtime", json.loads(process.stdout))


def _rows(name: str, against: str, report: dict[str, Any]) -> None:
    for result in report["results"]:
        cells = [
            f"{differences['max_difference']:g}, {differences['same_top1']} of {differences['images']}"
            if differences
            else result["problem"]
            for differences in (result["golden"], result["images"])
        ]
        print(
            f"| `{name}` | {result['release']}, Python {result['python']}, {result['machine']} | {result['cpu']} "
            f"| {result['runtime']} {result['version']}, {against} | {' | '.join(cells)} | {result['seconds']:.0f} |",
            flush=True,
        )
    print(f"{name} on {report['on']}: {report['seconds']:.0f} s in all", file=sys.stderr, flush=True)


def image_files(work: Path) -> Iterator[tuple[str, bytes]]:
    """Yield 300 image files of different content, size, format, number of channels and bit depth."""
    rng = np.random.default_rng(0)
    photos = [cv2.imread(str(path)) for path in sorted(signs_by_person(work).glob("*/*"))[::40]]
    photos.append(cv2.imread(str(data_folder() / "cat_720p.jpg")))
    shapes = [(1, 1), (1, 300), (300, 1), (2, 3), (97, 31), (480, 640), (1200, 1600), (720, 1280), (333, 1000)]
    for number in range(IMAGES):
        shape = shapes[number] if number < len(shapes) else tuple(rng.integers(1, 900, 2))
        image = rng.integers(0, 256, (*shape, 3), np.uint8)
        if number % 4:
            image = cv2.resize(photos[number % len(photos)], shape[::-1], interpolation=cv2.INTER_NEAREST)
        kind, ending, options = number % 7, ".png", []
        if kind in (0, 1):
            ending, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 100))]
        elif kind == 2:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        elif kind == 3:
            image = np.dstack([image, rng.integers(0, 256, shape, np.uint8)])
        elif kind == 4:
            image = image.astype(np.uint16) * 257
        elif kind == 5:
            ending, options = ".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if number % 2 else image
        else:
            ending, options = ".webp", [cv2.IMWRITE_WEBP_QUALITY, int(rng.integers(20, 101))]
        yield f"{number:03d}{ending}", cv2.imencode(ending, image, options)[1].tobytes()


def preprocess(work: Path) -> None:
    """Print the number of images whose decoded and preprocessed bytes are the same as on this machine."""
    files = dict(image_files(work))
    on_host = userland_preprocess.digests(files.items())
    if broken := [name for name, (pixels, _) in on_host["files"].items() if not pixels]:
        raise SystemExit(f"not decoded on this machine: {broken}")
    print("| system | CPU | OpenCV | same after decoding | same after preprocessing | images |")
    print("|---|---|---|---|---|---|")
    for target in TARGETS:
        device = Target.load(target)
        for system in emulated_systems(device, requirements(device), listener=ignore):
            with system.work_folder() as device_folder:
                (device_folder.folder / "images").mkdir()
                for name, content in files.items():
                    (device_folder.folder / "images" / name).write_bytes(content)
                outcome, in_system = device_folder.run(
                    Path(userland_preprocess.__file__), {"images": f"{device_folder.inside}/images"}
                )
            if in_system is None:
                print(f"| {system.root.release} | {system.cpu} | {outcome.error_line} |")
                continue
            same_counts = [
                sum(on_host["files"][name][stage] == in_system["files"][name][stage] for name in files)
                for stage in (0, 1)
            ]
            different_suffixes = sorted({Path(n).suffix for n in files if on_host["files"][n] != in_system["files"][n]})
            others = f"; others: {different_suffixes}" if different_suffixes else ""
            opencv = f"{in_system['opencv']} (on this machine {on_host['opencv']})"
            print(
                f"| {system.root.release}, {system.machine} | {system.cpu} | {opencv} "
                f"| {same_counts[0]} | {same_counts[1]} | {len(files)}{others} |",
                flush=True,
            )


def download_size(system: EmulatedSystem, text: str) -> int:
    """Return the total size of the wheels that pip downloads on the device, without Debian's packages."""
    with tempfile.TemporaryDirectory() as name:
        folder, extra = Path(name) / "wheels", Path(name)
        own = write_placeholder_wheels(system.root, extra)
        (extra / "requirements.txt").write_text(text)
        links = [extra, *([system.wheel.parent] if system.wheel else [])]
        command = [
            *device_pip(system.root),
            "download",
            "--quiet",
            "--dest",
            folder,
            "-r",
            extra / "requirements.txt",
        ]
        command += wheel_options(system.root, system.root.python) + [f"--find-links={link}" for link in links]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        placeholder_names = {f"{info.removesuffix('.dist-info')}-py3-none-any.whl" for info in own}
        return sum(file.stat().st_size for file in folder.iterdir() if file.name not in placeholder_names)


def sizes(work: Path) -> None:
    """Print a table of the sizes of the files that a Raspberry Pi downloads and stores."""
    print("| target | system | wheels, MB | unpacked, MB | edgerec.whl, kB | bundles, bytes |")
    print("|---|---|---|---|---|---|")
    for target in TARGETS:
        device = Target.load(target)
        for system in emulated_systems(device, requirements(device), listener=ignore):
            if system.cpu not in ("cortex-a72", "cortex-a7"):
                continue
            bundles = {
                name: sum(f.stat().st_size for f in (work / f"{name}-{target}").rglob("*") if f.is_file())
                for name in RECIPES
                if (work / f"{name}-{target}").is_dir()
            }
            own = system.wheel.stat().st_size / 1e3 if system.wheel else 0
            print(
                f"| {target} | {system.root.release} | {download_size(system, requirements(device)) / 1e6:.1f} "
                f"| {system.site_bytes / 1e6:.0f} | {own:.0f} "
                f"| {json.dumps(bundles)} |",
                flush=True,
            )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=("scores", "preprocess", "sizes"))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--models", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--tflite-runtime", default="", help="Python of an environment with tflite-runtime.")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.tables:
        if name == "scores":
            scores(arguments.models, arguments.work, arguments.tflite_runtime)
        else:
            {"preprocess": preprocess, "sizes": sizes}[name](arguments.work)


if __name__ == "__main__":
    main()
