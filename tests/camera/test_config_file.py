"""Tests of the configuration file of the camera: keys and values are checked, and the file is complete."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from edgerec import CameraConfig
from edgerec.camera.config import (
    CsvConfig,
    ImageRecorderConfig,
    MetricsConfig,
    MqttConfig,
    VideoConfig,
    WebhookConfig,
    WebPageConfig,
)
from edgerec.camera.config_reader import build, read_values
from edgerec.camera.config_writer import to_toml
from edgerec.camera.frame_filters import FrameOptions
from edgerec.camera.reconnection import Timeouts
from edgerec.contract.decision import DecisionSpec
from edgerec.errors import ConfigError

COMPLETE = CameraConfig(
    bundle=Path("b"),
    sources=["0", "rtsp://host/path", "synthetic:640x480@30", 'a "quoted" name.avi'],
    max_frames=5,
    threads=2,
    delegate="gpu",
    threshold=0.25,
    output="json",
    timeouts=Timeouts(give_up_s=1e16),
    frames=FrameOptions(roi=(0.125, 0.0, 0.5, 1.0), rotate=180),
    decision={"smoothing": "vote", "memory": 9, "thresholds": {"café 😀\x7f\n": 0.5}},
    delegate_options={"device": "usb:1", "a.b": "1"},
    csv=CsvConfig(Path("a.csv"), "append"),
    video=VideoConfig(Path("b.avi"), True),
    images=ImageRecorderConfig(Path("c"), "all", max_bytes=3_000_000_000, reserve_bytes=123),
    mqtt=MqttConfig("env:MQTT", queue_dir=Path("q")),
    webhook=WebhookConfig("@hook", "env:SECRET", True),
    metrics=MetricsConfig("9000"),
    web=WebPageConfig(token="env:TOKEN", save_dir=Path("d"), save_max_bytes=0),
)


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    """Return a function that writes camera.toml into the working directory."""
    monkeypatch.chdir(tmp_path)
    path = Path("camera.toml")

    def write(content: str | bytes) -> Path:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize("config", [COMPLETE, CameraConfig(bundle=Path("b"))], ids=["complete", "defaults"])
def test_written_configuration_is_read_back_unchanged(config_file, config):
    assert CameraConfig.from_file(config_file(config.to_toml())) == config


def test_file_contains_and_explains_every_key(config_file):
    text = CameraConfig(bundle="b").to_toml()
    lines = [re.sub("^(# )+", "", line) for line in text.splitlines()]
    for kind in (CameraConfig, WebPageConfig, MqttConfig, ImageRecorderConfig, FrameOptions, Timeouts, DecisionSpec):
        for item in fields(kind):
            key = item.metadata.get("key", item.name)
            (number, *_) = [n for n, line in enumerate(lines) if re.match(rf"{key} = |\[+{key}\]", line)]
            assert lines[number - 1], key
            assert not re.match(r"\w+ = |\[", lines[number - 1]), key
    assert not re.search(r":\w+:`|``|~edgerec|DecisionSpec", text)
    assert max(map(len, text.splitlines())) <= 120
    without_comments = tomllib.loads(text)
    assert "mqtt" not in without_comments
    assert without_comments["frames"]["max_fps"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "bundle is missing; expected a path"),
        ("bundle = 3", "bundle is 3; expected a path"),
        ('bundle = ""', "bundle is ''; expected a path"),
        (
            "bundel = 'b'",
            "bundel is unknown; did you mean 'bundle'? (choices: action, allowed_signers, bundle, capture, ",
        ),
        ("max_fps = 2", "max_fps is unknown; did you mean 'frames.max_fps'?"),
        ("rotate = 90", "rotate is unknown; did you mean 'frames.rotate' or 'region.rotate'?"),
        ("[web]\nsave_max = 1", "web.save_max is unknown; did you mean 'save_max_bytes'?"),
        ("[web]\nfolder = 'x'", "web.folder is unknown; did you mean 'images.folder'?"),
        ("web = true", "web is True; expected a table [web]"),
        ("[[web]]", "web is a list; expected a table [web]"),
        ("sources = [1]", "sources[0] is 1; expected a string"),
        ("sources = {}", "sources is a table; expected a string or a list of strings"),
        ("sources = []", "sources is empty; expected at least one source"),
        ("loop = 1", "loop is 1; expected true or false"),
        ("threads = true", "threads is True; expected an integer"),
        ("threads = 1.5", "threads is 1.5; expected an integer"),
        ("threads = 99999999999999999999", "threads is 99999999999999999999; expected an integer"),
        ("threads = 300", "threads is 300; expected 0 to 256"),
        ("threshold = '0.5'", "threshold is '0.5'; expected a number"),
        ("threshold = nan", "threshold is nan; expected a number"),
        ("threshold = 2", "threshold is 2.0; expected 0 to 1"),
        ("output = 'html'", "output is 'html'; expected one of window, text, json, none"),
        ("output = ['text']", "output is a list; expected one of window, text, json, none"),
        ("[capture]\nwidth = -1", "capture.width is -1; expected 0 to 99999"),
        ("[capture]\nfourcc = 'MJPEG'", "capture.fourcc is 'MJPEG'; expected four characters"),
        ("[timeouts]\nlost_s = 1", "timeouts.stale_s is 2, but must not exceed lost_s (1)"),
        ("[frames]\nroi = [1, 2, 3]", "frames.roi has 3 elements; expected a list of 4 numbers"),
        ("[frames]\nroi = [1, 2, 3, 'x']", "frames.roi[3] is 'x'; expected a number"),
        ("[frames]\nroi = [1, 2, 0, 3]", "frames.roi is (1.0, 2.0, 0.0, 3.0); expected x,y,width,height"),
        ("[decision]\nmemory = 9.0", "decision.memory is 9.0; expected an integer"),
        ("[decision]\nmemory = 0", "decision.memory is 0; expected an integer from 1 to 10000"),
        ("[decision]\nsmooth = 0", "decision.smooth is unknown; did you mean 'smoothing'?"),
        ("[decision]\nthresholds = {a = 2}", "decision.thresholds['a'] is 2.0; expected 0 to 1"),
        ("[delegate_options]\nfp16 = true", "delegate_options.fp16 is True; expected a string"),
        ("[csv]", "csv.path is missing; expected a path"),
        ("[csv]\npath = 'a'\nexisting = 'replace'", "csv.existing is 'replace'; expected one of refuse, overwrite"),
        ("[images]\nfolder = 'x'\nmax_bytes = '5 apples'", "images.max_bytes is '5 apples'; expected a size such as"),
        ("[images]\nfolder = 'x'\nmax_bytes = 0", "images.max_bytes is 0; expected at least 1"),
        ("[mqtt]\nresults_per_s = 1", "mqtt.url is missing; expected a string"),
        ("[metrics]\naddress = 9464", "metrics.address is 9464; expected a string"),
        ("[web]\naddress = 'a:b'", "web.address is 'a:b'; expected HOST:PORT"),
        ("[web]\ntoken = 12345678", "web.token has the wrong type; expected a string"),
        ("revoked_keys = 'x'", "revoked_keys has no effect without allowed_signers"),
        ("max_frames = 2026-01-01", "max_frames is datetime.date(2026, 1, 1); expected an integer"),
    ],
)
def test_error_names_the_file_the_key_and_the_choices(config_file, content, message):
    content = content if "bundle" in message or "bundel" in message else f"bundle = 'b'\n{content}"
    with pytest.raises(ConfigError) as excinfo:
        CameraConfig.from_file(config_file(content))
    assert str(excinfo.value).startswith(f"camera.toml: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("bundle = ", "is not TOML: "),
        ("a = 1\na = 2", "is not TOML: "),
        (b"\xff", "is not TOML: "),
        (b"PK\3\4" + bytes(30), "is not TOML: it is a damaged or truncated zip archive"),
        ("a = " + "[" * 100_000, "is not TOML: "),
        ("#" * 2_000_000, "is not TOML: the text is longer than 1,048,576 bytes"),
    ],
    ids=["syntax", "twice", "encoding", "zip", "depth", "size"],
)
def test_unreadable_file_is_refused(config_file, content, message):
    with pytest.raises(ConfigError, match=re.escape(f"camera.toml {message}")):
        CameraConfig.from_file(config_file(content))


def test_folder_and_missing_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        CameraConfig.from_file(tmp_path)
    with pytest.raises(ConfigError, match="does not exist: write a configuration with edgerec camera"):
        CameraConfig.from_file(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        CameraConfig.from_file("a\0b")


def test_named_pipe_is_refused_without_waiting(tmp_path):
    os = pytest.importorskip("posix")
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(ConfigError, match="is not a file"):
        CameraConfig.from_file(tmp_path / "pipe.toml")


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"sources": ["0", "rtsp://me:SECRET@host/"]}, "sources"),
        ({"sources": "http://host/?token=SECRET"}, "sources"),
        ({"sources": "me:SECRET@host/path"}, "sources"),
        ({"mqtt": MqttConfig("mqtts://me:SECRET@host")}, "mqtt.url"),
        ({"webhook": WebhookConfig("https://me:SECRET@host/")}, "webhook.url"),
        ({"webhook": WebhookConfig("https://host/", "SECRET")}, "webhook.secret"),
        ({"web": WebPageConfig(token="SECRET-token")}, "web.token"),
    ],
)
def test_secrets_are_not_written(config_file, values, key):
    config = CameraConfig(bundle="b", **values)
    with pytest.raises(ConfigError) as excinfo:
        config.to_toml()
    assert str(excinfo.value).startswith(f"{key} contains a password or token, which is not written to a file")
    assert "use env:NAME or @FILE" in str(excinfo.value)
    assert "SECRET" not in str(excinfo.value)


@pytest.mark.parametrize(
    "content",
    [
        'sources = "rtsp://me:SECRET@host/"',
        '[mqtt]\nurl = "mqtt://me:SECRET@host"',
        '[webhook]\nurl = "https://host"\nsecret = "SECRET"',
        '[web]\ntoken = "SECRET-token"',
    ],
)
def test_file_with_secrets_must_be_private(config_file, content):
    pytest.importorskip("posix")
    path = config_file(f'bundle = "b"\n{content}')
    for mode in (0o644, 0o660, 0o604):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=r"other users can access the file \(mode 06..\): run chmod 600"):
            CameraConfig.from_file(path)
    for mode in (0o600, 0o640, 0o400):
        path.chmod(mode)
        assert str(CameraConfig.from_file(path).bundle) == "b"


def test_references_do_not_need_a_private_file(config_file):
    path = config_file('bundle = "b"\nsources = ["env:CAMERA", "rtsp://user@host/"]\n[web]\ntoken = "@token"')
    path.chmod(0o666)
    assert CameraConfig.from_file(path).web.token == "@token"


def test_name_that_is_not_utf8_is_refused_when_writing():
    with pytest.raises(ConfigError, match="not valid UTF-8"):
        CameraConfig(bundle="\udce9").to_toml()


# Lists of tables, and tables within them.


@dataclass(frozen=True)
class Door:
    """A door.

    Attributes:
        name: name of the door.
        box: position of the door.
        command: program to run.
        on: labels.
        frames: options.
        decision: settings.
    """

    name: str
    box: tuple[float, float] | None = None
    command: tuple[str, ...] = ()
    on: str | Sequence[str] = "any"
    frames: FrameOptions = field(default_factory=FrameOptions)
    decision: Mapping[str, Any] = field(default_factory=dict, metadata={"keys": DecisionSpec})
    side: Literal["left", "right"] = "left"

    def __post_init__(self) -> None:
        if not self.name.isalnum():
            raise ConfigError("Door.name", f"is {self.name!r}; expected letters and digits")


@dataclass(frozen=True)
class House:
    """A house. The key of its doors is ``door``."""

    doors: tuple[Door, ...] = field(default=(), metadata={"key": "door"})
    street: str = ""


def test_lists_of_tables_are_read_and_written(config_file):
    doors = (
        Door("front", (1.0, 2.5), ("ring", "a b"), ("open", "closed"), FrameOptions(every=2), {"memory": 3}),
        Door("back", side="right"),
    )
    for house in (House(doors, "Main Street"), House()):
        path = config_file(to_toml(house))
        assert build(House, read_values(House, path)) == house
    values = tomllib.loads(to_toml(House(doors)))
    assert [door["name"] for door in values["door"]] == ["front", "back"]
    assert values["door"][0]["frames"]["every"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("doors = 1", "doors is unknown; did you mean 'door'?"),
        ("[door]\nname = 'a'", "door is a table; write each door as a table [[door]]"),
        ("[[door]]\nname = 'a'\n[[door]]\nnam = 'b'", "door[1].nam is unknown; did you mean 'name'?"),
        ("[[door]]\nname = 'a'\n[[door]]\nname = '-'", "door[1].name is '-'; expected letters and digits"),
        ("[[door]]", "door[0].name is missing; expected a string"),
        ("[[door]]\nname = 'a'\ncommand = 'x y'", "door[0].command is 'x y'; expected a list of strings"),
        ("[[door]]\nname = 'a'\nframes.every = 0", "door[0].frames.every is 0; expected at least 1"),
        ("[[door]]\nname = 'a'\ndecision.votes = 0", "door[0].decision.votes is 0; expected an integer"),
        ("door = [1]", "door[0] is 1; expected a table"),
    ],
)
def test_error_names_the_number_of_the_table(config_file, content, message):
    with pytest.raises(ConfigError) as excinfo:
        build(House, read_values(House, config_file(content)))
    assert str(excinfo.value).removeprefix("camera.toml: ").startswith(message)


def test_every_nested_dataclass_of_the_configuration_has_documented_fields():
    text = CameraConfig(bundle="b").to_toml()
    for item in fields(CameraConfig):
        value = getattr(COMPLETE, item.name)
        if is_dataclass(value):
            documented = re.findall(r"^        (\w+(?:, \w+)*): ", type(value).__doc__, re.MULTILINE)
            assert {name for names in documented for name in names.split(", ")} >= {each.name for each in fields(value)}
            assert f"[{item.name}]" in text


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            "[[action]]\non = 'any'\ncommand = ['true']\nregion = 'nope'",
            "action[0].region is 'nope', but the configuration has no regions: add a table [[region]] with this name",
        ),
        (
            "[[region]]\nname = 'door'\nroi = [0, 0, 9, 9]\n"
            + 2 * "[[action]]\non = 'any'\ncommand = ['true']\n"
            + "region = 'nope'",
            "action[1].region is 'nope'; expected one of door",
        ),
        ("[[action]]\non = 'zebra'\ncommand = ['true']", "action[0].on has an unknown label 'zebra' (choices: 0, 1"),
        (
            "[[action]]\non = 'any'\ncommand = ['true']\nsource = 'front'",
            "action[0].source is not a source of the camera; expected one of synthetic:64x48@30",
        ),
        (
            "[[region]]\nname = 'door'\nroi = [0, 0, 9, 9]\nsource = 'front'",
            "region[0].source is not a source of the camera; expected one of synthetic:64x48@30",
        ),
        ("[[action]]\non = 'any'", "action[0].command and gpio are both missing: set one of them"),
        (2 * "[[region]]\nname = 'a'\nroi = [0, 0, 9, 9]\n", "region has two regions with the name 'a'"),
        ("[[region]]\nname = 'a'\nroi = [0, 0, 1]", "region[0].roi has 3 elements; expected a list of 4 numbers"),
    ],
)
def test_errors_of_regions_and_actions_name_the_file_and_the_key(bundle, config_file, edgerec, tables, message):
    settings = "sources = ['synthetic:64x48@30']\noutput = 'none'\nmax_frames = 1"
    path = config_file(f"bundle = {json.dumps(str(bundle))}\n{settings}\n{tables}")
    process = edgerec("camera", "--config", path)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(f"error: {path}: {message}")
