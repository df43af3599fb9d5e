"""A bundle is data: neither its manifest nor a file next to it chooses code that is executed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess

import pytest

from edgerec import Bundle, Classifier, ensemble, verify
from edgerec.errors import BundleError, DelegateError, EdgerecError
from edgerec.runtime.delegate import try_delegate

LIBRARY = "libedgetpu.so.1"


@pytest.fixture
def copy(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Build a shared library that creates the file ``executed`` in the current folder when it is loaded."""
    folder = tmp_path_factory.mktemp("library")
    code = '#include <stdio.h>\n__attribute__((constructor)) static void go(void) { fclose(fopen("executed", "w")); }\n'
    (folder / "a.c").write_text(code)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "a.so", folder / "a.c"], check=True)
    return folder / "a.so"


def change(bundle, **values):
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | values))


def add(bundle, name, content):
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    (bundle / name).write_bytes(content)
    change(bundle, files=files | {name: hashlib.sha256(content).hexdigest()})


@pytest.mark.parametrize("delegate", [f"./{LIBRARY}", f"copy/{LIBRARY}", "ABSOLUTE", "libother.so", f".\\{LIBRARY}"])
def test_manifest_cannot_name_a_library(copy, library, tmp_path, monkeypatch, delegate):
    monkeypatch.chdir(tmp_path)
    add(copy, LIBRARY, library.read_bytes())
    shutil.copy(copy / LIBRARY, tmp_path / LIBRARY)
    shutil.copy(copy / LIBRARY, tmp_path / "libother.so")
    change(copy, delegate=str(copy / LIBRARY) if delegate == "ABSOLUTE" else delegate)
    for open_bundle in (Bundle.open, verify, Classifier.open):
        with pytest.raises(BundleError, match=r"the delegate .* is not loaded"):
            open_bundle(copy)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("search", ["", ":", ".", "/nowhere:", "HERE"])
def test_delegate_name_is_not_looked_up_in_the_current_folder(copy, library, monkeypatch, search):
    monkeypatch.chdir(copy)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(copy) if search == "HERE" else search)
    add(copy, LIBRARY, library.read_bytes())
    change(copy, delegate=LIBRARY)
    with pytest.raises(DelegateError, match=LIBRARY):
        Classifier.open(copy)
    assert not (copy / "executed").exists()


def test_library_from_the_command_line_is_loaded(copy, library, monkeypatch):
    monkeypatch.chdir(copy)
    with pytest.raises(DelegateError):  # it is a library, but not a delegate
        Classifier.open(copy, delegate=str(library))
    assert (copy / "executed").exists()


@pytest.mark.parametrize("module", ["json", "numpy", "edgerec", "ctypes"])
def test_python_files_in_a_bundle_are_not_imported(copy, monkeypatch, module):
    monkeypatch.chdir(copy)
    (copy / f"{module}.py").write_text("open('executed', 'w').close()\n")
    assert "cannot open shared object file" in try_delegate("libnothing.so.1")
    assert not (copy / "executed").exists()


def test_manifest_cannot_name_a_target_file(copy, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compiler = copy / "compiler.sh"
    compiler.write_text("#!/bin/sh\ntouch executed\n")
    compiler.chmod(0o755)
    text = f'like = "desktop"\ncompiler = "{compiler}"\ndelegate = "{LIBRARY}"\n'
    for name in ("t.toml", "own.toml"):
        (copy / name).write_text(text)
        (tmp_path / name).write_text(text)
    for target in ("copy/t.toml", str(copy / "t.toml"), "t.toml", "own", "copy/t"):
        change(copy, target=target)
        with pytest.raises(EdgerecError, match="target"):
            ensemble([copy, run.path], tmp_path / "both")
        assert not (tmp_path / "executed").exists()
        assert not (tmp_path / "both").exists()
