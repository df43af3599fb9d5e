"""Run the situations in a folder of cases, and print for each whether edgerec handles it correctly.

A case is a folder ``<number>-<name>`` with small inputs of other tools. Every case runs in its own scratch folder.
Each prints ``correct result``, ``correct refusal`` or ``wrong`` with the reason. Cases whose inputs are public files
that the folder does not contain are generated. The exit code is 1 if any case is wrong.

    python benchmarks/cases.py [FOLDER] [--only 02,05]

FOLDER defaults to ``$EDGEREC_TEST_CASES``, or ``shared/cases`` beside the checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from tests import tflite_models  # noqa: E402

RESULT, REFUSAL = "correct result", "correct refusal"
TIMEOUT_S = 900
COLORS = {"blue": (200, 40, 30), "green": (40, 190, 30), "red": (30, 30, 210)}  # BGR


class Wrong(Exception):
    """The reason why the outcome of a case is wrong."""


def expect(condition: object, reason: str) -> None:
    """Raise :class:`Wrong` unless the condition is true."""
    if not condition:
        raise Wrong(reason)


def call(*arguments: object, cwd: Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run edgerec in a process; a traceback or another exit code than ``code`` is wrong."""
    command = [sys.executable, "-m", "edgerec", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "EDGEREC_CACHE": str(cwd / "cache")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
        check=False,
    )
    expect("Traceback" not in done.stderr, f"traceback: {done.stderr.strip().splitlines()[-1:]}")
    last = (done.stderr.strip().splitlines() or [""])[-1]
    expect(code is None or done.returncode == code, f"exit code {done.returncode}, expected {code}: {last[:160]}")
    return done


