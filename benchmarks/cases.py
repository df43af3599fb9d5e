"""Run all cases in a folder, and print whether edgerec handles each case correctly.

A case is a folder ``<number>-<name>`` with small inputs that were made by other tools. Every case runs in its own
scratch folder, and its result is ``correct result``, ``correct refusal`` or ``wrong`` with the reason. If a case needs
public files that are not in its folder, this script generates equivalent files. The exit code is 1 if a case is wrong.

    python benchmarks/cases.py [FOLDER] [--only 02,05]

FOLDER defaults to ``$EDGEREC_TEST_CASES``, or ``shared/cases`` beside the checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from edgerec import Classifier, read_image  # noqa: E402
from edgerec.contract.decision import Classification  # noqa: E402
from edgerec.contract.image_decoding import Levels, decode  # noqa: E402
from edgerec.contract.labels import read_labels  # noqa: E402
from edgerec.data import load  # noqa: E402
from edgerec.errors import DataError  # noqa: E402
from edgerec.recipe import DataSection  # noqa: E402
from tests import tflite_models  # noqa: E402

RESULT, REFUSAL = "correct result", "correct refusal"
TIMEOUT_S = 900
COLORS = {"blue": (200, 40, 30), "green": (40, 190, 30), "red": (30, 30, 210)}  # BGR


class Wrong(Exception):
    """Raised if the outcome of a case is wrong; the message is the reason."""


def expect(condition: object, reason: str) -> None:
    """Raise :class:`Wrong` unless the condition is true."""
    if not condition:
        raise Wrong(reason)


def call(*arguments: object, cwd: Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run edgerec in a child process; raise :class:`Wrong` for a traceback or an exit code other than ``code``."""
    command = [sys.executable, "-m", "edgerec", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "EDGEREC_CACHE": str(cwd / "cache")}
    result = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
        check=False,
    )
    expect("Traceback" not in result.stderr, f"traceback: {result.stderr.strip().splitlines()[-1:]}")
    last = (result.stderr.strip().splitlines() or [""])[-1]
    expect(code is None or result.returncode == code, f"exit code {result.returncode}, expected {code}: {last[:160]}")
    return result


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


