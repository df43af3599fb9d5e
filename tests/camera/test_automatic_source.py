"""Tests of `--source auto`, of the capture time of camera modules, and of the camera checks of `edgerec doctor`."""

from __future__ import annotations

import sys
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from edgerec.camera import Frame, SourceSupervisor
from edgerec.camera.sources import CaptureFormat, find_source
from edgerec.camera.sources.camera_selection import open_automatic
from edgerec.errors import SourceError
from edgerec.runtime.video_devices import list_video_devices

USB = {"Model": "HD Webcam", "Id": "/base/soc/pcie@1f/usb@0/xhci/usb1/1-1:1.0-046d:0825"}
MODULE = {"Model": "imx708", "Id": "/base/soc/i2c0mux/i2c@1/imx708@1a"}


def picamera2(monkeypatch, cameras, *, age_s: float = 0.2, clock=time.CLOCK_MONOTONIC) -> list:
    """Replace picamera2 by a fake module whose images are ``age_s`` old; return the list of opened indices."""
    opened = []

    class Request:
        def make_array(self, stream):
            return np.full((48, 64, 3), 7, np.uint8)

        def get_metadata(self):
            return {"SensorTimestamp": int((time.clock_gettime(clock) - age_s) * 1e9)}

        def release(self):
            pass

    class Picamera2:
        def __init__(self, number):
            opened.append(number)

        @staticmethod
        def global_camera_info():
            return cameras

        def create_video_configuration(self, **options):
            return options

        def configure(self, configuration):
            pass

        def camera_configuration(self):
            return {"main": {"size": (64, 48)}}

        def capture_request(self):
            time.sleep(0.005)
            return Request()

        def capture_array(self, stream):
            time.sleep(0.005)
            return Request().make_array(stream)

        start = stop = close = lambda self: None

    module = ModuleType("picamera2")
    module.Picamera2 = Picamera2
    monkeypatch.setitem(sys.modules, "picamera2", module)
    return opened


def machine(folder, *devices):
    """Create fake folders /sys and /dev with video devices (number, name, index)."""
    (folder / "dev").mkdir(exist_ok=True)
    for number, name, index in devices:
        entry = folder / "sys" / "class" / "video4linux" / f"video{number}"
        entry.mkdir(parents=True)
        (entry / "name").write_text(f"{name}\n")
        (entry / "index").write_text(f"{index}\n")
        (folder / "dev" / f"video{number}").touch()
    return folder


@pytest.fixture
def opened_by_opencv(monkeypatch):
    from edgerec.camera.sources.opencv_capture import OpenCVSource

    opened = []
    monkeypatch.setattr(OpenCVSource, "camera", lambda device, requested: opened.append(device) or SimpleNamespace())
    return opened


def test_auto_prefers_the_camera_module(tmp_path, monkeypatch):
    opened = picamera2(monkeypatch, [USB, MODULE])
    root = machine(tmp_path, (0, "HD Webcam C270", 0), (4, "unicam-image", 0))
    assert open_automatic(CaptureFormat(), root).name == "picamera2:1"
    assert opened == [1]
    # The number is the index that find_source("picamera2:1") uses.
    assert find_source("auto").open().name == "picamera2:1"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists cameras")
def test_auto_uses_the_first_usb_camera(tmp_path, monkeypatch, opened_by_opencv):
    devices = (
        (0, "bcm2835-codec-decode", 0),
        (1, "HD Webcam C270: metadata", 1),
        (2, "HD Webcam C270", 0),
        (10, "Another", 0),
        (19, "pispbe-input", 0),
    )
    root = machine(tmp_path, *devices)
    open_automatic(CaptureFormat(), root)  # without picamera2
    picamera2(monkeypatch, [USB])
    open_automatic(CaptureFormat(), root)
    assert opened_by_opencv == [str(tmp_path / "dev" / "video2")] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists cameras")
def test_auto_reports_why_there_is_no_camera(tmp_path, monkeypatch, opened_by_opencv):
    with pytest.raises(SourceError, match="no camera was found"):
        open_automatic(CaptureFormat(), machine(tmp_path, (0, "rpi-hevc-dec", 0)))
    # If there is a camera module without its software, a USB camera is not used instead.
    root = machine(tmp_path, (1, "rp1-cfe-csi2_ch0", 0), (2, "HD Webcam", 0))
    with pytest.raises(SourceError, match="apt install python3-picamera2"):
        open_automatic(CaptureFormat(), root)

    class Broken(ModuleType):
        def __getattr__(self, name):
            raise ValueError("numpy.dtype size changed, may indicate binary incompatibility")

    monkeypatch.setitem(sys.modules, "picamera2", Broken("picamera2"))
    with pytest.raises(SourceError, match="--force-reinstall simplejpeg"):
        open_automatic(CaptureFormat(), root)
    assert opened_by_opencv == []


@pytest.mark.parametrize("clock", [time.CLOCK_MONOTONIC, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)])
def test_age_of_a_result_starts_at_the_exposure(monkeypatch, clock):
    picamera2(monkeypatch, [MODULE], age_s=0.25, clock=clock)
    with SourceSupervisor([find_source("picamera2:0")]) as supervisor:
        frame = next(event for event in supervisor if isinstance(event, Frame))
    age_s = time.monotonic() - frame.grabbed_s
    assert age_s >= 0.25  # there is no upper limit, because the machine may be slow
    arrived_s = time.monotonic() - age_s
    assert abs(arrived_s - frame.grabbed_s) < 0.001


@pytest.mark.parametrize("age_s", [-5.0, 1e6])
def test_implausible_sensor_timestamps_are_ignored(monkeypatch, age_s):
    picamera2(monkeypatch, [MODULE], age_s=age_s)
    before = time.monotonic()
    with SourceSupervisor([find_source("picamera2:0")]) as supervisor:
        frame = next(event for event in supervisor if isinstance(event, Frame))
    assert before <= frame.grabbed_s <= time.monotonic()


@pytest.mark.parametrize("step", ["start", "stop"])
def test_camera_module_is_released_after_a_failure(monkeypatch, step):
    picamera2(monkeypatch, [MODULE])
    closed = []

    def fail(camera):
        raise RuntimeError("timed out")

    monkeypatch.setattr(f"picamera2.Picamera2.{step}", fail)
    monkeypatch.setattr("picamera2.Picamera2.close", lambda camera: closed.append(camera))
    with pytest.raises((SourceError, RuntimeError), match="timed out"):
        find_source("picamera2:0").open().close()
    assert len(closed) == 1


@pytest.mark.parametrize("name", ["Studio Display Camera", "Dell Display Webcam", "HISPEED Camera"])
def test_names_of_usb_cameras_are_not_mistaken_for_image_signal_processors(tmp_path, name):
    root = machine(tmp_path, (0, name, 0), (1, "bcm2835-isp-output0", 0), (2, "rkisp1_mainpath", 0), (3, "ISP", 0))
    assert [device.helper for device in list_video_devices(root)[0]] == [False, True, True, True]
