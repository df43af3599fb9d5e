"""Processes that share a folder do not mix their files, and the remains of killed processes are removed."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from edgerec.contract.preprocess import encode_png
from edgerec.data import load
from edgerec.recipe import DataSection
from edgerec.utils import atomic as files
from tests.conftest import error_line


@contextmanager
def stopped_process(code: str, *arguments: object):
    """Run Python code in another process up to the point where it calls ``stop()``; kill the process afterwards."""
    stop = "import sys\ndef stop(*_): print('stopped', flush=True); sys.stdin.readline()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", stop + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        while (line := process.stdout.readline()) != "stopped\n":
            assert line, f"the process has ended with code {process.wait()}"
        yield process
    finally:
        process.kill()
        process.communicate()


TRAIN = """
from edgerec import Recipe, fit
fit(Recipe().override({"data.source": "digits", "train.epochs": 2}), sys.argv[1], on_epoch=stop)
"""


def test_second_training_in_the_same_folder_is_refused_until_the_first_is_killed(tmp_path, invoke):
    out = tmp_path / "run"
    command = ("train", "--data", "digits", "--epochs", "1", "--out", out, "--overwrite")
    with stopped_process(TRAIN, out) as first:
        refusal = error_line(invoke(*command))
        assert "in use" in refusal
        assert str(first.pid) in refusal
        assert "in use" in error_line(invoke("train", "--resume", "--out", out))
        assert "\nepochs = 2" in (out / "recipe.toml").read_text()
    assert invoke(*command).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("command", ["quantize", "tune", "data pack"])
def test_commands_refuse_a_folder_to_which_another_process_writes(command, run, tmp_path, invoke):
    from edgerec.utils.lock import Lock

    out = run.path if command == "quantize" else tmp_path / "new" / "out"
    arguments = {
        "quantize": ["quantize", out, "--method", "float16"],
        "tune": ["tune", "--data", "digits", "--trials", "1", "--out", out],
        "data pack": ["data", "pack", "digits", "--out", out],
    }[command]
    with Lock(out):
        result = invoke(*arguments)
    assert result.returncode == 1
    assert "is in use by another edgerec process" in result.stderr.splitlines()[-1]
    assert not (out / "float16").exists()
    assert not (tmp_path / "new").exists()


FILL_CACHE = """
from edgerec.recipe import DataSection
from edgerec.data import load
load(DataSection(source=sys.argv[1], input_size=8), listener=stop)
"""


def test_process_waits_for_a_cache_entry_that_another_process_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEREC_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    for number in range(12):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "ab"[number % 2] / f"{number}.png").write_bytes(encode_png(np.full((8, 8, 3), number, np.uint8)))
    progress = []
    with stopped_process(FILL_CACHE, folder) as other:
        (lock,) = (tmp_path / "cache").glob("*.edgerec-lock")
        assert lock.read_text() == f"{other.pid}\n"
        other.communicate("\n" * 1000)
        dataset, _ = load(DataSection(source=str(folder), input_size=8), listener=progress.append)
    assert not progress
    assert len(dataset.images) == 12
    assert not list((tmp_path / "cache").glob(".*"))


WRITE = """
from pathlib import Path
from edgerec.utils.atomic import replacing, replacing_folder
with replacing_folder(Path(sys.argv[1]) / "folder") as folder, replacing(Path(sys.argv[1]) / "file.txt") as file:
    (folder / "part").write_text("x")
    file.write_text("x")
    stop()
"""
WRITE_TWICE = """
import sys
from pathlib import Path
from edgerec.utils.atomic import write_file
write_file(Path(sys.argv[1]) / "a", "a")
"""


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    (tmp_path / ".other.partial").mkdir()
    (tmp_path / ".other.partial" / "file").write_text("from another program")
    write = [sys.executable, "-c", WRITE_TWICE, str(tmp_path)]
    with stopped_process(WRITE, tmp_path):
        subprocess.run(write, check=True)
        assert len(list(tmp_path.glob(".*.partial"))) == 3  # those of a running process are kept
    subprocess.run(write, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.partial", "a"]


def test_written_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        files.write_file(tmp_path / "file.txt", "text")
        with files.replacing_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700