def generate(script: Path, cwd: Path, *arguments: str) -> None:
    """Run the script that writes the inputs of a case."""
    command = [sys.executable, str(script), *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    expect(result.returncode == 0, f"{script.name} failed: {result.stderr[-200:]}")


def predictions(bundle: Path, images: Sequence[Path]) -> list[Classification]:
    """Return the prediction for each image file."""
    classifier = Classifier.open(bundle)
    return [classifier.classify(read_image(image, classifier.levels)) for image in images]


def one_error_line(process: subprocess.CompletedProcess[str]) -> str:
    """Return the error line of a process; raise :class:`Wrong` unless there is exactly one."""
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    expect(len(lines) == 1, f"{len(lines)} error lines: {process.stderr[-200:]}")
    return lines[0]


def train(data: Path, out: Path, cwd: Path, *options: object) -> tuple[str, dict[str, Any], str]:
    """Train for one epoch; return the labels (separated by spaces), the content of split.json, and the log."""
    options = ("--arch", "simple_cnn", "--epochs", 1, *options)
    result = call("train", "--data", data, "--out", out, *options, cwd=cwd)
    split = json.loads((out / "split.json").read_text())
    return " ".join((out / "labels.txt").read_text().splitlines()), split, result.stderr


def label_order(case: Path, work: Path) -> str:
    for model, data, order in (
        ("six.keras", "six", "ROTTEN APPLE, ROTTEN ORANGE, ROTTEN BANANA"),
        ("rgb.keras", "perm", ""),
    ):
        run = work / f"r-{data}"
        result = call("quantize", model, "--data", data, "--method", "ptq", "--out", run, cwd=work, code=1)
        error = one_error_line(result)
        expect("--labels" in error and order in error, f"{model}: the message does not name the order: {error}")
        expect(not run.exists(), f"{model}: {run.name} was written although the order was refused")
    # Until here, a label file beside the model gave the order. Without this file, the predictions must reveal it.
    (work / "labels.txt").rename(work / "order.names")
    result = call("quantize", "six.keras", "--data", "six", "--method", "ptq", "--out", "r-six", cwd=work, code=1)
    expect("ROTTEN ORANGE, ROTTEN BANANA" in one_error_line(result), "the predictions did not reveal the order")
    (work / "order.names").rename(work / "labels.txt")
    result = call(
        "quantize", "six.keras", "--data", "six", "--labels", "labels.txt", "--method", "ptq", "--out", "r", cwd=work
    )
    expect("100.00%" in result.stdout, "with --labels the accuracy is not 100 %")
    call("export", "r", "--target", "desktop", "--out", "b", cwd=work)
    for label in ("ROTTEN BANANA", "ROTTEN ORANGE"):
        images = sorted((work / "six" / label).iterdir())[:5]
        labels = {prediction.label for prediction in predictions(work / "b", images)}
        expect(labels == {label}, f"images of {label} are predicted as {labels}")
    return REFUSAL


def label_files(case: Path, work: Path) -> str:
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
    model = tflite_models.Model()
    model.add("MEAN", (1, 3), np.array((1, 2), np.int32))
    model.add("FULLY_CONNECTED", (1, 5), np.ones((5, 3)), np.zeros(5)).add("SOFTMAX", (1, 5), beta=1.0)
    (work / "five.tflite").write_bytes(model.to_bytes())
    options = ("--normalize", "unit", "--out", "b")
    result = call("import", "five.tflite", "--labels", "manifest.json", *options, cwd=work, code=1)
    expect("manifest.json cannot be used as a label file" in one_error_line(result), "the reason is not named")
    expect(not (work / "b").exists(), "a bundle was written although the labels were refused")
    return RESULT


def splits_as_classes(case: Path, work: Path) -> str:
    generate(case / "make.py", work)
    for name, test_images in {"d4": 30, "d8": 30, "d4d": 30}.items():
        if name == "d8":  # with the third folder of the public data set, whose images have no labels
            discs(work / "extra")
            shutil.copytree(work / "extra" / "red", work / "d8" / "seg_pred" / "seg_pred")
        labels, split, log = train(work / name, work / f"run-{name}", work)
        expect(labels == "blue green red", f"the classes of {name} are {labels}: {log[-100:]}")
        test = [str(path).split("/")[0].casefold() for path in split["test"]]
        expect(len(test) == test_images, f"{name} has {len(test)} test images, expected {test_images}")
        expect(all("test" in word for word in test), f"test images of {name} come from {set(test)}")
    for name, splits in {"d4b": {"train", "val"}, "d4c": {"train", "val", "test"}}.items():
        dataset, _ = load(DataSection(source=str(work / name)))
        expect(dataset.labels == ("blue", "green", "red"), f"the classes of {name} are {dataset.labels}")
        expect(set(dataset.splits) == splits, f"the splits of {name} are {set(dataset.splits)}")
    result = call("train", "--data", "d5", "--arch", "simple_cnn", "--epochs", 1, "--out", "r5", cwd=work, code=1)
    expect("PlantVillage" in one_error_line(result), "a data set inside itself is not named")
    report = call("data", "check", "d4", "--no-labels", cwd=work)
    expect("Testing" not in report.stdout.replace("Testing/", ""), f"data check sees a class Testing: {report.stdout}")
    return RESULT


def hidden_folders(case: Path, work: Path) -> str:
    generate(case / "make.py", work)
    for name in ("d1", "d2"):
        _, split, log = train(work / name, work / f"run-{name}", work)
        images = sum(split[f"{part}_images"] for part in ("train", "val", "test"))
        expect(images == 90, f"{name}: {images} images were used, expected 90: {log[-100:]}")
        names = [path for part in ("val", "test") for path in split[part]]
        expect(not any("checkpoint" in path or "@eaDir" in path for path in names), f"{name}: hidden images are used")
        recipe = (work / f"run-{name}" / "recipe.toml").read_text()
        expect("input_size = 48" in recipe, f"{name}: the input size is not 48 pixels")
    return RESULT


def import_red(case: Path, work: Path, model: str, *options: object) -> str:
    call("import", model, "--labels", "rgb.txt", "--normalize", "pixels", "--out", "b", *options, cwd=work)
    discs(work / "d")
    for color in COLORS:
        images = sorted((work / "d" / color).iterdir())
        right = [prediction.label == color for prediction in predictions(work / "b", images)]
        expect(all(right), f"{sum(right)} of {len(right)} images of {color} are right")
    image = work / "red_001.png" if (work / "red_001.png").is_file() else work / "d" / "red" / "red_001.png"
    red = predictions(work / "b", [image])[0]
    expect(red.label == "red" and red.score > 0.98, f"a red image gives {red.label} {red.score:.3f}")
    return RESULT


def bit_depth(case: Path, work: Path) -> str:
    levels = Levels(0, 4095)
    deep = decode((work / "12bit.png").read_bytes(), levels)
    shallow = decode((work / "8bit.png").read_bytes())
    assert deep is not None
    assert shallow is not None
    difference = int(np.abs(deep.astype(int) - shallow.astype(int)).max())
    expect(difference <= 1, f"the 12-bit image differs from the 8-bit image by {difference}")
    deep_images, shallow_images = work / "deep", discs(work / "shallow", 25)
    for path in shallow_images.rglob("*.png"):
        gray = read_image(path)[:, :, ::-1].astype(np.uint16) * 16
        target = deep_images / path.relative_to(shallow_images)
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), gray)
    _, _, log = train(deep_images, work / "run", work, "--epochs", 12)
    expect("12" in log and "bit" in log, f"the 12-bit values are not mentioned: {log[-200:]}")
    accuracy = json.loads((work / "run" / "metrics.json").read_text())["accuracy"]
    expect(accuracy > 0.95, f"the accuracy is {accuracy:.2%}")
    read, section = load(DataSection(source=str(deep_images)))
    expect(section.levels == levels, f"the values are read with {section.levels}")
    same, _ = load(DataSection(source=str(shallow_images)))
    difference = int(np.abs(np.asarray(read.images).astype(int) - np.asarray(same.images)).max())
    expect(difference <= 1, f"the 12-bit images differ from the 8-bit images by {difference}")
    return RESULT


