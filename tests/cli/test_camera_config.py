"""Every option of `edgerec camera` has an equivalent key in the file of --config."""

from __future__ import annotations

import json
import os

import pytest
import typer

from edgerec import CameraConfig
from edgerec.cli.app import app
from edgerec.errors import ConfigError
from tests.conftest import error_line

# For each option: arguments, and the file with the same effect.
CASES = {
    "--allowed-signers": (["--allowed-signers", "signers"], 'allowed_signers = "signers"'),
    "--revoked-keys": (
        ["--allowed-signers", "signers", "--revoked-keys", "revoked"],
        'allowed_signers = "signers"\nrevoked_keys = "revoked"',
    ),
    "--source": (["--source", "env:A", "-s", "1"], 'sources = ["env:A", "1"]'),
    "--headless": (["--headless"], 'output = "text"'),
    "--json": (["--headless", "--json"], 'output = "json"'),
    "--web": (["--web", "0.0.0.0:80"], '[web]\naddress = "0.0.0.0:80"'),
    "--csv": (["--csv", "t.csv"], '[csv]\npath = "t.csv"'),
    "--max-frames": (["--max-frames", "7"], "max_frames = 7"),
    "--overwrite": (
        ["--csv", "t.csv", "--video", "t.avi", "--overwrite"],
        '[csv]\npath = "t.csv"\nexisting = "overwrite"\n[video]\npath = "t.avi"\noverwrite = true',
    ),
    "--size": (["--size", "1280x720"], "capture = { width = 1280, height = 720 }"),
    "--rate": (["--rate", "12.5"], "[capture]\nfps = 12.5"),
    "--format": (["--format", "MJPG"], '[capture]\nfourcc = "MJPG"'),
    "--loop": (["--loop"], "loop = true"),
    "--reduced-decoding": (["--reduced-decoding"], "reduced_decoding = true"),
    "--give-up-after": (["--give-up-after", "0"], "[timeouts]\ngive_up_s = 0"),
    "--roi": (["--roi", "0.25,0,0.5,1"], "[frames]\nroi = [0.25, 0, 0.5, 1]"),
    "--rotate": (["--rotate", "90"], "[frames]\nrotate = 90"),
    "--mirror": (["--mirror"], "[frames]\nmirror = true"),
    "--every": (["--every", "3"], "[frames]\nevery = 3"),
    "--max-fps": (["--max-fps", "4"], "[frames]\nmax_fps = 4"),
    "--max-age": (["--max-age", "0.5"], "[frames]\nmax_age_s = 0.5"),
    "--motion": (["--motion", "0.01"], "[frames]\nmotion = 0.01"),
    "--threshold": (["--threshold", "0.7"], "threshold = 0.7"),
    "--decision": (
        ["--decision", "smoothing=vote", "--decision", "memory=9", "--decision", 'thresholds={"a b" = 0.5}'],
        '[decision]\nsmoothing = "vote"\nmemory = 9\n[decision.thresholds]\n"a b" = 0.5',
    ),
    "--threads": (["--threads", "2"], "threads = 2"),
    "--delegate": (["--delegate", "none"], 'delegate = "none"'),
    "--delegate-option": (
        ["--delegate-option", "device=usb:1", "--delegate-option", "a.b=1"],
        '[delegate_options]\ndevice = "usb:1"\n"a.b" = "1"',
    ),
    "--fallback": (["--fallback"], "fallback = true"),
    "--status-file": (["--status-file", "s.json"], 'status_file = "s.json"'),
    "--csv-append": (["--csv", "t.csv", "--csv-append"], '[csv]\npath = "t.csv"\nexisting = "append"'),
    "--video": (["--video", "t.avi"], '[video]\npath = "t.avi"'),
    "--save": (["--save", "all", "--save-dir", "x"], '[images]\nrule = "all"\nfolder = "x"'),
    "--save-dir": (["--save", "changes", "--save-dir", "y"], '[images]\nrule = "changes"\nfolder = "y"'),
    "--save-max": (
        ["--save", "all", "--save-dir", "x", "--save-max", "2GiB"],
        '[images]\nrule = "all"\nfolder = "x"\nmax_bytes = "2GiB"',
    ),
    "--save-below": (
        ["--save", "all", "--save-dir", "x", "--save-below", "0.5"],
        '[images]\nrule = "all"\nfolder = "x"\nbelow = 0.5',
    ),
    "--save-every": (
        ["--save", "all", "--save-dir", "x", "--save-every", "60"],
        '[images]\nrule = "all"\nfolder = "x"\nmin_interval_s = 60',
    ),
    "--mqtt": (["--mqtt", "mqtt://user@host/p"], '[mqtt]\nurl = "mqtt://user@host/p"'),
    "--mqtt-results": (["--mqtt", "env:A", "--mqtt-results", "2"], '[mqtt]\nurl = "env:A"\nresults_per_s = 2'),
    "--mqtt-discovery": (["--mqtt", "env:A", "--mqtt-discovery", ""], '[mqtt]\nurl = "env:A"\ndiscovery_prefix = ""'),
    "--queue-dir": (["--mqtt", "env:A", "--queue-dir", "q"], '[mqtt]\nurl = "env:A"\nqueue_dir = "q"'),
    "--webhook": (["--webhook", "@hook.txt"], '[webhook]\nurl = "@hook.txt"'),
    "--metrics": (["--metrics", "9000"], '[metrics]\naddress = "9000"'),
    "--web-token": (["--web", "--web-token", "@token"], '[web]\ntoken = "@token"'),
    "--web-save": (["--web", "--web-save", "x"], '[web]\nsave_dir = "x"'),
    "--web-save-max": (["--web", "--web-save-max", "1500000"], "[web]\nsave_max_bytes = 1500000"),
}
# Options that select the file, so that they cannot be in the file.
WITHOUT_KEY = {"--config", "--write-config", "--help"}


