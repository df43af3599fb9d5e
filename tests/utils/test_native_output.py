"""Redirection of stdout and stderr, including output of C code."""

from __future__ import annotations

import os
import subprocess
import sys

OVERLAPPING = """
import os, sys, threading
from edgerec.utils.native_output import captured_stderr

inside, leave, left = threading.Event(), threading.Event(), threading.Event()

def first():
    with captured_stderr():
        inside.set()
        leave.wait(0.5)
    left.set()

def second():
    inside.wait()
    with captured_stderr():
        leave.set()
        left.wait(5)  # without a lock, this thread would restore the file of the first thread, which is deleted

threads = [threading.Thread(target=run) for run in (first, second)]
for thread in threads: thread.start()
for thread in threads: thread.join()
os.write(2, b"still here")
"""


def test_overlapping_captures_leave_stderr_working():
    result = subprocess.run([sys.executable, "-c", OVERLAPPING], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stderr == "still here"


def test_output_of_c_code_is_captured():
    from edgerec.utils.native_output import captured_stderr

    with captured_stderr() as captured:
        os.write(sys.stderr.fileno(), b"from C")
        captured.seek(0)
        assert captured.read() == b"from C"


def test_capture_works_in_a_process_without_stderr(tmp_path):
    code = (
        "import pathlib, sys; from edgerec.utils.native_output import captured_output\nwith captured_output(): pass\n"
    )
    code += "pathlib.Path(sys.argv[1]).write_text('done')"
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", code, str(tmp_path / "result")]
    assert subprocess.run(command, check=False).returncode == 0
    assert (tmp_path / "result").read_text() == "done"
