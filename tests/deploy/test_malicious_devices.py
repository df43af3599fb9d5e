"""Tests that the host refuses the output of a faulty or malicious device with an error of one line."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import threading

import pytest

from edgerec import DeployOptions, Device
from edgerec.deploy import release, rollback, session, ssh
from edgerec.deploy.agent_archive import agent_archive
from edgerec.deploy.device import DeviceFacts
from edgerec.errors import DeployError
from edgerec.utils.atomic import sha256

# The stand-in for ssh prints a file for the probe, and another one for the agent.
SSH = """#!/bin/sh
case " $* " in *" -M "*) cat {folder}/probe; exec cat >/dev/null ;; esac
cat {folder}/agent
{ending}
"""
PROBE = "kernel Linux\nmachine x86_64\nroot root\npython 3.11 /usr/bin/python3\nend\n"
STATUS = {
    "release": "ab" * 8,
    "previous": "cd" * 8,
    "releases": ["ab" * 8, "cd" * 8],
    "name": "signs",
    "target": "rpi",
    "on_trial": False,
    "service": "active",
    "free_bytes": 1,
    "camera": None,
    "age_s": None,
    "require_signature": False,
    "config": "",
    "auto_source": True,
    "signers": "",
    "unit": "",
    "agent": sha256(agent_archive()),
    "unit_prefix": "",
    "foreign_unit": False,
}
STEP = {"step": "switch", "state": "running", "text": "", "done": 0, "total": 0}
RESULT = {"release": "cd" * 8, "previous": "ab" * 8, "changed": True}


@pytest.fixture
def roll_back(tmp_path, monkeypatch):
    """Return a function that rolls back a device which sends the given output."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(release, "RECONNECT_S", 0)
    monkeypatch.setattr(release, "RECONNECT_PAUSE_S", 0)

    def run(*replies, status=STATUS, probe=PROBE, ending="exit 0"):
        lines = [json.dumps(reply) for reply in (status, {"locked": True}, status, *replies)]
        (tmp_path / "agent").write_text("\n".join([*lines, ""]))
        (tmp_path / "probe").write_text(probe)
        (tmp_path / "ssh").write_text(SSH.format(folder=tmp_path, ending=ending))
        (tmp_path / "ssh").chmod(0o755)
        steps = []
        return rollback(Device("root@door"), listener=steps.append), steps

    return run


def refusal(roll_back, *replies, **output):
    with pytest.raises(DeployError) as caught:
        roll_back(*replies, **output)
    return str(caught.value)


def test_correct_replies_are_accepted(roll_back):
    result, steps = roll_back(STEP, {"result": RESULT})
    assert (result.release, result.previous, result.changed) == ("cd" * 8, "ab" * 8, True)
    assert steps[-1].name == "switch"


@pytest.mark.parametrize("key", STATUS)
def test_status_without_a_key_is_refused(roll_back, key):
    status = {name: value for name, value in STATUS.items() if name != key}
    assert f"root@door sent an invalid reply ({key} is missing)" in refusal(roll_back, status=status)


@pytest.mark.parametrize(
    "change", [{"free_bytes": "much"}, {"releases": "abc"}, {"camera": [1]}, {"release": None}, {"age_s": "1"}]
)
def test_status_with_a_wrong_value_is_refused(roll_back, change):
    (key,) = change
    assert f"root@door sent an invalid reply ({key} is " in refusal(roll_back, status=STATUS | change)


@pytest.mark.parametrize("changes", [{"release": "a" * 17}, {"previous": "x" * 16}, {"releases": ["../" * 9]}])
def test_status_with_an_invalid_release_is_refused(roll_back, changes):
    assert "a release ID is not 16 hexadecimal digits" in refusal(roll_back, status=STATUS | changes)


@pytest.mark.parametrize("key", STEP)
def test_step_with_a_wrong_value_is_refused(roll_back, key):
    assert f"root@door sent an invalid reply ({key} is None, expected" in refusal(roll_back, STEP | {key: None})


@pytest.mark.parametrize("result", [None, {}, RESULT | {"changed": "yes"}, RESULT | {"release": "x" * 1000}])
def test_invalid_result_is_refused(roll_back, result):
    assert "root@door sent an invalid reply" in refusal(roll_back, {"result": result})


@pytest.mark.parametrize("ending", [f"exec yes '{json.dumps(STEP)}'", "exec tr '\\0' x </dev/zero"])
def test_endless_output_is_refused(roll_back, ending):
    assert refusal(roll_back, ending=ending) == (
        "root@door sends too much output: check the login scripts of its shell"
    )


def test_job_with_too_many_steps_is_refused(roll_back):
    steps_s = DeployOptions().healthy_within_s + DeployOptions().settle_s
    replies = [STEP] * (release.MAX_STEP_LINES + 11 * int(steps_s))
    assert "root@door sends too much output" in refusal(roll_back, *replies, {"result": RESULT})


@pytest.mark.parametrize("probe", ["x\n" * 2000, ("x" * 100_000 + "\n") * 20])
def test_probe_with_too_much_output_is_refused(roll_back, probe):
    assert "root@door sends too much output" in refusal(roll_back, probe=probe)


def test_path_with_a_null_character_is_ignored(roll_back):
    probe = PROBE.replace("/usr/bin/python3", "/usr/bin/python3\0")
    assert "it has no Python" in refusal(roll_back, probe=probe)


def test_text_of_a_step_is_shortened(roll_back):
    _, steps = roll_back(STEP | {"text": "x" * 1_000_000}, {"result": RESULT})
    assert len(steps[-1].text) < 2000


def test_log_of_an_error_is_shortened(roll_back):
    with pytest.raises(DeployError, match="root@door: crashed") as caught:
        roll_back({"error": "crashed", "log": ["x" * 20_000] * 150})
    assert sum(map(len, caught.value.log)) == 100_000


def test_ssh_is_killed_if_the_device_does_not_read_its_input(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(ssh, "WRITE_S", 0)
    (tmp_path / "ssh").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "ssh").chmod(0o755)
    with ssh.Connection(Device("door")) as connection:
        command = connection.command("")
        writer = threading.Thread(target=command.write, args=(bytes(1 << 20),), daemon=True)
        writer.start()
        writer.join(60)
        assert not writer.is_alive()
        assert command.wait() == -signal.SIGKILL


def test_error_names_a_device_that_does_not_read_its_input(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(ssh, "WRITE_S", 0)
    # Random bytes cannot be compressed, so they do not fit into the pipe to ssh.
    monkeypatch.setattr(session, "agent_archive", lambda: random.Random(0).randbytes(1 << 20))
    (tmp_path / "ssh").write_text("#!/bin/sh\necho 'sudo: unable to resolve host door' >&2\nexec sleep 600\n")
    (tmp_path / "ssh").chmod(0o755)
    with ssh.Connection(Device("door")) as connection:
        agent = session.Session(connection, DeviceFacts.parse(PROBE.splitlines()))
        with pytest.raises(DeployError, match="door does not read its input: restart the device"):
            agent.request("status")


def test_connection_works_with_many_open_files(tmp_path, monkeypatch):
    """select() does not support more than 1,024 open files."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "ssh").write_text('#!/bin/sh\nread -r line\necho "$line"\n')
    (tmp_path / "ssh").chmod(0o755)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 4096), limits[1]))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        for _ in range(1100):
            stack.enter_context(open(os.devnull))
        command = stack.enter_context(ssh.Connection(Device("door"))).command("")
        command.write(b"hello\n")
        assert command.read_line(60) == "hello"