@pytest.fixture
def configuration(invoke, tmp_path, monkeypatch):
    """Return a function that runs `edgerec camera`, and returns the configuration that the camera would start with."""
    configurations = []

    class Report:
        exit_code = 0

    def run_camera(config):
        configurations.append(config)
        return Report

    monkeypatch.setattr("edgerec.camera.run.run_camera", run_camera)
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        result = invoke("camera", *arguments)
        assert result.returncode == 0, result.stderr
        return configurations.pop()

    return call


def test_every_option_has_a_case():
    command = typer.main.get_command(app).get_command(typer.Context(typer.main.get_command(app)), "camera")
    options = {max(parameter.opts, key=len) for parameter in command.params if parameter.param_type_name == "option"}
    assert options - WITHOUT_KEY == set(CASES)


@pytest.mark.parametrize("option", CASES)
def test_option_and_key_of_the_file_have_the_same_effect(configuration, tmp_path, option):
    arguments, text = CASES[option]
    (tmp_path / "camera.toml").write_text(f'bundle = "signs"\n{text}\n')
    from_options = configuration("signs", *arguments)
    assert from_options == configuration("--config", "camera.toml")
    assert from_options == CameraConfig.from_file("camera.toml")
    without = [word for word in arguments if word != option] if len(arguments) == 1 else []
    assert from_options != configuration("signs", *without)


@pytest.mark.parametrize("option", CASES)
def test_written_configuration_is_read_back_unchanged(configuration, invoke, tmp_path, option):
    arguments, _ = CASES[option]
    result = invoke("camera", "signs", *arguments, "--write-config", "camera.toml")
    assert (result.returncode, result.stdout) == (0, "camera.toml\n")
    assert configuration("--config", "camera.toml") == configuration("signs", *arguments)
    # The option --overwrite of the first case also replaces the file.
    second = invoke("camera", "--config", "camera.toml", "--write-config", "second.toml")
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "second.toml").read_text() == (tmp_path / "camera.toml").read_text()


@pytest.mark.parametrize("option", CASES)
def test_options_override_single_values_of_the_file(configuration, tmp_path, option):
    """With a file that sets all keys, an option changes only its own value."""
    arguments, _ = CASES[option]
    (tmp_path / "camera.toml").write_text(
        'bundle = "other"\nmax_frames = 9\n[frames]\nevery = 2\n[timeouts]\nlost_s = 11'
    )
    config = configuration("signs", "--config", "camera.toml", *arguments)
    expected = configuration("signs", *arguments)
    assert str(config.bundle) == "signs"
    assert config.timeouts.lost_s == 11
    assert config.frames.every == (3 if option == "--every" else 2)
    assert config.max_frames == (7 if option == "--max-frames" else 9)
    assert (config.csv, config.mqtt, config.web) == (expected.csv, expected.mqtt, expected.web)


def test_paths_refer_to_the_folder_of_the_file(configuration, invoke, tmp_path):
    folder = tmp_path / "etc"
    folder.mkdir()
    (tmp_path / "clip.avi").touch()
    options = ["--source", "clip.avi", "--source", "@url", "--source", "0", "--delegate", "./lib.so", "--csv", "t.csv"]
    assert invoke("camera", "signs", *options, "--write-config", "etc/camera.toml").returncode == 0
    config = configuration("--config", "etc/camera.toml")
    assert config.sources == (str(tmp_path / "clip.avi"), f"@{tmp_path / 'url'}", "0")
    assert (config.bundle, config.csv.path) == (tmp_path / "signs", tmp_path / "t.csv")
    assert config.delegate == str(tmp_path / "lib.so")
    text = 'bundle = "signs"\nsources = ["clip.avi", "rtsp://host/a", "auto"]\ndelegate = "libedgetpu.so.1"\n'
    (folder / "camera.toml").write_text(f'{text}[web]\ntoken = "@token"\n[images]\nfolder = "/abs"')
    config = configuration("--config", "etc/camera.toml")
    assert config.sources == ("etc/clip.avi", "rtsp://host/a", "auto")
    assert (str(config.bundle), config.delegate, config.web.token) == ("etc/signs", "libedgetpu.so.1", "@etc/token")
    assert str(config.images.folder) == "/abs"


