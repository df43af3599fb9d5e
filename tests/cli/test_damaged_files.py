"""Damaged files of runs, packs and bundles, and failures of the disk, are reported in one line."""

from __future__ import annotations

import csv
import errno
import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest

from edgerec import Bundle, EdgerecError, Recipe, Run, Target, diff_runs, evaluate, list_runs, pack_data
from edgerec.contract.labels import read_labels
from edgerec.data import load
from edgerec.errors import BundleError, DataError, RecipeError, RunError
from edgerec.recipe import DataSection
from tests.conftest import error_line

DEEP_JSON = "[" * 100_000
DEEP_TOML = "x = " + "[" * 2000 + "]" * 2000
NESTED_TOML = "x" + ".a" * 5000 + " = 1"


@pytest.fixture(scope="module")
def quantized_run(run, tmp_path_factory):
    """Return a run with an int8 variant."""
    from edgerec import quantize

    path = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(run.path, path)
    if "int8" not in Run.open(path).variants():
        quantize(path, "ptq", max_drop=100)
    return path


@pytest.fixture
def run_copy(quantized_run, tmp_path):
    return Run.open(shutil.copytree(quantized_run, tmp_path / "run"))


def change_json(path, *keys, value):
    """Set a nested value of a JSON file."""
    values = json.loads(path.read_text())
    inner = values
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(values))


def read_all(run, other):
    """Read all files of a run that contain values."""
    return run.metrics, run.split_record, run.variants(), run.exports(), run.comparison(), diff_runs(run.path, other)


INVALID_RUN_VALUES = [
    ("metrics.json", ["images"], "many"),
    ("metrics.json", ["accuracy"], None),
    ("metrics.json", ["accuracy"], float("nan")),
    ("metrics.json", ["images"], 10**400),
    ("metrics.json", ["images"], 0),
    ("metrics.json", ["confusion", 0, 0], 10**30),
    ("metrics.json", ["per_class"], [1]),
    ("metrics.json", ["confusion"], {"0": 1}),
    ("metrics.json", ["adopted"], "yes"),
    ("split.json", ["digest"], 5),
    ("split.json", ["test"], {"a": 1}),
    ("split.json", ["contents"], []),
    ("split.json", ["contents", "test"], 7),
    ("split.json", ["contents", "test"], "not hexadecimal"),
    ("int8/report.json", ["forms"], []),
    ("int8/report.json", ["forms", -1], "int8"),
    ("int8/report.json", ["forms", -1, "top1"], "high"),
    ("int8/report.json", ["forms", -1, "size_bytes"], 1.5),
    ("int8/report.json", ["figures"], None),
    ("int8/report.json", ["figures", "per_class"], {"0": 1}),
    ("int8/report.json", ["val_top1"], [0.5]),
    ("int8/report.json", ["precision"], {"int8": 1}),
]


@pytest.mark.parametrize(("name", "keys", "value"), INVALID_RUN_VALUES, ids=lambda value: str(value)[:20])
def test_unexpected_values_in_a_run_are_refused(run_copy, quantized_run, invoke, name, keys, value):
    change_json(run_copy.path / name, *keys, value=value)
    with pytest.raises(RunError, match=r"damaged"):
        read_all(run_copy, quantized_run)
    (row,) = (row for row in list_runs(run_copy.path.parent))
    assert row.state
    message = error_line(invoke("diff", run_copy.path, quantized_run))
    assert name.rpartition("/")[2] in message


@pytest.mark.parametrize(
    "content", [DEEP_JSON, "{" * 3, "5", "\ud800", '{"a": 1' + "0" * 5000 + "}"], ids=lambda c: c[:9]
)
@pytest.mark.parametrize("name", ["metrics.json", "split.json", "int8/report.json", "exports.json", "compare.json"])
def test_damaged_json_in_a_run_is_refused(run_copy, quantized_run, name, content):
    (run_copy.path / name).write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(RunError, match=f"{name.rpartition('/')[2]} is damaged"):
        read_all(run_copy, quantized_run)


def test_damaged_tables_in_a_run_are_refused(run_copy):
    path = run_copy.path / "history.csv"
    rows = list(csv.DictReader(path.open()))
    for key, value in (("epoch", "nan"), ("loss", "inf"), ("epoch", "x" * 200_000), ("val_loss", "1\0")):
        text = ",".join(rows[0]) + "\n" + ",".join((rows[0] | {key: value}).values())
        path.write_text(text)
        with pytest.raises(RunError, match=r"history\.csv is damaged"):
            run_copy.history()
    for text in ("", "a\nb\na\n"):
        (run_copy.path / "labels.txt").write_text(text)
        with pytest.raises(RunError, match=r"labels\.txt is damaged"):
            _ = run_copy.labels


