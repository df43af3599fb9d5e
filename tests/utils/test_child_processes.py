"""Programs in child processes: time limits, their own child processes, and text from the system."""

from __future__ import annotations

import os
import select
import subprocess

import pytest

from edgerec.runtime.device_users import programs_using
from edgerec.runtime.video_devices import list_video_devices
from edgerec.utils.child_process import python_command, run_program, run_python


def test_a_timeout_also_ends_the_children_of_a_program(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    result = run_program(
        ["sh", "-c", f"(echo started; exec sleep 1000) > {fifo} 2>/dev/null & sleep 1000"], timeout_s=2
    )
    assert result.reason == "it timed out after 2 s"
    assert os.read(reader, 100) == b"started\n"
    # The pipe becomes readable, and is empty, after the last process that could write to it has ended.
    assert select.select([reader], [], [], 60)[0]
    assert os.read(reader, 100) == b""
    os.close(reader)


def test_a_program_that_does_not_exist_is_reported():
    assert run_program(["/no/such/program"], timeout_s=5).reason == "it cannot be started: No such file or directory"


def test_a_program_gets_its_input():
    result = run_python("print(len(sys.stdin.buffer.read()))", content=bytes(1 << 20), timeout_s=60)
    assert (result.stdout, result.reason) == (f"{1 << 20}\n", "")


@pytest.mark.parametrize("name", ["\x1b[2Jcamera", "camera\u202e", "a\tb\nc"])
def test_control_characters_in_names_of_devices_are_escaped(tmp_path, name):
    entry = tmp_path / "sys/class/video4linux/video0"
    entry.mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "video0").touch()
    (entry / "name").write_text(name)
    devices, _ = list_video_devices(tmp_path)
    assert devices[0].name == repr(name)[1:-1]


def test_control_characters_in_names_of_programs_are_escaped(tmp_path):
    path = tmp_path / "device"
    path.touch()
    code = "import pathlib; pathlib.Path('/proc/self/comm').write_text('a\\x1bb'); import time; file = open({!r}); "
    code = code.format(str(path)) + "print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(python_command(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"open\n"
        assert programs_using(path) == [rf"a\x1bb (process {process.pid})"]
        process.stdin.close()
