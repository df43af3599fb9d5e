"""Files of a bundle besides the model: edited text files, added files, and the wheel of edgerec."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgerec import Bundle, CameraConfig, Classifier, import_tflite, verify
from edgerec.contract.target import Target
from edgerec.errors import BundleError
from edgerec.export.install_and_service_files import install_files
from edgerec.utils.atomic import sha256


@pytest.fixture
def copy(bundle, tmp_path) -> Path:
    shutil.copytree(bundle, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def imported(bundle, tmp_path_factory):
    """Return a function that imports the bundle's model for a target, and returns the new bundle."""

    def call(target: str) -> Bundle:
        out = tmp_path_factory.mktemp("imported") / f"{target}.zip"
        import_tflite(bundle / "model.tflite", out, labels=bundle / "labels.txt", target=target)
        return Bundle.open(out)

    return call


def edit(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"# edited\n")


@pytest.mark.parametrize("name", ["README.md", "edgerec.service", "requirements.txt", "install.sh", "Dockerfile"])
def test_edited_text_file_causes_only_a_warning(copy, name):
    edit(copy / name)
    Classifier.open(copy)
    report = verify(copy)
    (warning,) = report.warnings
    assert f"{name} was changed" in warning
    assert report.files == len(Bundle.open(copy).manifest.files) - 1


def test_verify_prints_warnings_and_succeeds(copy, edgerec):
    edit(copy / "README.md")
    (copy / "Dockerfile").unlink()
    (copy / "notes.txt").write_text("mine")
    (copy / "photos").mkdir()
    (copy / "photos" / "a.jpg").write_bytes(b"")
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "bin" / "python").write_text("")
    (copy / "golden" / "more.png").write_bytes(b"")
    result = edgerec("verify", copy)
    assert result.returncode == 0
    names = [
        "Dockerfile is missing",
        "README.md was changed",
        "golden/more.png is not",
        "notes.txt is not",
        "photos/ is",
    ]
    lines = result.stderr.splitlines()
    assert len(lines) == len(names)
    assert all(line.startswith("warning: ") and name in line for name, line in zip(names, lines, strict=True))
    assert len(json.loads(edgerec("verify", copy, "--json").stdout)["warnings"]) == len(names)


@pytest.mark.parametrize("name", ["model.tflite", "labels.txt", "golden/golden.json", "golden/000.png"])
def test_bundle_with_a_changed_runtime_file_is_refused(copy, name):
    edit(copy / name)
    with pytest.raises(BundleError, match="changed or damaged"):
        Bundle.open(copy)


def test_link_instead_of_a_text_file_is_not_followed(copy, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (copy / "README.md").unlink()
    (copy / "README.md").symlink_to(tmp_path / "secret")
    opened = Bundle.open(copy)
    assert "README.md" not in opened.files
    assert "outside the bundle" in opened.warnings[0]


@pytest.mark.parametrize("name", ["README.md", "model.tflite"])
def test_link_to_itself_is_reported_without_traceback(copy, edgerec, name):
    (copy / name).unlink()
    (copy / name).symlink_to(name)
    result = edgerec("verify", copy)
    assert result.returncode == (1 if name == "model.tflite" else 0)
    (line,) = result.stderr.splitlines()
    assert f"{name} is missing" in line


def test_bundle_that_exceeds_the_total_size_limit_is_refused(copy, monkeypatch):
    monkeypatch.setattr("edgerec.contract.bundle_size.MAX_BUNDLE_BYTES", 100_000)
    with pytest.raises(BundleError, match="do not use this"):
        Bundle.open(copy)


@pytest.mark.parametrize("prefix", ["", "digits-rpi/"])
def test_files_added_to_a_zip_cause_warnings(bundle, tmp_path, prefix):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for path in bundle.rglob("*"):
            archive.write(path, prefix + path.relative_to(bundle).as_posix())
        archive.writestr("__MACOSX/._model.tflite", b"")
        archive.writestr(f"{prefix}extra.txt", b"")
    assert [warning.split()[1] for warning in verify(tmp_path / "b.zip").warnings] == ["__MACOSX/", "extra.txt"]


@pytest.mark.parametrize("name", ["there", "there.zip"])
def test_copy_keeps_manifest_and_edited_files_but_no_added_files(copy, tmp_path, name):
    edit(copy / "README.md")
    (copy / "notes.txt").write_text("mine")
    Bundle.open(copy).copy(tmp_path / name)
    opened = Bundle.open(tmp_path / name)
    assert opened.files["README.md"] == (copy / "README.md").read_bytes()
    assert opened.manifest == Bundle.open(copy).manifest
    assert opened.added() == []


# The wheel.


def wheel_of(bundle: Bundle) -> bytes:
    (name,) = [name for name in bundle.files if name.startswith("wheels/")]
    assert re.fullmatch(r"wheels/edgerec-[0-9.]+-py3-none-any\.whl", name)
    assert bundle.manifest.files[name] == sha256(bundle.files[name])
    return bundle.files[name]


def test_bundles_for_all_targets_that_install_edgerec_contain_the_same_wheel(bundle, imported):
    wheel = wheel_of(Bundle.open(bundle))
    for target in ("desktop", "coral-usb", "rpi-32bit"):
        opened = imported(target)
        assert wheel_of(opened) == wheel
        assert "--find-links wheels" in opened.files["README.md"].decode()
    assert not [name for name in imported("web").files if name.startswith("wheels/")]


@pytest.fixture(scope="module")
def installed(bundle, tmp_path_factory):
    """Install edgerec from the bundle's wheels without an index, and return a function that runs Python with it."""
    folder = tmp_path_factory.mktemp("device")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--find-links", "wheels"]
    subprocess.run([*command, "--target", folder / "site", "edgerec[headless,web]"], check=True, cwd=bundle)

    def call(*arguments) -> str:
        environment = os.environ | {"PYTHONPATH": str(folder / "site")}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=folder, env=environment, timeout=100
        ).stdout

    call.site = folder / "site"
    return call