@pytest.mark.parametrize(
    ("name", "needed_by"),
    [
        ("recipe.toml", ("evaluate", "export", "train")),
        ("metrics.json", ("evaluate", "export", "train")),
        ("history.csv", ()),
        ("model.keras", ("evaluate",)),
        ("int8/report.json", ()),
    ],
)
def test_symbolic_links_to_themselves_are_reported(run_copy, invoke, name, needed_by):
    path = run_copy.path / name
    path.unlink()
    path.symlink_to(path.name)
    for command in (
        ["evaluate", run_copy.path],
        ["export", run_copy.path],
        ["train", "--resume", "--out", run_copy.path],
    ):
        result = invoke(*command)
        assert result.returncode == (1 if command[0] in needed_by else 0)
        assert (result.stderr.strip().splitlines() or [""])[-1].startswith("error: ") == (command[0] in needed_by)
    assert invoke("runs", run_copy.path.parent).returncode == 0


def test_output_that_is_a_link_to_itself_is_reported(tmp_path, invoke):
    (tmp_path / "out").symlink_to("out")
    error_line(invoke("train", "--data", "digits", "--out", tmp_path / "out"))
    error_line(invoke("data", "pack", "digits", "--out", tmp_path / "out" / "pack"))
    error_line(invoke("train", "--data", tmp_path / "out", "--out", tmp_path / "run"))


@pytest.mark.parametrize("text", [DEEP_TOML, NESTED_TOML, "x = 1" + "0" * 5000, "\x00"], ids=lambda text: text[:9])
def test_damaged_toml_is_refused(tmp_path, invoke, text):
    path = tmp_path / "file.toml"
    path.write_text(text)
    for read in (Recipe.from_toml, lambda path: Target.load(str(path)), read_labels):
        with pytest.raises(EdgerecError):
            read(path)
    error_line(invoke("train", path, "--out", tmp_path / "run"))
    error_line(invoke("tune", "--data", "digits", "--search", path, "--out", tmp_path / "study"))
    error_line(invoke("calibration", "make", "--data", "digits", "--recipe", path, "--out", tmp_path / "set"), code=1)


@pytest.mark.parametrize("value", [["data"], "digits", 5, None, {"data": "digits"}, {"model": []}], ids=str)
def test_provenance_without_a_recipe_object_is_refused(bundle, tmp_path, invoke, value):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    change_json(copy / "manifest.json", "provenance", "recipe", value=value)
    with pytest.raises(BundleError, match=r"provenance\.recipe"):
        Bundle.open(copy)
    with pytest.raises(BundleError, match=r"provenance\.recipe"):
        evaluate(copy)
    assert "provenance.recipe" in error_line(invoke("evaluate", copy, "--data", "digits"))


@pytest.mark.parametrize("value", [["data"], "digits", 5, None])
def test_recipe_that_is_not_an_object_is_refused(value):
    with pytest.raises(RecipeError, match="expected an object"):
        Recipe.from_dict(value)


def test_unknown_home_folder_is_reported(tmp_path, invoke, monkeypatch):
    for name in ("HOME", "EDGEREC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def raise_key_error(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", raise_key_error)
    for command in (["cache"], ["train", "--data", "digits", "--out", tmp_path / "run", "--input-size", "16"]):
        assert "set EDGEREC_CACHE to a writable folder" in invoke(*command).stderr.splitlines()[-1]


