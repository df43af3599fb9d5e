"""Text from files and servers is escaped for each output, and a manifest with text that cannot be shown is refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgerec.camera.sinks.console import JsonLines, StateLines, TextLines
from edgerec.camera.sinks.csv import CsvFile
from edgerec.contract.bundle import Bundle
from edgerec.contract.labels import parse_labels
from edgerec.errors import BundleError, DataError, EdgerecError
from tests.conftest import error_line
from tests.network import result, state_change

HOSTILE = [
    "a\x1b[31mb",  # terminal escape
    "a\x9b31mb",  # C1 escape
    "a\nb",
    "a\rb",
    "a\u2028b",
    "a\u202eb",  # right-to-left override
    "a\u2066b",
    "a\u200fb",
    "a\ud800b",  # unpaired surrogate
    "a\udce9b",  # a byte that is not valid UTF-8
    "a\x00b",
    "a\x7fb",
]
HARMLESS = [
    "noël",
    "ネコ　犬",
    "می\u200cخواهم",  # zero-width non-joiner
    "👩\u200d🔬",  # zero-width joiner
    "10\u00a0km",
    "<b>&\"'",
    "[red]x[/red]",
]


@pytest.fixture
def bundle_with(bundle, tmp_path):
    """Return a function that copies the bundle and changes values of its manifest."""

    def change_manifest(**values) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(bundle, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | values))
        return folder

    return change_manifest


def ten_labels(label):
    return [label, *(f"x{number}" for number in range(9))]


@pytest.mark.parametrize("text", HOSTILE)
def test_manifest_with_text_that_cannot_be_shown_is_refused(bundle_with, text):
    with pytest.raises(BundleError, match=r"label 0 is .* which cannot be displayed") as excinfo:
        Bundle.open(bundle_with(labels=ten_labels(text)))
    assert text not in str(excinfo.value)


@pytest.mark.parametrize("key", ["name", "target", "variant"])
def test_other_texts_of_a_manifest_are_checked(bundle_with, edgerec, golden_images, key):
    line = error_line(edgerec("predict", bundle_with(**{key: "a\x1b]0;b\x07"}), golden_images[0]))
    assert f"{key} is 'a\\x1b]0;b\\x07'" in line


@pytest.mark.parametrize("text", HARMLESS)
def test_labels_of_all_scripts_are_accepted(bundle_with, text):
    assert Bundle.open(bundle_with(labels=ten_labels(text))).manifest.labels[0] == text
    assert text in str(EdgerecError(text))


@pytest.mark.parametrize("text", ["a\u202eb", "a\u2066b"])
def test_label_file_with_bidi_controls_is_refused(text):
    with pytest.raises(DataError, match="bidi control"):
        parse_labels(f"{text}\nc\n".encode())


@pytest.mark.parametrize("text", HOSTILE)
def test_lines_and_json_for_a_terminal_are_escaped(text):
    out = io.StringIO()
    for sink in (TextLines(out, named=True), StateLines(out), JsonLines(out)):
        sink.write(result(text, source=text))
        sink.state(state_change("lost", source=text, reason=f"{text} is gone"))
    assert text not in out.getvalue()
    assert all(len(line.splitlines()) == 1 for line in out.getvalue().split("\n")[:-1])
    out.getvalue().encode()
    decoded = json.loads(out.getvalue().splitlines()[2])
    assert decoded["source"] == decoded["label"] == text


@pytest.mark.parametrize("text", HARMLESS)
def test_lines_for_a_terminal_show_all_scripts(text):
    out = io.StringIO()
    TextLines(out).write(result(text))
    assert f"  {text}  " in out.getvalue()


def test_file_names_of_a_folder_are_escaped_in_every_output(bundle, golden_images, tmp_path, edgerec):
    """File names may contain anything, so they must not be able to control a terminal or add a line."""
    folder = tmp_path / "images \x1b]0;title\x07\nerror: x"
    folder.mkdir()
    name = "\x1b[2J\n0.99 stop \u202e\udce9.png"
    shutil.copy(golden_images[0], folder / name)
    (folder / "\x1b[31mno image.png").write_bytes(b"\x89PNG nothing")
    result = edgerec("camera", bundle, "--source", folder, "--source", golden_images[0].parent, "--headless")
    assert result.returncode == 0, result.stderr
    for line in (result.stdout + result.stderr).splitlines():
        assert line.isprintable()
    assert "no image.png was skipped" in result.stderr
    assert "\\x1b]0;title\\x07\\nerror: x  frame 0" in result.stdout
    result = edgerec("camera", bundle, "--source", folder, "--json", "--csv", tmp_path / "out.csv")
    assert any(json.loads(line).get("source") == str(folder / name) for line in result.stdout.splitlines())
    assert "\x1b" not in result.stdout + (tmp_path / "out.csv").read_text()
    result = edgerec("predict", bundle, folder / name)
    assert result.returncode == 0, result.stderr
    assert all(line.isprintable() for line in (result.stdout + result.stderr).splitlines())


def test_missing_file_cannot_add_a_line_to_an_error(bundle, tmp_path, edgerec):
    for command in (["predict", bundle], ["inspect"], ["camera", bundle, "--source"]):
        assert "\\x1b[31m\\nx" in error_line(edgerec(*command, tmp_path / "no\x1b[31m\nx.tflite"))


@pytest.mark.parametrize("text", ["=cmd|'/C calc'!A0", "+1+cmd|x", "-2+3", "@SUM(A1)", "\t=1", "＝1"])
def test_spreadsheet_does_not_evaluate_a_label(tmp_path, text):
    sink = CsvFile(tmp_path / "out.csv")
    sink.write(result(text, source=text))
    sink.close()
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    for column in ("label", "source", "decision"):
        assert row[column].startswith("'" + text[:1].replace("\t", "\\t"))


@pytest.mark.parametrize("text", ["-5", "+1.5", "-1e3", "stop", "a=b"])
def test_numbers_and_ordinary_labels_are_not_changed_in_a_table(tmp_path, text):
    sink = CsvFile(tmp_path / "out.csv")
    sink.write(result(text))
    sink.close()
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["label"] == text


def test_label_with_a_surrogate_does_not_crash_the_video(tmp_path):
    """The program that draws is a separate process, because it ended with a segmentation fault."""
    code = """
import numpy as np
from edgerec.camera.sinks.label_text import draw_label
for label in ("a\\ud800b", "\\udce9", "\\x1b[31m", "a\\nb", "a\\u202eb"):
    image = np.zeros((56, 900, 3), np.uint8)
    draw_label(image, label, 0, 10, 26)
    assert image.any()
print("drawn")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "drawn\n"), result.stderr[-500:]


def test_report_of_a_run_shows_no_control_characters(run, tmp_path, edgerec):
    folder = tmp_path / "run \u202e\x1b[31m"
    shutil.copytree(run.path, folder)
    result = edgerec("report", folder, "--no-images", "--out", tmp_path / "report.html")
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "report.html").read_text()
    assert "run \\u202e\\x1b[31m" in page
    assert "\u202e" not in page
    assert "\x1b" not in page