def test_edgerec_installed_from_the_wheel_verifies_the_bundle(installed, bundle):
    assert Path(installed("-c", "import edgerec; print(edgerec.__file__)").strip()).is_relative_to(installed.site)
    assert json.loads(installed("-m", "edgerec", "verify", bundle, "--json"))["exact"]
    assert (installed.site / "edgerec" / "_shipped" / "targets" / "service" / "install.sh").is_file()
    (info,) = installed.site.glob("edgerec-*.dist-info")
    assert {"METADATA", "WHEEL", "RECORD", "entry_points.txt"} <= {path.name for path in info.iterdir()}


def test_installed_edgerec_builds_the_same_wheel_without_a_source_tree(installed, bundle):
    code = (
        "import hashlib; from edgerec.export.wheel import edgerec_wheel as w; print(hashlib.sha256(w()[1]).hexdigest())"
    )
    assert installed("-c", code).strip() == sha256(wheel_of(Bundle.open(bundle)))


# The service.


def test_service_starts_the_web_page_and_readme_describes_it(bundle):
    opened = Bundle.open(bundle)
    unit, readme = (opened.files[name].decode() for name in ("edgerec.service", "README.md"))
    assert " camera /opt/edgerec/bundle --config /etc/edgerec/camera.toml " in unit
    assert "edgerec[headless,web,mqtt,prometheus,gpio]==" in opened.files["requirements.txt"].decode()
    assert "edgerec deploy BUNDLE USER@DEVICE" in readme
    section = readme.partition("## Where to find the predictions")[2].partition("\n## ")[0]
    for text in ("ssh -L 8000:127.0.0.1:8000", "token", "[csv]", "[mqtt]", "/etc/edgerec/camera.toml", "secrets.env"):
        assert text in section


@pytest.mark.skipif(sys.platform != "linux", reason="install.sh is for Linux")
def test_install_writes_configuration_and_a_token_that_only_root_reads(tmp_path, invoke):
    """Run install.sh with a stand-in for Python, and with system paths replaced by a temporary folder."""
    tools, folder, units = tmp_path / "tools", tmp_path / "bundle", tmp_path / "units"
    for path in (tools, folder, units):
        path.mkdir()
    script = install_files(Target.load("rpi"))["install.sh"].decode()
    for old, new in {
        "/etc/systemd/system": units,
        "CONFIG_DIR=/etc/edgerec": f"CONFIG_DIR={tmp_path}/etc",
        "/run/systemd/system": tmp_path / "none",
        "ARCH=aarch64": "ARCH=''",
        "PYTHONS='3.11 3.13'": "PYTHONS=3.99",
        "PACKAGES='python3 python3-venv'": "PACKAGES=''",
    }.items():
        assert old in script
        script = script.replace(old, str(new))
    (folder / "install.sh").write_text(script)
    (folder / "edgerec.service").write_text("[Service]\n")
    (folder / "requirements.txt").write_text("edgerec\n")
    for name, text in {
        "id": "echo 0",
        "python3": 'case $* in *version_info*) echo 3.99;; *venv*) for f; do :; done; mkdir -p "$f/bin";'
        ' cp "$0" "$f/bin/python"; ln -sf /bin/true "$f/bin/edgerec";; esac',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}"}
    command = ["sh", folder / "install.sh", "--prefix", tmp_path / "prefix", "--service", "--yes"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    config, secrets = tmp_path / "etc" / "camera.toml", tmp_path / "etc" / "secrets.env"
    assert invoke("camera", "b", "--config", config, "--write-config", tmp_path / "all.toml").returncode == 0
    values = CameraConfig.from_file(tmp_path / "all.toml")
    assert (values.sources, values.output, values.web.address) == (("auto",), "text", "127.0.0.1:8000")
    assert config.stat().st_mode & 0o777 == 0o644  # The service does not run as root.
    assert secrets.stat().st_mode & 0o777 == 0o600
    token = re.search(r"^EDGEREC_WEB_TOKEN=([\w-]{24})$", secrets.read_text(), re.MULTILINE)[1]
    assert token not in config.read_text()
    assert f"http://127.0.0.1:8000/?token={token}" in result.stdout
    # A repeated installation keeps both files, and --undo removes only files that were not modified.
    config.write_text("loop = true\n")
    secrets.chmod(0o644)
    assert subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False).returncode == 0
    assert config.read_text() == "loop = true\n"
    assert token in secrets.read_text()
    assert secrets.stat().st_mode & 0o777 == 0o600
    command[-2:] = ["--undo", "--yes"]
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == 0
    assert list(config.parent.iterdir()) == [config]
    config.unlink()
    command[-2:] = ["--service", "--yes"]
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == 0
    command[-2:] = ["--undo", "--yes"]
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == 0
    assert not config.parent.exists()
