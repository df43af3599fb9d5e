"""Tests that the agent supports Python 3.9, needs only the standard library, and limits the output of programs."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import pytest

from edgerec.deploy import service_config
from edgerec.deploy.agent import processes, releases, store
from edgerec.deploy.agent.errors import AgentError
from edgerec.deploy.agent.installation import Installation
from edgerec.deploy.agent.processes import Finished, run
from edgerec.deploy.agent.releases import safe_name, verify
from edgerec.deploy.agent.service import service_log
from edgerec.deploy.agent.status import uses_first_camera
from edgerec.deploy.agent_archive import RUN_ARCHIVE, agent_archive
from edgerec.utils.atomic import sha256

STATUS_REQUEST = b'{"do": "status"}\n'


def entries():
    """Return the contents of the files in the agent's archive, keyed by path."""
    with zipfile.ZipFile(io.BytesIO(agent_archive())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pythons():
    """Return the paths of Python interpreters on this machine that must be able to run the agent."""
    versions = Path.home().glob(".pyenv/versions/3.*/bin/python")
    paths = [path for path in versions if int(path.parts[-3].split(".")[1]) >= 9]
    return [sys.executable, *map(str, paths)]


def pack(contents):
    """Return a zip application with the given files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def run_from_stdin(python, archive, *arguments, content=b"", before=""):
    """Run a zip application in the same way as the host does on a device that has no agent.

    ``before`` is a program that is executed first.
    """
    compressed = zlib.compress(archive)
    command = [python, "-I", "-c", f"{before}\n{RUN_ARCHIVE}", str(len(compressed)), *arguments]
    return subprocess.run(command, input=compressed + content, capture_output=True, check=True).stdout


@pytest.mark.parametrize("name", entries())
def test_code_on_the_device_needs_only_python_3_9_and_the_standard_library(name):
    source = entries()[name]
    tree = ast.parse(source, feature_version=(3, 9))
    # Python 3.9 cannot evaluate annotations such as str | None.
    assert b"from __future__ import annotations" in source or b"def " not in source
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    modules = {".".join(PurePosixPath(path).with_suffix("").parts).removesuffix(".__init__") for path in entries()}
    own = {module for module in imported if module.partition(".")[0] == "edgerec"}
    assert {module for module in own if module.rpartition(".")[0] not in modules} <= modules
    assert {module.partition(".")[0] for module in imported - own} <= sys.stdlib_module_names


def test_archive_contains_all_modules_of_the_agent_and_is_reproducible():
    folder = Path(store.__file__).parent
    modules = {f"edgerec/deploy/agent/{path.name}" for path in folder.glob("*.py")}
    assert modules < set(entries())
    assert list(entries()) == sorted(entries())
    assert agent_archive.__wrapped__() == agent_archive()
    # The result of a compression would depend on the version of zlib.
    with zipfile.ZipFile(io.BytesIO(agent_archive())) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    assert len(agent_archive()) < store.MAX_AGENT_BYTES // 4


@pytest.mark.parametrize("python", pythons())
def test_agent_runs_from_stdin_and_from_a_file(python, tmp_path):
    archive = tmp_path / "agent.pyz"
    archive.write_bytes(agent_archive())
    arguments = ["session", "--prefix", str(tmp_path / "edgerec")]
    output = run_from_stdin(python, agent_archive(), *arguments, content=STATUS_REQUEST * 2)
    first, second = map(json.loads, output.splitlines())
    assert first["release"] == second["release"] == ""
    command = [python, "-I", archive, *arguments]
    done = subprocess.run(command, input=STATUS_REQUEST, capture_output=True, check=True)
    assert json.loads(done.stdout)["release"] == ""
    assert sorted(tmp_path.iterdir()) == [archive]


def test_agent_does_not_import_an_installed_edgerec(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "edgerec").mkdir()
    (packages / "edgerec" / "__init__.py").write_text("raise SystemExit('another edgerec was imported')")
    assert subprocess.run([python, "-I", "-c", "import edgerec"], capture_output=True, check=False).returncode
    (tmp_path / "agent.pyz").write_bytes(agent_archive())
    arguments = ["session", "--prefix", str(tmp_path / "edgerec")]
    assert json.loads(run_from_stdin(python, agent_archive(), *arguments, content=STATUS_REQUEST))["release"] == ""
    command = [python, tmp_path / "agent.pyz", *arguments]
    done = subprocess.run(command, input=STATUS_REQUEST, capture_output=True, check=True)
    assert json.loads(done.stdout)["release"] == ""


# Replace the agent before each attempt to open it. The two versions have their modules at different positions.
REPLACE_OFTEN = """
import os, runpy, sys

def replace(event, arguments):
    if event == "open" and arguments[0] == path:
        versions.reverse()
        os.link(versions[0], path + ".new")
        os.replace(path + ".new", path)
        print("replaced", file=sys.stderr)

path, *versions = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
sys.addaudithook(replace)
runpy.run_path(path, run_name="__main__")
"""


@pytest.mark.parametrize("python", pythons())
def test_agent_starts_while_it_is_replaced(python, tmp_path):
    path, versions = tmp_path / "agent.pyz", [tmp_path / "a", tmp_path / "b"]
    versions[0].write_bytes(agent_archive())
    versions[1].write_bytes(pack({"__main__.py": b"", "edgerec/added.py": b"#" * 5000} | entries()))
    path.write_bytes(agent_archive())
    command = [python, "-I", "-c", REPLACE_OFTEN, path, *versions, "session", "--prefix", tmp_path / "edgerec"]
    done = subprocess.run(command, input=STATUS_REQUEST, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["release"] == ""
    assert done.stderr.count(b"replaced") >= 2


@pytest.mark.parametrize("python", pythons())
def test_agent_does_not_pass_its_archive_to_child_processes(python, tmp_path):
    program = b"import subprocess\ndef main():\n subprocess.run(['ls', '-l', '/proc/self/fd'], close_fds=False)\n"
    archive = pack(entries() | {"edgerec/deploy/agent/command.py": program})
    path = tmp_path / "agent.pyz"
    path.write_bytes(archive)
    from_file = subprocess.run([python, "-I", path], capture_output=True, check=True).stdout
    for descriptors in (from_file, run_from_stdin(python, archive)):
        assert b"/proc/" in descriptors
        assert b"agent" not in descriptors


@pytest.mark.parametrize("python", pythons())
@pytest.mark.parametrize("memfd", [True, False], ids=["memfd", "temporary file"])
def test_archive_from_stdin_is_not_inherited_and_leaves_the_rest_of_stdin(python, memfd, tmp_path):
    program = (
        "import os, subprocess, sys\n"
        "print(os.path.isfile(sys.path[0]), sys.stdin.buffer.readline(), flush=True)\n"
        "subprocess.run(['ls', '-l', '/proc/self/fd'], close_fds=False)\n"
    )
    before = f"import os, tempfile; tempfile.tempdir = {str(tmp_path)!r}"
    if not memfd:
        before += "; vars(os).pop('memfd_create', None)"
    archive = pack({"__main__.py": program})
    output = run_from_stdin(python, archive, content=b"request\nnext", before=before).decode()
    first, *descriptors = output.splitlines()
    assert first == r"True b'request\n'"
    assert any("/proc/" in line for line in descriptors)
    assert not any("memfd:" in line or str(tmp_path) in line for line in descriptors)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("python", pythons())
def test_agent_from_stdin_requires_no_shared_memory(python, tmp_path):
    before = """
import sys
def fail(event, arguments):
    if event == "open" and str(arguments[0]).startswith("/dev/shm"):
        raise OSError(28, "No space left on device")
sys.addaudithook(fail)
"""
    arguments = ["session", "--prefix", str(tmp_path / "edgerec")]
    output = run_from_stdin(python, agent_archive(), *arguments, content=STATUS_REQUEST, before=before)
    assert json.loads(output)["release"] == ""


def test_archive_from_stdin_fits_into_a_pipe():
    """Otherwise, a faulty device that does not read its input would block a host that has not read its output yet."""
    assert len(zlib.compress(agent_archive(), 9)) < 60_000


@pytest.mark.parametrize(("position", "expected"), [("", "last"), ("known", "new"), ("unknown", "last")])
def test_log_has_the_last_lines_if_journalctl_cannot_find_the_position(tmp_path, monkeypatch, position, expected):
    program = tmp_path / "journalctl"
    program.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        "*'--after-cursor known') echo new;;\n*'--after-cursor unknown') exit 1;;\n*'--lines 30') echo last;;\nesac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert service_log(position) == [expected]


def test_agent_is_replaced_only_if_it_arrived_undamaged(tmp_path):
    installation = Installation(str(tmp_path))
    new = agent_archive()
    store.receive_agent(installation, sha256(new), len(new), io.BytesIO(new + STATUS_REQUEST).read)
    assert Path(installation.agent_file).read_bytes() == new
    with pytest.raises(EOFError):
        store.receive_agent(installation, sha256(b"lost"), 5, io.BytesIO(b"lost").read)
    with pytest.raises(AgentError, match="damaged during the transfer"):
        store.receive_agent(installation, sha256(b"intact"), 7, io.BytesIO(b"damaged").read)
    with pytest.raises(AgentError, match=r"at most 1,048,576 bytes are accepted"):
        store.receive_agent(installation, sha256(b""), 1 << 30, io.BytesIO().read)
    assert Path(installation.agent_file).read_bytes() == new


def test_program_that_prints_endlessly_is_ended_after_its_time_limit():
    assert run(["yes"], timeout_s=1) == Finished(124, "", "yes did not finish within 1 s")


def test_program_that_closes_its_output_is_ended_after_its_time_limit():
    command = ["sh", "-c", "exec >&- 2>&-; exec sleep 1000"]
    assert run(command, timeout_s=1) == Finished(124, "", "sh did not finish within 1 s")


@pytest.mark.parametrize("stream", ["output", "errors"])
def test_only_the_end_of_a_long_output_is_kept(stream):
    redirection = {"output": "", "errors": ">&2"}[stream]
    done = run(["sh", "-c", f"(yes | head -c 20000000; echo 'error: no space') {redirection}; exit 3"])
    text = getattr(done, stream)
    assert done.code == 3
    assert text.endswith("\nerror: no space\n")
    assert len(text) == processes.MAX_OUTPUT_BYTES
    assert done.complete == (stream == "errors")


def test_short_output_is_complete():
    assert run(["sh", "-c", "echo output; echo errors >&2"]) == Finished(0, "output\n", "errors\n")


def test_program_that_does_not_exist_is_reported():
    assert run(["/no/program"]) == Finished(127, "", "program cannot be started (No such file or directory)")


@pytest.mark.parametrize("code", [0, 1])
def test_verification_with_too_much_output_is_refused(tmp_path, monkeypatch, code):
    monkeypatch.setattr(releases, "run_as_nobody", lambda command, groups: run(command))
    release = "1" * 16
    program = tmp_path / "releases" / release / "venv" / "bin" / "edgerec"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\nhead -c 2000000 /dev/zero\necho '{{\"ok\": true}}'\nexit {code}\n")
    program.chmod(0o755)
    log = type("Log", (), {"step": print})
    with pytest.raises(
        AgentError, match=r"failed verification .*: the output of the verification exceeds 1,048,576 bytes; do not use"
    ):
        verify(Installation(str(tmp_path)), {"release": release, "config": "", "unit": ""}, log)
    assert not (tmp_path / "releases" / release / "release.json").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a//b", "a\\b", "."])
def test_file_outside_the_bundle_is_refused(name):
    with pytest.raises(AgentError, match="leaves the bundle's folder"):
        safe_name(name)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('output = "none"\nsources = ["auto"]', True),
        ("sources = ['auto'] # the first camera", True),
        ('sources = [\n  "rtsp://door/1", # the door\n  "auto",\n]', True),
        ('sources = ["0", "auto"]', True),
        ('# sources = ["auto"]\nsources = ["0"]', False),
        ('sources = [\n  # "auto",\n  "0",\n]\n[mqtt]\nclient = "auto"', False),
        ('sources = ["0"] # or "auto"', False),
        ("", False),
    ],
)
def test_host_and_device_agree_whether_a_configuration_uses_the_first_camera(config, expected):
    assert uses_first_camera(config) == service_config.uses_first_camera(config) == expected
