"""Faulty and malicious devices: damaged output of the probe and the agent, which a stand-in for ssh sends to the host.

``edgerec deploy`` and ``edgerec devices`` must end with an error of one line, and print no control characters.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from edgerec.deploy import release as release_module
from edgerec.deploy.agent_archive import agent_archive
from edgerec.deploy.plan import Package
from edgerec.deploy.wheels import Wheels
from edgerec.errors import EdgerecError
from edgerec.utils.atomic import sha256
from edgerec.utils.text import is_printable
from fuzzing.mutate import damaged_bytes, damaged_json, damaged_text
from fuzzing.tally import Attempt, Broken, peak_memory_bytes, run_command

MAX_MEMORY_BYTES = 512 << 20
# The last argument of ssh is the command: a script for the probe, or the agent with its request.
_SSH = """#!/bin/sh
case " $* " in *" -M "*) . "$FUZZ_DEVICE/probe.sh" ;; *" follow "*) . "$FUZZ_DEVICE/follow.sh" ;; esac
. "$FUZZ_DEVICE/agent.sh"
"""
_WAIT = "exec cat >/dev/null"
_ENDINGS = (
    *("exit 0", "exit 1", "exit 255", "echo 'Permission denied' >&2; exit 255"),
    *("printf '\\033[2J' >&2; exit 1", "head -c 100000 /dev/zero >&2; exit 255", "exec yes", "exec yes end"),
    *("exec yes '{\"received\": 1}'", "exec tr '\\0' x </dev/zero", 'exec yes \'{"step": "check"}\''),
    """exec yes '{"step": "check", "state": "running", "text": "", "done": 0, "total": 0}'""",
    """exec yes '{"step": "check", "state": "done", "text": "", "done": 0, "total": 0}'""",
)
_PROBE = """bits 64
kernel Linux
machine x86_64
system Debian GNU/Linux 12 (bookworm)
glibc 2.36
clock 1780000000
systemd yes
root root
free_kib 5000000
agent
python 3.11 /usr/bin/python3
venv 3.11
picamera2 yes
camera /dev/video0 USB Camera
end
"""
_CAMERA = {
    "version": 1, "pid": 5, "bundle": "ab" * 32, "name": "signs", "started_s": 1.5, "updated_s": 2.5, "frames": 9,
    "skipped": 0, "fps": 5.5, "invalid": 0, "temperature_c": 50.5, "throttled": ["hot"],
    "sources": [{"name": "0", "state": "lost", "reason": "no signal"}],
    "last": {"source": "0", "label": "stop", "score": 0.5, "at_s": 2.5},
}  # fmt: skip
_COMMANDS = (
    *(("devices",), ("devices", "--json"), ("deploy", "BUNDLE", "door"), ("deploy", "BUNDLE", "door", "--json")),
    *(("deploy", "BUNDLE", "door", "--dry-run"), ("deploy", "BUNDLE", "--all"), ("deploy", "--rollback", "door")),
    *(("deploy", "--remove", "door"), ("deploy", "--rollback", "--all", "--json")),
    *(("deploy", "--rollback", "door", "--dry-run"), ("deploy", "--remove", "door", "--dry-run")),
)


@contextlib.contextmanager
def devices(bundle: Path, work: Path) -> Iterator[Attempt]:
    """Run a command for a device that sends damaged output."""
    from edgerec import import_tflite

    signs, program, listing = work / "signs", work / "bin" / "ssh", work / "devices.toml"
    import_tflite(
        bundle / "model.tflite", signs, labels=bundle / "labels.txt", target="desktop-linux", normalize="unit"
    )
    program.parent.mkdir()
    program.write_text(_SSH)
    program.chmod(0o755)
    listing.write_text("".join(f"[[device]]\nname = '{name}'\nhost = 'root@{name}'\n" for name in ("door", "gate")))
    replies = _replies(Package.open(signs))
    before = peak_memory_bytes()

    def attempt(rng: Random) -> None:
        arguments = list(rng.choice(_COMMANDS))
        probe, agent = _PROBE.encode(), replies[next((key for key in replies if key in " ".join(arguments)), "deploy")]
        if damages_probe := rng.random() < 0.3:
            probe = (
                damaged_bytes(rng, probe)
                if rng.random() < 0.3
                else damaged_text(rng, _PROBE).encode("utf-8", "replace")
            )
        content = (
            _damaged(rng, agent) if not damages_probe else b"".join(json.dumps(each).encode() + b"\n" for each in agent)
        )
        # A device whose probe ends without the last line waits for the host.
        for name, output in (("probe", probe), ("agent", content), ("follow", content)):
            waits = name == "probe" and b"\nend\n" in output
            ending = _WAIT if waits else rng.choice(_ENDINGS)
            (work / f"{name}.out").write_bytes(output)
            (work / f"{name}.sh").write_text(f"cat {shlex.quote(str(work / f'{name}.out'))} </dev/null\n{ending}\n")
        arguments = [str(signs) if each == "BUNDLE" else each for each in arguments]
        result = run_command([*arguments, "--devices", str(listing)], exit_codes=(0, 1))
        if bad := [line for line in result.output.split("\n") if not is_printable(line) or len(line) > 5000]:
            raise Broken(f"{arguments}: prints {bad[0][:300]!r} with {len(bad[0])} characters")
        if "--json" in arguments:
            json.loads(result.stdout)
        if result.exit_code:
            raise EdgerecError((result.stderr.strip() or "failed").splitlines()[-1].removeprefix("error: "))

    changes = {"RECONNECT_S": 0.2, "RECONNECT_PAUSE_S": 0.01}
    paths = {"PATH": f"{program.parent}:{os.environ['PATH']}", "FUZZ_DEVICE": str(work)}
    with (
        mock.patch.multiple(release_module, **changes),
        mock.patch("edgerec.deploy.plan.find_wheels", return_value=Wheels((), 0)),
        mock.patch.dict(os.environ, paths),
    ):
        yield attempt
    if (used := peak_memory_bytes() - before) > MAX_MEMORY_BYTES:
        raise Broken(f"uses {used >> 20} MiB of memory")


def _replies(package: Package) -> dict[str, list[Any]]:
    """Return the replies of a correct agent during each operation."""
    digests = {sha256(content): len(content) for content in package.files.values()}
    status = {
        "release": "ab" * 8, "previous": "cd" * 8, "releases": ["ab" * 8, "cd" * 8], "name": "signs", "target": "rpi",
        "on_trial": False, "service": "active", "free_bytes": 5 << 30, "camera": _CAMERA, "age_s": 1.5,
        "require_signature": False, "serial": 3, "config": "", "auto_source": True, "signers": "", "unit": "",
        "agent": sha256(agent_archive()), "unit_prefix": "", "foreign_unit": False,
    }  # fmt: skip
    job: list[Any] = [
        {"step": "install", "state": "running", "text": "installing", "done": 1, "total": 5},
        {"step": "switch", "state": "done", "text": "switched", "done": 0, "total": 0},
        {"result": {"release": package.release, "previous": "ab" * 8, "changed": True}},
    ]
    plan = {"missing": dict.fromkeys(digests, 0), "venv": False, "complete": False, "free_bytes": 5 << 30}
    stored = [each for digest, size in digests.items() for each in ({"received": size // 2}, {"stored": digest})]
    error = {"error": "the disk is full", "step": "send", "restored": True, "log": ["line 1", "line 2"]}
    return {
        "devices": [status],
        **{option: [status, {"locked": True}, status, *job] for option in ("--rollback", "--remove")},
        "--dry-run": [status, plan],
        "deploy": [status, {"locked": True}, plan, status, *stored, *job[:2], error],
    }


def _damaged(rng: Random, replies: list[Any]) -> bytes:
    """Return replies after one of them was changed, repeated or removed."""
    lines = [json.dumps(reply).encode() for reply in replies]
    at = rng.randrange(len(lines))
    draw = rng.random()
    if draw < 0.7:
        lines[at] = damaged_json(rng, copy.deepcopy(replies[at]))
    elif draw < 0.8:
        lines[at : at + rng.choice((0, 1))] = [rng.choice((b"", b"null", b"[]", b"x" * (5 << 20), b"{}", b"\xff\0"))]
    elif draw < 0.9:
        lines[at] = json.dumps({"error": rng.choice((None, 5, "\x1b[2J", "x" * 100_000)), "log": ["\x1b", 5]}).encode()
    else:
        lines.insert(at, lines[at])
    return b"\n".join(lines) + b"\n"