def discs(folder: Path, count: int = 20, seed: int = 0, size: int = 32) -> Path:
    """Write images of colored discs, one folder per color."""
    rng = np.random.default_rng(seed)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 60, (size, size, 3)).astype(np.uint8)
            center = tuple(int(n) for n in rng.integers(size // 3, 2 * size // 3, 2))
            cv2.circle(image, center, size // 4, color, -1)
            cv2.imwrite(str(folder / name / f"{name}_{number:03d}.png"), image)
    return folder


def predicted(bundle: Path, image: Path, cwd: Path) -> dict[str, object]:
    """Return the prediction for one image."""
    return json.loads(call("predict", bundle, image, "--json", cwd=cwd).stdout)  # type: ignore[no-any-return]


def label_order(case: Path, work: Path) -> str:
    for model, data in (("six.keras", "six"), ("rgb.keras", "perm")):
        done = call("quantize", model, "--data", data, "--method", "ptq", "--out", f"r-{data}", cwd=work, code=None)
        expect(
            done.returncode == 1 and "--labels" in done.stderr, f"{model}: the order of the labels was not questioned"
        )
    done = call(
        "quantize", "six.keras", "--data", "six", "--labels", "labels.txt", "--method", "ptq", "--out", "r", cwd=work
    )
    expect("100.00%" in done.stdout, "with --labels the accuracy is not 100 %")
    return REFUSAL


def label_files(case: Path, work: Path) -> str:
    from edgerec.contract.labels import read_labels
    from edgerec.errors import DataError

    flowers = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    as_they_are = {"digits.txt", "swap.txt", "years.txt"}
    for path in sorted((work / "variants").iterdir()):
        try:
            labels = read_labels(path, 5)
        except DataError:
            expect(path.name == "latin1.txt", f"{path.name} was refused")
        else:
            lines = tuple(path.read_text().split("\n")) if path.name in as_they_are else flowers
            expect(labels == tuple(filter(None, lines)), f"{path.name} was read as {labels}")
    try:
        read_labels(work / "manifest.json", 5)
    except DataError:
        return RESULT
    raise Wrong("manifest.json was read as labels")


def splits_as_classes(case: Path, work: Path) -> str:
    for outer in (("Training", "Testing"), ("Train", "Val", "Test"), ("seg_train", "seg_test")):
        root = work / "-".join(outer)
        for seed, split in enumerate(outer):
            discs(root / split, 12, seed)
        done = call(
            "train", "--data", root, "--arch", "simple_cnn", "--epochs", 1, "--out", root.name + "-run", cwd=work
        )
        labels = (work / f"{root.name}-run" / "labels.txt").read_text().split()
        expect(labels == sorted(COLORS), f"the classes of {root.name} are {labels}: {done.stderr[-100:]}")
    return RESULT


def hidden_folders(case: Path, work: Path) -> str:
    root = discs(work / "d", 12)
    for name in COLORS:
        for hidden in (".ipynb_checkpoints", "@eaDir"):
            shutil.copytree(root / name, root / name / hidden, ignore=shutil.ignore_patterns("*ipynb*", "*eaDir*"))
    done = call("train", "--data", root, "--arch", "simple_cnn", "--epochs", 1, "--out", "run", cwd=work)
    split = json.loads((work / "run" / "split.json").read_text())
    images = sum(len(split[key]) for key in ("train", "val", "test") if isinstance(split.get(key), list))
    expect(images == 36, f"{images} images were used, expected 36: {done.stderr[-100:]}")
    return RESULT


def import_red(case: Path, work: Path, model: str, *options: object) -> str:
    call("import", model, "--labels", "rgb.txt", "--normalise", "pixels", "--out", "b", *options, cwd=work)
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :, 2] = 210
    cv2.imwrite(str(work / "red.png"), image)
    found = predicted(work / "b", work / "red.png", work)
    expect(found["label"] == "red" and float(str(found["score"])) > 0.9, f"a red image gives {found}")
    return RESULT


def bit_depth(case: Path, work: Path) -> str:
    root = work / "d"
    for number, name in enumerate(("low", "high")):
        (root / name).mkdir(parents=True)
        for seed in range(12):
            image = np.random.default_rng(seed).integers(0, 1500, (32, 32)).astype(np.uint16) + 2400 * number
            cv2.imwrite(str(root / name / f"{seed}.png"), image)
    done = call("train", "--data", root, "--arch", "simple_cnn", "--epochs", 1, "--out", "run", cwd=work)
    said = done.stderr + done.stdout
    expect("12" in said and "bit" in said, "nothing is said about the 12-bit values")
    return RESULT


def orientation(case: Path, work: Path) -> str:
    from edgerec import read_image

    images = {path.name: read_image(path) for path in sorted(work.glob("top_o6*"))}
    shapes = {name: image.shape for name, image in images.items()}
    expect(len(set(shapes.values())) == 1, f"the shapes differ: {shapes}")
    reference = images["top_o6.png"].astype(int)
    for name, image in images.items():
        expect(np.abs(image - reference).mean() < 40, f"{name} has another orientation")
    return RESULT


def not_loadable(case: Path, work: Path) -> str:
    (work / "model.tflite").write_bytes(tflite_models.unloadable())
    done = call("inspect", "model.tflite", "--json", cwd=work)
    said = json.loads(done.stdout)["targets"]["desktop"]
    expect(said, "inspect says that the desktop runs a model that the interpreter cannot load")
    done = call("import", "model.tflite", "--out", "b", cwd=work, code=1)
    expect(len(done.stderr) < 400, f"the message has {len(done.stderr)} characters")
    return REFUSAL


def other_names(case: Path, work: Path) -> str:
    subprocess.run([sys.executable, case / "make.py"], cwd=work, check=True)
    call("train", "--data", "l1", "--arch", "simple_cnn", "--epochs", 1, "--out", "run", cwd=work)
    call("report", "run", cwd=work)
    call("calibration", "make", "run", "--out", "c", cwd=work)
    return RESULT


def quantized(case: Path, work: Path, model: str, *options: object, best: float = 0.0) -> str:
    discs(work / "d")
    done = call(
        "quantize", model, "--data", "d", "--method", "ptq", "--max-drop", 100, "--out", "r", *options, cwd=work
    )
    expect((work / "r" / "model_keras3.keras").is_file() or "k2" in model, "model_keras3.keras was not written")
    top1 = max(float(word.rstrip("%")) for word in done.stdout.split() if word.endswith("%"))
    expect(top1 >= best, f"the accuracy is {top1} %")
    return RESULT


def metadata_locale(case: Path, work: Path) -> str:
    files = {"ids.txt": ("/m/01\n/m/02\n/m/03", ""), "names.txt": ("red\ngreen\nblue", "en")}
    (work / "model.tflite").write_bytes(tflite_models.with_label_files(tflite_models.softmax().done(), files))
    call("import", "model.tflite", "--out", "b", cwd=work)
    labels = (work / "b" / "labels.txt").read_text().split()
    expect(labels == ["red", "green", "blue"], f"the labels are {labels}")
    return RESULT


def sigmoid_head(case: Path, work: Path) -> str:
    root = discs(work / "d")
    shutil.rmtree(root / "green")
    for model in ("k2_bin.h5", "k3_bin.keras"):
        call(
            "quantize", model, "--data", "d", "--method", "ptq", "--max-drop", 100, "--out", f"r-{model[:2]}", cwd=work
        )
    return RESULT


def nested(case: Path, work: Path) -> str:
    (work / "k").mkdir()
    subprocess.run([sys.executable, case / "nest3.py"], cwd=work, check=True, capture_output=True)
    return quantized(case, work, "k/k3_nest.keras")


def preprocess_input(case: Path, work: Path) -> str:
    for number, (model, *options) in enumerate(
        (("k3_caffeinside.keras",), ("k2_caffeinside.h5",), ("k3_caffeoutside.keras", "--normalise", "caffe"))
    ):
        folder = work / str(number)
        folder.mkdir()
        shutil.copy(work / model, folder)
        quantized(case, folder, model, *options)
    return RESULT


def no_channels(case: Path, work: Path) -> str:
    for shape in ((8, 8), (1, 8, 8)):
        (work / "model.tflite").write_bytes(tflite_models.without_channels(shape))
        (work / "labels.txt").write_text("top\nbottom\n")
        options = ("--labels", "labels.txt", "--normalise", "pixels", "--out", "b", "--overwrite")
        call("import", "model.tflite", *options, cwd=work)
        image = np.zeros((8, 8), np.uint8)
        image[:4] = 255
        cv2.imwrite(str(work / "top.png"), image)
        expect(predicted(work / "b", work / "top.png", work)["label"] == "top", f"wrong label for the input {shape}")
    return RESULT


def teachable(case: Path, work: Path) -> str:
    model = tflite_models.Model(name="serving_default_sequential_5_input:0")
    model.add("MEAN", (1, 3), np.array((1, 2), np.int32))
    model.add("FULLY_CONNECTED", (1, 3), np.eye(3), np.zeros(3), name="dense_Dense2/bias").add(
        "SOFTMAX", (1, 3), beta=1.0
    )
    (work / "model_unquant.tflite").write_bytes(model.done())
    (work / "labels.txt").write_text("0 a\n1 b\n2 c\n")
    done = call("import", "model_unquant.tflite", "--labels", "labels.txt", "--out", "b", "--json", cwd=work)
    expect(json.loads(done.stdout)["fit"] == "crop", "the fit is not crop")
    return RESULT


def not_a_model(case: Path, work: Path) -> str:
    for name, word in (("lfs", "Git LFS"), ("html", "web page")):
        done = call("import", f"{name}.tflite", "--out", "b", cwd=work, code=1)
        expect(word in done.stderr, f"{name}: {done.stderr.strip()}")
    return REFUSAL


def heic(case: Path, work: Path) -> str:
    discs(work / "d9", 12).joinpath("blue")
    for path in (work / "d9" / "blue").glob("*.png"):
        path.unlink()
    done = call("train", "--data", "d9", "--arch", "simple_cnn", "--epochs", 1, "--out", "run", cwd=work, code=None)
    expect("HEIC" in done.stderr, f"HEIC is not mentioned: {done.stderr[-160:]}")
    return REFUSAL


CASES: dict[str, Callable[[Path, Path], str]] = {
    "01": label_order,
    "02": label_files,
    "03": splits_as_classes,
    "04": hidden_folders,
    "05": lambda case, work: import_red(case, work, "sliced.tflite"),
    "06": bit_depth,
    "07": orientation,
    "08": not_loadable,
    "09": other_names,
    "10": lambda case, work: quantized(case, work, "k3_mixed.keras"),
    "11": lambda case, work: import_red(case, work, "std0.tflite"),
    "12": metadata_locale,
    "13": sigmoid_head,
    "14": nested,
    "15": preprocess_input,
    "16": no_channels,
    "17": teachable,
    "18": not_a_model,
    "20": lambda case, work: import_red(case, work, "nchw.tflite"),
    "21": heic,
}


def run(case: Path) -> tuple[bool, str]:
    """Run one case in a scratch folder; return whether its outcome is correct, and the outcome."""
    check = CASES.get(case.name[:2])
    if check is None:
        return True, "not checked by this script (it needs a server or a camera)"
    with tempfile.TemporaryDirectory(prefix="edgerec-case-") as scratch:
        work = Path(scratch) / "work"
        shutil.copytree(case, work, symlinks=True)
        try:
            return True, check(case.resolve(), work)
        except Wrong as reason:
            return False, f"wrong: {reason}"
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError, ValueError, OSError, ImportError) as error:
            return False, f"wrong: {type(error).__name__}: {error}"


def main() -> int:
    """Run all cases, or those of ``--only``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    default = os.environ.get("EDGEREC_TEST_CASES") or REPOSITORY.parent / "shared" / "cases"
    parser.add_argument("folder", nargs="?", type=Path, default=Path(default), help="Folder of cases.")
    parser.add_argument("--only", default="", help="Numbers of cases, such as 02,05.")
    options = parser.parse_args()
    cases = sorted(path for path in options.folder.glob("[0-9][0-9]-*") if path.is_dir())
    if not cases:
        parser.error(f"{options.folder} has no folders such as 01-label-order")
    chosen = set(filter(None, options.only.split(",")))
    wrong = 0
    for case in cases:
        if chosen and case.name[:2] not in chosen:
            continue
        correct, outcome = run(case)
        wrong += not correct
        print(f"{case.name:<34} {outcome}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
