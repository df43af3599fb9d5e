"""Commands that edgerec suggests can be pasted into a shell without changes."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess

import pytest

from edgerec import Run, write_report
from edgerec.cli.app import COMMANDS, load_command
from edgerec.errors import EdgerecError
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def quoted_run(first_run, tmp_path_factory):
    """Copy of a finished run in a folder whose name must be quoted in a shell."""
    path = tmp_path_factory.mktemp("it's") / "my run; echo $HOME & (x)"
    return Run.open(shutil.copytree(first_run.path, path))


def suggested_commands(text: str) -> list[list[str]]:
    """Return the arguments of each edgerec command in a text, as a shell splits them."""
    commands = [line[line.index("edgerec ") :] for line in text.splitlines() if re.search(r"\bedgerec [a-z]", line)]
    for command in commands:
        result = subprocess.run(["sh", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert result.returncode == 0, (command, result.stderr)
    return [shlex.split(command, comments=True) for command in commands]


def test_messages_quote_the_values_in_suggested_commands():
    names = "|".join(name for names in COMMANDS.values() for name in names)
    unquoted = []
    for path in sorted((REPOSITORY / "edgerec").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                if re.search(rf"\bedgerec ({names}) [^:;,.\n]*\0", text):
                    unquoted.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}")
    assert unquoted == []  # messages must use edgerec.utils.command_line.command


# Modules with error messages that edgerec build never prints.
NOT_IN_BUILD = {
    *("compress/existing_variants.py", "compress/quantize.py", "data/tfrecord_writer.py", "export/ensembles.py"),
    *("export/importer.py", "export/novelty.py", "train/evaluated_model.py", "train/extend.py", "train/fit.py"),
    *("train/label_order.py", "train/training_data.py"),
}


def test_messages_of_build_name_only_its_own_options():
    """Messages may also name another command's option, such as ``--epochs of edgerec quantize``."""
    options = {name for parameter in load_command("build").params for name in parameter.opts}
    unknown = []
    for package in ("compress", "data", "export", "models", "tflite/edgetpu", "train"):
        for path in sorted((REPOSITORY / "edgerec" / package).rglob("*.py")):
            if path.relative_to(REPOSITORY / "edgerec").as_posix() in NOT_IN_BUILD:
                continue
            for error in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise)):
                parts = [node.value for node in ast.walk(error) if isinstance(node, ast.Constant)]
                for text in (part for part in parts if isinstance(part, str) and " " in part):
                    if "edgerec " not in text:
                        names = re.findall(r"(?<!\S)(--[a-z][a-z-]+)", text)
                        unknown += [(path.name, name) for name in names if name not in options]
    assert unknown == []


def test_quantize_suggests_to_export_the_variant(quoted_run, invoke):
    result = invoke("quantize", quoted_run.path, "--method", "float16", "--max-drop", 100)
    assert result.returncode == 0, result.stderr
    assert suggested_commands(result.stdout) == [
        ["edgerec", "export", str(quoted_run.path), "--target", "rpi", "--variant", "float16"]
    ]


def test_quantize_suggests_the_new_location_of_moved_data(quoted_run, invoke):
    result = invoke("quantize", quoted_run.path, "--method", "dynamic", "--max-drop", 100, "--data", "digits")
    assert suggested_commands(result.stdout)[0][-2:] == ["--data", "digits"]


def test_calibration_make_suggests_to_show_the_set(quoted_run, invoke, tmp_path):
    out = tmp_path / "my set"
    result = invoke("calibration", "make", quoted_run.path, "--out", out, "--images", 10)
    assert result.returncode == 0, result.stderr
    assert suggested_commands(result.stdout) == [["edgerec", "calibration", "show", str(out), "--out", "sheet.png"]]


def test_report_suggests_commands_for_its_run(quoted_run, tmp_path):
    steps = [step.command for step in write_report(quoted_run.path, tmp_path / "page.html").next if step.command]
    assert steps
    for words in suggested_commands("\n".join(steps)):
        assert words[2] == str(quoted_run.path)
    # If the images were moved, every command that reads them has an option with their new location.
    steps = [
        step.command
        for step in write_report(quoted_run.path, tmp_path / "moved.html", data="digits").next
        if step.command
    ]
    assert all(words[-2:] == ["--data", "digits"] for words in suggested_commands("\n".join(steps)))


def test_commands_in_errors_can_be_parsed_by_a_shell(quoted_run, invoke, tmp_path):
    missing = tmp_path / "no run, yet"
    for command in ("quantize", "export", "parity"):
        result = invoke(command, missing)
        ((*words, out),) = suggested_commands(result.stderr)
        assert (words, out) == (["edgerec", "train", "DATA", "--out"], str(missing))
    unfinished = tmp_path / "not finished"
    shutil.copytree(quoted_run.path, unfinished)
    (unfinished / "metrics.json").unlink()
    assert suggested_commands(invoke("quantize", unfinished).stderr) == [
        ["edgerec", "train", "--resume", "--out", str(unfinished)]
    ]
    with pytest.raises(EdgerecError) as error:
        Run.open(missing)
    assert suggested_commands(str(error.value)) == [["edgerec", "train", "DATA", "--out", str(missing)]]
    result = invoke("export", shutil.copytree(unfinished, tmp_path / "a b"), "--out", tmp_path / "x")
    assert suggested_commands(result.stderr)


def test_error_for_a_missing_recipe_suggests_a_command_that_writes_it(invoke, tmp_path):
    result = invoke("train", tmp_path / "my recipe.toml", "--out", tmp_path / "run")
    ((*words, path),) = suggested_commands(result.stderr)
    assert (words, path) == (["edgerec", "recipe", ">"], str(tmp_path / "my recipe.toml"))


def test_export_for_an_int8_target_without_an_int8_variant_suggests_quantize(quoted_run, invoke, tmp_path):
    copy = Run.open(shutil.copytree(quoted_run.path, tmp_path / "only float"))
    for name, values in copy.variants().items():
        if values["precision"] == "int8":
            shutil.rmtree(copy.variant(name))
    result = invoke("export", copy.path, "--target", "coral-usb", "--out", tmp_path / "bundle")
    assert suggested_commands(result.stderr) == [["edgerec", "quantize", str(copy.path)]]