def orientation(case: Path, work: Path) -> str:
    images = {path.name: read_image(path).astype(int) for path in sorted(work.glob("top_o6*"))}
    for name, image in images.items():
        redness = image[:, :, 0] - image[:, :, 1]
        rows, columns = redness.mean(axis=1), redness.mean(axis=0)
        top = rows[: len(rows) // 3].mean() - rows[-len(rows) // 3 :].mean()
        expect(top > 4 * np.ptp(columns), f"{name}: the red bar is not at the top")
        shapes = {other: each.shape for other, each in images.items()}
        expect(len(set(shapes.values())) == 1, f"the shapes differ: {shapes}")
    return RESULT


def not_loadable(case: Path, work: Path) -> str:
    (work / "model.tflite").write_bytes(tflite_models.unloadable())
    result = call("inspect", "model.tflite", "--json", cwd=work)
    for target in ("desktop", "rpi", "coral"):
        reasons = json.loads(result.stdout)["targets"][target]
        expect(reasons, f"inspect says that {target} runs a model that the interpreter cannot load")
    result = call("import", "model.tflite", "--out", "b", cwd=work, code=1)
    expect(len(one_error_line(result)) < 400, f"the message has {len(result.stderr)} characters")
    return REFUSAL


def other_names(case: Path, work: Path) -> str:
    generate(case / "make.py", work)
    files = {str(path) for path in (work / "l1").rglob("*.jpg")}
    _, split, _ = train(work / "l1", work / "run", work)
    names = {str(work / "l1" / path) for part in ("val", "test") for path in split[part]}
    expect(names and names <= files, "split.json does not have the names of the files")
    call("report", "run", cwd=work)
    expect(list((work / "run").rglob("*.html")), "no page was written")
    call("calibration", "make", "run", "--out", "c", cwd=work)
    images = [path for path in (work / "c").rglob("*") if path.suffix in (".png", ".jpg")]
    expect(images, "the calibration set has no images")
    return RESULT


def quantized(work: Path, model: str, data: Path, *options: object, out: str = "r", min_accuracy: float = 0.9) -> Path:
    """Quantize a Keras model, check that the accuracy is at least ``least``, and return the run."""
    call("quantize", model, "--data", data, "--method", "ptq", "--max-drop", 5, "--out", out, *options, cwd=work)
    accuracy = json.loads((work / out / "metrics.json").read_text())["accuracy"]
    expect(accuracy >= min_accuracy, f"the accuracy of {model} is {accuracy:.2%}")
    # Keras 3 cannot load a Keras 2 graph that contains indexing operations.
    keras3 = (work / out / "model_keras3.keras").is_file()
    expect(keras3 or model == "k2_caffeinside.h5", f"{model}: model_keras3.keras was not written")
    return work / out


def mixed_precision(case: Path, work: Path) -> str:
    quantized(work, "k3_mixed.keras", discs(work / "d"))
    return RESULT


def metadata_locale(case: Path, work: Path) -> str:
    files = {"ids.txt": ("/m/01\n/m/02\n/m/03", ""), "names.txt": ("red\ngreen\nblue", "en")}
    (work / "model.tflite").write_bytes(tflite_models.with_label_files(tflite_models.softmax().to_bytes(), files))
    call("import", "model.tflite", "--out", "b", cwd=work)
    labels = (work / "b" / "labels.txt").read_text().split()
    expect(labels == ["red", "green", "blue"], f"the labels are {labels}")
    return RESULT


def sigmoid_head(case: Path, work: Path) -> str:
    root = discs(work / "d")
    shutil.rmtree(root / "green")
    for model in ("k2_bin.h5", "k3_bin.keras"):
        out = f"r-{model[:2]}"
        result = call("quantize", model, "--data", "d", "--method", "ptq", "--out", out, cwd=work)
        expect("softmax" not in result.stderr.casefold(), f"{model}: the message mentions a softmax: {result.stderr}")
        metrics = json.loads((work / out / "metrics.json").read_text())
        expect(metrics["accuracy"] > 0.9, f"the accuracy of {model} is {metrics['accuracy']:.2%}")
    return RESULT


def nested(case: Path, work: Path) -> str:
    (work / "k").mkdir()
    generate(case / "nest3.py", work)
    model, written = work / "k" / "k3_nest.keras", work / "r" / "model_keras3.keras"
    # The weights of the model are random, so its accuracy is meaningless.
    result = call(
        "quantize",
        model,
        "--data",
        discs(work / "d"),
        "--labels",
        "folders",
        "--method",
        "ptq",
        "--max-drop",
        100,
        "--out",
        "r",
        cwd=work,
    )
    expect(written.is_file(), f"model_keras3.keras was not written: {result.stderr[-200:]}")
    compare = (
        "import sys, keras, numpy as np; x = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3));"
        "a, b = (np.asarray(keras.models.load_model(p)(x, training=False)) for p in sys.argv[1:]);"
        "sys.exit(float(np.abs(a - b).max()) > 1e-4)"
    )
    (work / "compare.py").write_text(compare)
    generate(work / "compare.py", work, str(model), str(written))
    return RESULT


def preprocess_input(case: Path, work: Path) -> str:
    data = discs(work / "d")
    for number, (model, *options) in enumerate(
        (
            ("k3_caffeinside.keras",),
            ("k2_caffeinside.h5",),
            ("k3_caffeoutside.keras",),
            ("k3_caffeoutside.keras", "--normalize", "caffe"),
        )
    ):
        run = quantized(work, model, data, *options, out=f"r{number}")
        chosen = json.loads((run / "metrics.json").read_text())["adopted"]["normalize"]
        expect(chosen == ("caffe" if "outside" in model else "pixels"), f"{model}: the normalization is {chosen}")
    return RESULT


def no_channels(case: Path, work: Path) -> str:
    for shape in ((8, 8), (1, 8, 8)):
        (work / "model.tflite").write_bytes(tflite_models.without_channel_axis(shape))
        (work / "labels.txt").write_text("top\nbottom\n")
        options = ("--labels", "labels.txt", "--normalize", "pixels", "--out", "b", "--overwrite")
        call("import", "model.tflite", *options, cwd=work)
        image = np.zeros((8, 8), np.uint8)
        image[:4] = 255
        cv2.imwrite(str(work / "top.png"), image)
        top = predictions(work / "b", [work / "top.png"])[0]
        expect(top.label == "top", f"{top.label} instead of top for the input {shape}")
    (work / "k").mkdir()
    generate(case / "mkk.py", work, "k2_tfmot")
    quantized(work, "k/k2_tfmot.h5", Path("digits"), min_accuracy=0.8)
    return RESULT


def teachable(case: Path, work: Path) -> str:
    model = tflite_models.Model(name="serving_default_sequential_5_input:0")
    model.add("MEAN", (1, 3), np.array((1, 2), np.int32))
    model.add("FULLY_CONNECTED", (1, 3), np.eye(3), np.zeros(3), name="dense_Dense2/bias").add(
        "SOFTMAX", (1, 3), beta=1.0
    )
    (work / "model_unquant.tflite").write_bytes(model.to_bytes())
    (work / "labels.txt").write_text("0 a\n1 b\n2 c\n")
    result = call("import", "model_unquant.tflite", "--labels", "labels.txt", "--out", "b", "--json", cwd=work)
    expect(json.loads(result.stdout)["fit"] == "crop", "the fit is not crop")
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80, 2], wide[:, :40, 0], wide[:, 80:, 0] = 255, 255, 255  # BGR: red in the center, blue on both sides
    cv2.imwrite(str(work / "wide.png"), wide)
    center = predictions(work / "b", [work / "wide.png"])[0]
    expect(center.label == "a", f"an image with red in its center is predicted as {center.label}")
    return RESULT


