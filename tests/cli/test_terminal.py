"""Tables and progress bars fit into terminals of any width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

COMPARISON_PROGRAM = """
from edgerec.cli.output import table
table(("variant", "method", "top-1", "drop", "agreement", "bytes", "gzip bytes", "zeros", "ms", "p95 ms"),
      [("int8-pcqat", "prune+cluster+qat", "97.20%", "+0.80", "99.20%", "128,410", "57,718", "50%", "0.016", "0.019")],
      optional=("p95 ms", "zeros", "method"))
"""
PROGRESS_PROGRAM = """
import logging, time
from edgerec.cli.output import progress
from edgerec.utils.progress import Progress
with progress() as listen:
    for done in range(3):
        listen(Progress("quantization-aware training", done, 3, "epoch 1/40  loss 0.28  accuracy 0.91  " * 3))
        time.sleep(0.15)
    listen(Progress("reading", 1, 3, "[red]photo[/red] [5].png"))
    time.sleep(0.15)
"""

PROMPT_PROGRAM = """
import sys, time
from edgerec.cli.output import progress
from edgerec.utils.progress import Progress
with progress() as listen:
    listen(Progress("evaluating", 1, 3))
    listen(Progress("signing", 0, 1, may_ask_user=True))
    print("Enter passphrase: ", end="", file=sys.__stderr__, flush=True)
    time.sleep(0.3)
    print("(the user types)", file=sys.__stderr__, flush=True)
    listen(Progress("writing", 1, 3))
"""


def terminal(columns: int, *command: str) -> str:
    """Run a command in a terminal of this width and return what it wrote."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        stderr=secondary,
        env=environment | {"TERM": "xterm"},
    )
    os.close(secondary)
    output = b""
    while True:
        try:
            data = os.read(primary, 65536)
        except OSError:  # the terminal of a finished program
            break
        if not data:
            break
        output += data
    os.close(primary)
    assert process.wait(timeout=60) == 0, output
    return output.decode().replace("\r\n", "\n")


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("command", [("models",), ("targets",), ("models", "ds_cnn"), ("targets", "rpi-32bit")])
@pytest.mark.parametrize("columns", [60, 80])
def test_no_line_is_wider_than_the_terminal(command, columns):
    lines = terminal(columns, "-m", "edgerec", *command).splitlines()
    assert len(lines) > 4
    # The terminal itself wraps sentences and commands.
    assert not [
        line for line in lines if len(line) > columns and not re.match(r"[\w-]+: |for |  commands| {10,}\w", line)
    ]


def test_comparison_leaves_out_the_least_important_columns():
    narrow = terminal(80, "-c", COMPARISON_PROGRAM).splitlines()
    assert narrow[0].split() == ["variant", "top-1", "drop", "agreement", "bytes", "gzip", "bytes", "ms"]
    assert max(map(len, narrow)) <= 80
    assert "not shown: p95 ms, zeros, method" in narrow[2]
    wide = terminal(120, "-c", COMPARISON_PROGRAM).splitlines()
    assert len(wide) == 2
    assert "p95 ms" in wide[0]


def test_output_to_a_program_has_all_columns():
    piped = subprocess.run(
        [sys.executable, "-c", COMPARISON_PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "40"},
    ).stdout.splitlines()
    assert piped[1].split() == [
        *["int8-pcqat", "prune+cluster+qat", "97.20%", "+0.80", "99.20%", "128,410", "57,718", "50%", "0.016", "0.019"]
    ]


def test_text_is_wrapped_and_numbers_are_not():
    code = (
        "from edgerec.cli.output import table; table(('layer', 'output', 'bytes'), "
        "[('a', 'a_very_long_name_of_a_layer/' * 4, '1,234,567'), ('b', 'x', '1')])"
    )
    output = terminal(60, "-c", code)
    assert max(map(len, output.splitlines())) <= 60
    assert "1,234,567" in output
    letters = re.sub(r"[\s\d,]", "", output)
    assert letters.count("a_very_long_name_of_a_layer/") == 4


def test_wide_characters_stay_aligned():
    code = "from edgerec.cli.output import table; table(('label', 'f1'), [('犬猫', '0.5'), ('ab', '1.0')])"
    from rich.cells import cell_len

    lines = terminal(80, "-c", code).splitlines()
    assert len({cell_len(line) for line in lines[1:]}) == 1


def test_progress_takes_one_line():
    output = without_escapes(terminal(80, "-c", PROGRESS_PROGRAM))
    lines = [line for part in output.split("\r") for line in part.split("\n") if line.strip()]
    assert lines
    assert max(map(len, lines)) <= 80
    assert all(line.startswith(("quantization-aware training", "reading")) for line in lines), lines
    assert "[red]photo[/red] [5].png" in output


def test_progress_bar_does_not_erase_a_question():
    output = terminal(80, "-c", PROMPT_PROGRAM)
    assert "Enter passphrase: (the user types)" in output
    before, _, after = output.partition("Enter passphrase")
    assert "evaluating" in before
    assert "writing" in after
