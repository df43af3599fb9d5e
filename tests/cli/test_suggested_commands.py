"""Commands that edgerec suggests can be pasted into a shell as they are."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess

import pytest

from edgerec import Run, write_report
from edgerec.cli.app import COMMANDS
from edgerec.errors import EdgerecError
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def awkward(first_run, tmp_path_factory):
    """A copy of a finished run in a folder whose name a shell would take apart."""
    path = tmp_path_factory.mktemp("it's") / "my run; echo $HOME & (x)"
    return Run.open(shutil.copytree(first_run.path, path))


def suggested(text: str) -> list[list[str]]:
    """The words of each command in a text, as a shell splits them."""
    commands = [line[line.index("edgerec ") :] for line in text.splitlines() if re.search(r"\bedgerec [a-z]", line)]
    for command in commands:
        done = subprocess.run(["sh", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
    return [shlex.split(command, comments=True) for command in commands]


def test_no_command_is_written_with_a_bare_value_in_it():
    names = "|".join(name for names in COMMANDS.values() for name in names)
    bare = []
    for path in sorted((REPOSITORY / "edgerec").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                if re.search(rf"\bedgerec ({names}) [^:;,.\n]*\0", text):
                    bare.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}")
    assert bare == []  # edgerec.utils.command_line.command writes them


def test_quantize_suggests_its_export(awkward, here):
    done = here("quantize", awkward.path, "--method", "float16", "--max-drop", 100)
    assert done.returncode == 0, done.stderr
    assert suggested(done.stdout) == [
        ["edgerec", "export", str(awkward.path), "--target", "rpi", "--variant", "float16"]
    ]


def test_quantize_names_the_data_where_it_was_moved(awkward, here):
    done = here("quantize", awkward.path, "--method", "dynamic", "--max-drop", 100, "--data", "digits")
    assert suggested(done.stdout)[0][-2:] == ["--data", "digits"]


def test_calibration_suggests_how_to_look_at_the_set(awkward, here, tmp_path):
    out = tmp_path / "my set"
    done = here("calibration", "make", awkward.path, "--out", out, "--images", 10)
    assert done.returncode == 0, done.stderr
    assert suggested(done.stdout) == [["edgerec", "calibration", "show", str(out), "--out", "sheet.png"]]


def test_the_report_suggests_commands_for_its_run(awkward, tmp_path):
    steps = [step.command for step in write_report(awkward.path, tmp_path / "page.html").next if step.command]
    assert steps
    for words in suggested("\n".join(steps)):
        assert words[2] == str(awkward.path)
    # If the images were moved, every command that reads them says where they are now.
    steps = [
        step.command for step in write_report(awkward.path, tmp_path / "moved.html", data="digits").next if step.command
    ]
    assert all(words[-2:] == ["--data", "digits"] for words in suggested("\n".join(steps)))


def test_errors_suggest_commands_that_a_shell_can_read(awkward, here, tmp_path):
    missing = tmp_path / "no run, yet"
    for command in ("quantize", "export", "parity"):
        done = here(command, missing)
        ((*words, out),) = suggested(done.stderr)
        assert (words, out) == (["edgerec", "train", "DATA", "--out"], str(missing))
    unfinished = tmp_path / "not finished"
    shutil.copytree(awkward.path, unfinished)
    (unfinished / "metrics.json").unlink()
    assert suggested(here("quantize", unfinished).stderr) == [
        ["edgerec", "train", "--resume", "--out", str(unfinished)]
    ]
    with pytest.raises(EdgerecError) as error:
        Run.open(missing)
    assert suggested(str(error.value)) == [["edgerec", "train", "DATA", "--out", str(missing)]]
    done = here("export", shutil.copytree(unfinished, tmp_path / "a b"), "--out", tmp_path / "x")
    assert suggested(done.stderr)


def test_a_missing_recipe_names_a_command_that_writes_it(here, tmp_path):
    done = here("train", tmp_path / "my recipe.toml", "--out", tmp_path / "run")
    ((*words, path),) = suggested(done.stderr)
    assert (words, path) == (["edgerec", "recipe", ">"], str(tmp_path / "my recipe.toml"))


def test_an_int8_target_without_an_int8_variant_suggests_quantize(awkward, here, tmp_path):
    copy = Run.open(shutil.copytree(awkward.path, tmp_path / "only float"))
    for name, values in copy.variants().items():
        if values["precision"] == "int8":
            shutil.rmtree(copy.variant(name))
    done = here("export", copy.path, "--target", "coral-usb", "--out", tmp_path / "bundle")
    assert suggested(done.stderr) == [["edgerec", "quantize", str(copy.path)]]