def not_a_model(case: Path, work: Path) -> str:
    for name, word in (("lfs", "Git LFS"), ("html", "web page")):
        result = call("import", f"{name}.tflite", "--out", "b", cwd=work, code=1)
        expect(word in one_error_line(result), f"{name}: {result.stderr.strip()}")
    return REFUSAL


def snapshot(case: Path, work: Path) -> str:
    (work / "model.tflite").write_bytes(tflite_models.softmax().to_bytes())
    (work / "labels.txt").write_text("a\nb\nc\n")
    call("import", "model.tflite", "--labels", "labels.txt", "--normalize", "unit", "--out", "b", cwd=work)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, str(case / "mjsrv.py"), "snapshot", str(port)], cwd=work) as server:
        try:
            wait_for(port)
            options = ("--source", f"http://127.0.0.1:{port}/", "--json", "--max-frames", 8)
            result = call("camera", "b", *options, cwd=work)
        finally:
            server.terminate()
    events = [json.loads(line) for line in result.stdout.splitlines()]
    states = [event["state"] for event in events if event["event"] != "result" and "state" in event]
    expect(states[:2] == ["connecting", "live"] and "lost" not in states, f"the states are {states}")
    frames = [event["frame"] for event in events if event["event"] == "result"]
    expect(len(set(frames)) == 8, f"the frames are {frames}")
    return RESULT