WITH_LIMITED_FILE_SIZE = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from edgerec.cli.app import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of the file size")
@pytest.mark.parametrize("command", ["data pack digits --out pack", "train --data digits --out run --epochs 1"])
def test_file_size_limit_is_reported(tmp_path, command):
    assert resource.RLIMIT_FSIZE
    result = subprocess.run(
        [sys.executable, "-c", WITH_LIMITED_FILE_SIZE, *command.split()],
        cwd=tmp_path,
        env=os.environ | {"EDGEREC_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: File too large")
    assert not list(tmp_path.glob("pack/*"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_full_disk_while_packing_is_not_reported_as_out_of_memory(tmp_path, invoke, monkeypatch, code):
    import tensorflow as tf

    class Writer:
        def __init__(self, path):
            self.path = path

        def __enter__(self):
            return self

        def write(self, record):
            raise tf.errors.ResourceExhaustedError(None, None, f"{self.path}; {os.strerror(code)}")

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(tf.io, "TFRecordWriter", Writer)
    recipe = Recipe(data=DataSection(source="digits"))
    with pytest.raises(OSError, match=os.strerror(code)) as error:
        pack_data(recipe, tmp_path / "pack")
    assert error.value.errno == code
    message = invoke("data", "pack", "digits", "--out", tmp_path / "pack").stderr.splitlines()[-1]
    assert message.startswith(f"error: {os.strerror(code)}")
    assert "memory" not in message


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    path = tmp_path_factory.mktemp("pack") / "pack"
    pack_data(Recipe(data=DataSection(source="digits")), path)
    return path


def test_packing_the_same_images_twice_gives_the_same_files(tmp_path, pack):
    code = "import sys; from edgerec.cli.app import main; main()"
    contents = []
    for number in range(2):
        out = tmp_path / f"pack{number}"
        environment = os.environ | {"PYTHONHASHSEED": str(number)}
        command = [sys.executable, "-c", code, "data", "pack", "digits", "--out", str(out)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1]
    assert contents[0] == {path.name: path.read_bytes() for path in pack.iterdir()}


INVALID_PACK_VALUES = [
    (["labels"], ["0", "0"]),
    (["labels"], 5),
    (["preprocess", "height"], 9),
    (["preprocess"], None),
    (["shards"], []),
    (["shards", 0, "split"], "training"),
    (["shards", 0, "split"], ""),
    (["shards", 0, "split"], "val"),
    (["shards", 0, "images"], 10**12),
    (["shards", 0, "images"], -1),
    (["shards", 0, "images"], "many"),
    (["shards", 0, "file"], ""),
    (["shards", 0, "file"], "a\0b"),
    (["shards", 0, "file"], ["x"]),
    (["shards", 0, "other"], 1),
    (["shards", 0], "train"),
    (["skipped"], "none"),
    (["group_by"], 7),
    (["digest"], None),
]


@pytest.mark.parametrize(("keys", "value"), INVALID_PACK_VALUES, ids=lambda value: repr(value)[:25])
def test_packs_with_unexpected_values_are_refused(pack, tmp_path, invoke, keys, value):
    copy = shutil.copytree(pack, tmp_path / "pack")
    change_json(copy / "pack.json", *keys, value=value)
    with pytest.raises(DataError, match=r"pack\.json is damaged"):
        load(DataSection(source=str(copy)))
    error_line(invoke("train", "--data", copy, "--out", tmp_path / "run"))


@pytest.mark.parametrize("name", ["index.npy", "contents.npy"])
@pytest.mark.parametrize("damage", ["empty", "short", "long", "text", "huge", "other type"])
def test_packs_with_damaged_arrays_are_refused(pack, tmp_path, name, damage):
    copy = shutil.copytree(pack, tmp_path / "pack")
    path = copy / name
    content = path.read_bytes()
    if damage == "other type":
        np.save(path, np.arange(1797))
    else:
        shape = b"(1797,), }" + b" " * 10
        assert shape in content
        path.write_bytes(
            {
                "empty": b"",
                "short": content[:-1],
                "long": content + bytes(1 << 20),
                "text": b"text",
                "huge": content.replace(shape, b"(99999999999999,), }"),
            }[damage]
        )
    with pytest.raises(DataError, match=f"{name} (does not match the pack's shards|exceeds)"):
        load(DataSection(source=str(copy)))


def test_packs_whose_index_leaves_the_shard_are_refused(pack, tmp_path):
    for field, value in (("pixels", 2**64 - 1), ("class", 10), ("class", -1)):
        copy = shutil.copytree(pack, tmp_path / f"pack{field}{value}")
        index = np.load(copy / "index.npy")
        index[field][3] = value
        np.save(copy / "index.npy", index)
        with pytest.raises(DataError, match=r"index\.npy is damaged \(an entry has an invalid offset or class\)"):
            load(DataSection(source=str(copy)))


@pytest.mark.parametrize("name", ["contents.npy", "0.npy", "0.json"])
def test_damaged_remains_of_an_interrupted_pack_are_reported(tmp_path, invoke, name):
    class Interrupted(Exception):
        pass

    def interrupt(progress):
        if progress.stage == "packing" and progress.done > 1000:
            raise Interrupted

    with suppress(Interrupted):
        pack_data(Recipe(data=DataSection(source="digits")), tmp_path / "pack", listener=interrupt)
    unfinished = tmp_path / ".pack.packing"
    for path in unfinished.glob("contents.npy" if name == "contents.npy" else f"train-00000*{name[1:]}"):
        path.write_bytes(b"damaged")
    result = invoke("data", "pack", "digits", "--out", tmp_path / "pack", "--resume")
    assert result.returncode == 1
    assert "is damaged" in result.stderr.splitlines()[-1]
    assert "Pack the data again without --resume" in result.stderr.splitlines()[-1]
