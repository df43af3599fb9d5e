"""The texts of ``--help``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from edgerec.cli.app import COMMANDS, app
from tests.conftest import REPOSITORY

# Sections of --help that a command shows first. Sections with other headings are the advanced groups.
FIRST_SECTIONS = ("Arguments:", "Options:", "Commands:")


def command_lines() -> list[str]:
    """Return the names of all commands, including subcommands such as ``data check``."""
    root = typer.main.get_command(app)
    lines = []
    for name in (name for names in COMMANDS.values() for name in names):
        lines.append(name)
        lines += [f"{name} {subcommand}" for subcommand in getattr(root.get_command(None, name), "commands", ())]
    return lines


@pytest.fixture
def help_lines(monkeypatch, capsys):
    """Return a function that returns the lines of a command's help in a terminal with this number of columns."""

    def call(command: str, columns: int) -> list[str]:
        # Typer's CliRunner always uses 80 columns.
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as end:
            app([*command.split(), "--help"], prog_name="edgerec")
        assert end.value.code == 0
        return capsys.readouterr().out.rstrip("\n").split("\n")

    return call


def headings(lines: list[str]) -> list[str]:
    return [line for line in lines if re.fullmatch(r"\S.*:", line)]


@pytest.mark.parametrize("command", command_lines())
def test_common_options_fit_on_one_screen(help_lines, command):
    lines = help_lines(command, 100)
    advanced = [line for line in headings(lines) if line not in FIRST_SECTIONS]
    first_screen = lines[: lines.index(advanced[0])] if advanced else lines
    while not first_screen[-1]:
        del first_screen[-1]
    assert len(first_screen) <= 24, "\n".join(first_screen)
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("command", command_lines())
@pytest.mark.parametrize("columns", [60, 80])
def test_help_is_not_wider_than_the_terminal(help_lines, command, columns):
    assert max(map(len, help_lines(command, columns))) <= columns


def test_help_of_the_root_groups_commands_by_task(help_lines):
    lines = help_lines("", 80)
    assert headings(lines) == [*(f"{heading}:" for heading in COMMANDS), "Options:"]
    assert lines.index("Inspect:") - 1 <= 24  # the main tasks and their blank lines fit on one screen
    assert not [line for line in lines[1:] if line.endswith("...")]  # Typer shortens help texts that are too long


def test_summaries_of_the_root_are_the_first_sentences_of_the_commands():
    root = typer.main.get_command(app)
    summaries = {name: summary for commands in COMMANDS.values() for name, summary in commands.items()}
    assert summaries == {name: root.get_command(None, name).get_short_help_str(100) for name in summaries}


COMPLETION = """
eval "$(edgerec --show-completion bash)"
COMP_WORDS=(edgerec qua); COMP_CWORD=1; _edgerec_completion edgerec; echo "${COMPREPLY[@]}"
COMP_WORDS=(edgerec quantize --max-d); COMP_CWORD=2; _edgerec_completion edgerec; echo "${COMPREPLY[@]}"
COMP_WORDS=(edgerec data ch); COMP_CWORD=2; _edgerec_completion edgerec; echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_completes_commands_options_and_subcommands():
    programs = Path(sys.executable).parent
    if not (programs / "edgerec").is_file():
        pytest.skip("the edgerec program is not installed")
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    # The shell is detected by the parent process of edgerec, which must therefore be bash.
    result = subprocess.run(["bash", "-c", COMPLETION], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split() == ["quantize", "--max-drop", "check"], result.stderr


def test_each_module_of_a_command_is_in_the_table_of_commands():
    names = {name.replace("import", "import_") for names in COMMANDS.values() for name in names}
    helpers = {
        "app",
        "camera_options",
        "failures",
        "fleet_output",
        "help",
        "options",
        "output",
        "recipe_options",
        "user_paths",
    }
    modules = {path.stem for path in (REPOSITORY / "edgerec" / "cli").glob("*.py")} - {"__init__"}
    assert modules == names | helpers


def test_a_command_imports_only_its_own_module():
    code = (
        "import sys\nsys.argv = ['edgerec', 'targets', '--help']\nfrom edgerec.cli.app import COMMANDS, main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([n for names in COMMANDS.values() for n in names if f'edgerec.cli.{n}' in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "['targets']"


def test_unknown_command_suggests_a_similar_name(invoke):
    result = invoke("trian")
    assert result.returncode == 2
    assert "Did you mean 'train'?" in result.stderr


def test_help_can_be_shown_by_a_terminal_without_utf8(edgerec):
    result = edgerec("camera", "--help", env=os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "60"})
    assert result.returncode == 0
    assert "--source" in result.stdout
    assert "\\u" not in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "verify bundle other",
            "edgerec verify takes only BUNDLE: remove 'other'. If a value belongs to an option, put the name",
        ),
        (
            "camera bundle a b --web",
            "edgerec camera takes only BUNDLE: remove 'a', 'b'. If a value belongs to an option,",
        ),
        ("doctor rpi", "edgerec doctor takes no arguments: remove 'rpi'. If a value belongs to an option"),
        (
            "calibration check a b --run c",
            "edgerec calibration check takes only SET|FOLDER|NPZ: remove 'b'. If a value belongs",
        ),
    ],
)
def test_unexpected_argument_is_named_with_a_solution(invoke, words, message):
    result = invoke(*words.split())
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
