"""Tests of the camera's configuration: fields are validated when a configuration is created."""

from __future__ import annotations

import dataclasses
import re

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
from edgerec.camera.frame_filters import FrameOptions
from edgerec.camera.reconnection import Timeouts
from edgerec.camera.sources import CaptureFormat
from edgerec.errors import ConfigError, EdgerecError


@pytest.mark.parametrize(
    ("create", "field"),
    [
        (lambda: CameraConfig(bundle="b", sources=[]), "CameraConfig.sources"),
        (lambda: CameraConfig(bundle="b", output="html"), "CameraConfig.output"),
        (lambda: CameraConfig(bundle="b", max_frames=0), "CameraConfig.max_frames"),
        (lambda: CameraConfig(bundle="b", threads=-1), "CameraConfig.threads"),
        (lambda: CameraConfig(bundle="b", threads=257), "CameraConfig.threads"),
        (lambda: CameraConfig(bundle="b", capture=CaptureFormat(width=-1)), "CameraConfig.capture.width"),
        (lambda: CameraConfig(bundle="b", threshold=1.5), "CameraConfig.threshold"),
        (lambda: CaptureFormat(fourcc="MJPEG"), "CaptureFormat.fourcc"),
        (lambda: CsvConfig("a.csv", "replace"), "CsvConfig.existing"),
        (lambda: FrameOptions(every=0), "FrameOptions.every"),
        (lambda: FrameOptions(max_fps=float("nan")), "FrameOptions.max_fps"),
        (lambda: FrameOptions(motion=2), "FrameOptions.motion"),
        (lambda: FrameOptions(roi=(0, 0, 0, 1)), "FrameOptions.roi"),
        (lambda: FrameOptions(rotate=45), "FrameOptions.rotate"),
        (lambda: ImageRecorderConfig("x", "often"), "ImageRecorderConfig.rule"),
        (lambda: ImageRecorderConfig("x", max_bytes=0), "ImageRecorderConfig.max_bytes"),
        (lambda: ImageRecorderConfig("x", margin=-0.1), "ImageRecorderConfig.margin"),
        (lambda: MetricsConfig("http://host"), "MetricsConfig.address"),
        (lambda: MqttConfig("mqtt://host", results_per_s=-1), "MqttConfig.results_per_s"),
        (lambda: Timeouts(open_s=0), "Timeouts.open_s"),
        (lambda: Timeouts(give_up_s=-1), "Timeouts.give_up_s"),
        (lambda: Timeouts(stale_s=20), "Timeouts.stale_s"),
        (lambda: WebPageConfig("host:99999"), "WebPageConfig.address"),
        (lambda: WebPageConfig(save_max_bytes=-1), "WebPageConfig.save_max_bytes"),
    ],
)
def test_invalid_value_is_refused_and_its_field_is_named(create, field):
    with pytest.raises(ConfigError) as excinfo:
        create()
    assert excinfo.value.field == field
    assert str(excinfo.value).startswith(f"{field} is ")
    assert isinstance(excinfo.value, EdgerecError)
    assert isinstance(excinfo.value, ValueError)


def test_configuration_cannot_be_changed_and_shows_no_secrets():
    config = CameraConfig(
        bundle="b",
        sources="rtsp://me:SECRET@camera/",
        mqtt=MqttConfig("mqtt://me:SECRET@broker/"),
        webhook=WebhookConfig("http://me:SECRET@server/", secret="SECRET"),
        web=WebPageConfig(token="SECRET-token"),
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.bundle = "c"
    assert "SECRET" not in repr(config)


def test_output_paths_contain_every_file_and_folder_that_a_sink_writes():
    config = CameraConfig(
        bundle="b",
        csv=CsvConfig("a.csv"),
        video=VideoConfig("b.mp4"),
        images=ImageRecorderConfig("saved"),
        mqtt=MqttConfig("mqtt://host", queue_dir="queue"),
        web=WebPageConfig(save_dir="labeled"),
    )
    assert config.output_paths == ("a.csv", "b.mp4", "saved", "queue", "labeled")
    assert CameraConfig(bundle="b").output_paths == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rotate", "45"], "--rotate is 45; expected 0, 90, 180 or 270"),
        (["--roi", "1,2,3"], "--roi is '1,2,3'; expected x,y,width,height"),
        (["--format", "MJPEG"], "--format is 'MJPEG'; expected four characters"),
        (["--size", "big"], "--size must have the form WxH, such as 1280x720, got 'big"),
        (["--save", "often", "--save-dir", "x"], "--save is 'often'; expected one of low-confidence"),
        (["--save", "all", "--save-dir", "x", "--save-max", "0"], "--save-max is 0; expected at least 1"),
        (
            ["--save", "all", "--save-dir", "x", "--save-max", "much"],
            "--save-max is 'much'; expected a size such as 500MB, 2GiB or 20G",
        ),
        (["--web", "localhost:abc"], "--web is 'localhost:abc'; expected HOST:PORT, such as 127.0.0.1:8000"),
        (["--metrics", "1:2:3"], "--metrics is '1:2:3'; expected HOST:PORT, such as 127.0.0.1:9464"),
    ],
)
def test_command_names_the_option_of_an_invalid_field(invoke, options, message):
    result = invoke("camera", "no-bundle", "--headless", *options)
    assert result.returncode == 2
    assert message in re.sub(r"\W*\n\W*", " ", result.stderr)
