"""Systems that lack something: a home folder, LiteRT's schema on 32-bit ARM, or the POSIX functions on Windows."""

from __future__ import annotations

import json
import os
import select
import stat
import struct
import sys

import pytest

from edgerec.camera.sources import find_source
from edgerec.contract.target import Target
from edgerec.errors import MissingExtraError, NoHomeError, TargetError
from edgerec.tflite.edgetpu import compile_for_edgetpu, compiler
from edgerec.tflite.schema import tflite_schema
from edgerec.utils.atomic import cache_folder
from tests.conftest import error_line
from tests.servers import MjpegServer

NO_HOME = "import pwd\ndef missing(_): raise KeyError\npwd.getpwuid = missing\n"
# tflite-runtime, which 32-bit ARM has, cannot read the graph of a model.
NO_SCHEMA = "import sys\nsys.modules['ai_edge_litert.schema_py_generated'] = sys.modules['tensorflow'] = None\n"
WINDOWS = (
    "import os, select, sys\ndel os.pread, os.pwrite, os.killpg, select.poll\nsys.modules['resource'] = None\n"
    "sys.modules['grp'] = sys.modules['pwd'] = None\n"
)


@pytest.fixture
def system(tmp_path):
    """Environment in which every Python process first executes ``code``."""

    def make(code: str, *missing: str) -> dict[str, str]:
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(code)
        kept = {name: value for name, value in os.environ.items() if name not in missing}
        return kept | {"PYTHONPATH": str(tmp_path / "site")}

    return make


def test_benchmark_works_without_a_package_that_reads_the_graph(bundle, edgerec, system):
    result = edgerec("benchmark", bundle, "--seconds", "0.1", "--json", env=system(NO_SCHEMA))
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["operators"] == []
    assert "requires LiteRT" in report["operators_error"]
    shown = edgerec("benchmark", bundle, "--seconds", "0.1", env=system(NO_SCHEMA))
    assert "the operators were not measured: reading the graph" in shown.stdout


def test_32_bit_systems_are_not_told_to_install_a_package_without_a_wheel(monkeypatch):
    monkeypatch.delattr("ai_edge_litert.schema_py_generated", raising=False)
    for name in ("ai_edge_litert.schema_py_generated", "tensorflow", "tensorflow.lite.python"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="pip install ai-edge-litert"):
        tflite_schema()
    monkeypatch.setattr(struct, "calcsize", lambda _: 4)
    with pytest.raises(MissingExtraError, match="no package for 32-bit systems") as excinfo:
        tflite_schema()
    assert "pip install" not in str(excinfo.value)


def test_commands_run_without_a_home_folder(bundle, golden_images, edgerec, system):
    environment = system(NO_HOME, "HOME", "XDG_CACHE_HOME", "EDGEREC_CACHE")
    for command in (
        ["camera", bundle, "--source", "synthetic:64x48@30", "--headless", "--max-frames", 2],
        ["predict", bundle, golden_images[0]],
        ["benchmark", bundle, "--seconds", "0.1", "--no-operators"],
        ["verify", bundle],
    ):
        result = edgerec(*command, env=environment)
        assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr
    assert "Traceback" not in edgerec("doctor", env=environment).stderr
    mqtt = edgerec(
        "camera", bundle, "--source", "synthetic:64x48", "--headless", "--mqtt", "mqtt://127.0.0.1:9/x", env=environment
    )
    assert "set EDGEREC_CACHE" in error_line(mqtt)


def test_the_cache_needs_a_home_folder(monkeypatch):
    for name in ("EDGEREC_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(NoHomeError, match="EDGEREC_CACHE"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder().as_posix() == "/somewhere/edgerec"


def test_commands_run_without_posix_functions(bundle, tmp_path, edgerec, system):
    environment = system(WINDOWS)
    command = ["camera", bundle, "--source", "synthetic:64x48@0", "--headless", "--max-frames", 3]
    for _ in range(2):
        result = edgerec(*command, "--csv", tmp_path / "table.csv", "--csv-append", env=environment)
        assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr
    rows = (tmp_path / "table.csv").read_bytes().split(b"\n")
    assert len(rows) == 1 + 6 + 1
    assert rows[-1] == b""
    report = edgerec("benchmark", bundle, "--seconds", "0.1", "--no-operators", "--json", env=environment)
    assert report.returncode == 0, report.stderr
    assert json.loads(report.stdout)["peak_memory_bytes"] == 0
    shown = edgerec("benchmark", bundle, "--seconds", "0.1", "--no-operators", env=environment)
    assert "\nmemory" not in shown.stdout


def test_http_cameras_work_without_poll(monkeypatch):
    monkeypatch.delattr(select, "poll", raising=False)
    with MjpegServer() as server:
        source = find_source(server.url).open()
        images = source.images()
        assert all(next(images)[0].ndim == 3 for _ in range(3))
        source.close()


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for the compiler is a shell script")
def test_a_hanging_compiler_is_stopped_without_process_groups(tmp_path, monkeypatch, real_data):
    program = tmp_path / "edgetpu_compiler"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(compiler, "COMPILE_TIMEOUT_S", 0.5)
    monkeypatch.delattr(os, "killpg")
    model = (real_data / "edgetpu" / "mobilenet_v1_0.25_128_quant.tflite").read_bytes()
    with pytest.raises(TargetError, match="timed out after"):
        compile_for_edgetpu(model, Target.load("coral-usb"))