def test_empty_value_disables_a_sink_of_the_file(configuration, tmp_path):
    (tmp_path / "camera.toml").write_text(
        'bundle = "b"\n[mqtt]\nurl = "env:A"\n[web]\n[metrics]\n[webhook]\nurl = "env:B"'
    )
    config = configuration("--config", "camera.toml", "--mqtt", "", "--web", "", "--metrics", "", "--webhook", "")
    assert config == CameraConfig(bundle=config.bundle)


def test_options_of_a_table_in_the_file_need_no_other_option(configuration, tmp_path):
    (tmp_path / "camera.toml").write_text('bundle = "b"\n[images]\nfolder = "x"\n[web]\naddress = "1.2.3.4:5"')
    config = configuration("--config", "camera.toml", "--save-every", "2", "--web-save", "y")
    assert (str(config.images.folder), config.images.min_interval_s) == ("x", 2)
    assert (config.web.address, str(config.web.save_dir)) == ("1.2.3.4:5", "y")


@pytest.mark.parametrize("sink", ["--mqtt", "--webhook", "--source", "--web-token"])
def test_secrets_are_not_written(invoke, tmp_path, monkeypatch, sink):
    monkeypatch.chdir(tmp_path)
    value = {"--mqtt": "mqtt://me:SECRET@h", "--webhook": "http://h/?key=SECRET", "--web-token": "SECRET-token"}
    result = invoke("camera", "b", "--web", sink, value.get(sink, "rtsp://me:SECRET@h/"), "--write-config", "c.toml")
    assert "use env:NAME or @FILE" in error_line(result)
    assert "SECRET" not in result.stderr
    assert not (tmp_path / "c.toml").exists()


def test_write_config_refuses_to_overwrite(edgerec, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text("mine")
    assert "c.toml already exists" in error_line(invoke("camera", "b", "--write-config", "c.toml"))
    assert (tmp_path / "c.toml").read_text() == "mine"
    assert "must end in .toml" in error_line(invoke("camera", "b", "--write-config", "bundle"))
    assert invoke("camera", "b", "--write-config", "c.toml", "--overwrite").returncode == 0
    assert str(CameraConfig.from_file("c.toml").bundle) == "b"


def test_camera_needs_a_bundle(invoke, tmp_path):
    path = tmp_path / "camera.toml"
    path.write_text("loop = true")
    for arguments in ((), ("--config", path)):
        result = invoke("camera", *arguments)
        assert result.returncode == 2
        assert "BUNDLE" in result.stderr


def test_error_names_the_option_or_the_file(invoke, tmp_path):
    path = tmp_path / "camera.toml"
    path.write_text('bundle = "b"\n[frames]\nrotate = 45')
    assert f"{path}: frames.rotate is 45; expected 0, 90, 180 or 270" in error_line(invoke("camera", "--config", path))
    result = invoke("camera", "--config", path, "--rotate", "46")
    assert result.returncode == 2
    assert "--rotate is 46; expected" in result.stderr
    assert "does not exist" in error_line(invoke("camera", "--config", tmp_path / "none.toml"))


def without_times(value):
    """Return a parsed JSON object without times, which differ in each run."""
    if not isinstance(value, dict):
        return value
    return {key: without_times(item) for key, item in value.items() if not key.endswith(("_s", "_ms"))}


def test_results_of_a_run_with_options_and_with_a_file_are_equal(bundle, video, edgerec, tmp_path):
    def results(*arguments):
        process = edgerec("camera", *arguments, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        return [without_times(json.loads(line)) for line in process.stdout.splitlines()]

    options = ["--source", video, "--json", "--max-frames", "9", "--every", "2", "--roi", "20,0,120,120"]
    more = ["--decision", "smoothing=vote", "--threshold", "0.6"]
    with_options = results(bundle, *options, *more)
    assert edgerec("camera", bundle, *options, *more, "--write-config", tmp_path / "c.toml").returncode == 0
    assert results("--config", "c.toml") == with_options
    assert len([each for each in with_options if each["event"] == "result"]) == 9
    assert results("--config", "c.toml", "--roi", "0,0,20,20") != with_options


def test_secret_of_the_file_needs_a_private_file(tmp_path):
    path = tmp_path / "camera.toml"
    path.write_text('bundle = "b"\n[web]\ntoken = "SECRET-token"')
    path.chmod(0o644)
    with pytest.raises(ConfigError) as excinfo:
        CameraConfig.from_file(path)
    if os.name == "posix":
        assert str(excinfo.value).startswith(f"{path} contains a password or token in web.token, but other users")
        assert "SECRET" not in str(excinfo.value)
    path.chmod(0o600)
    assert CameraConfig.from_file(path).web.token == "SECRET-token"