def wait_for(port: int, timeout_s: float = 60.0) -> None:
    """Wait until a server accepts connections."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise Wrong(f"the server did not start within {timeout_s:g} s")


def heic(case: Path, work: Path) -> str:
    for name in ("green", "red"):
        shutil.copytree(discs(work / f"more-{name}", 12) / name, work / "d9" / name)
    result = call("train", "--data", "d9", "--arch", "simple_cnn", "--epochs", 1, "--out", "run", cwd=work, code=1)
    error = one_error_line(result)
    expect("HEIC" in error and "blue" in error, f"the message does not name the class and HEIC: {error}")
    expect("edgerec[heic]" in error or "damaged" in error, f"the message does not say what to do: {error}")
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
    "10": mixed_precision,
    "11": lambda case, work: import_red(case, work, "std0.tflite"),
    "12": metadata_locale,
    "13": sigmoid_head,
    "14": nested,
    "15": preprocess_input,
    "16": no_channels,
    "17": teachable,
    "18": not_a_model,
    "19": snapshot,
    "20": lambda case, work: import_red(case, work, "nchw.tflite"),
    "21": heic,
}


def run(case: Path) -> tuple[bool, str]:
    """Run one case in a scratch folder; return whether its outcome is correct, and the outcome."""
    check = CASES.get(case.name[:2])
    if check is None:
        return False, "wrong: this script has no check for this case"
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
    """Run all cases, or the cases in ``--only``, and return the exit code."""
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
