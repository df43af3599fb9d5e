"""Select the camera for ``--source auto``: a Raspberry Pi camera module, otherwise the first USB camera."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from edgerec.camera.sources.base import CaptureFormat, Source
from edgerec.camera.sources.opencv_capture import OpenCVSource
from edgerec.camera.sources.picamera import PicameraSource, camera_modules
from edgerec.errors import SourceError
from edgerec.runtime.video_devices import ROOT, list_video_devices

log = logging.getLogger(__name__)


def open_automatic(requested: CaptureFormat, root: Path = ROOT) -> Source:
    """Open the first camera module (CSI) with picamera2 if there is one, otherwise the first USB camera.

    Args:
        requested: size, rate and format to request from the camera.
        root: folder that contains the system's ``sys`` and ``dev`` folders.

    Raises:
        SourceError: there is no camera, or there is a camera module but picamera2 cannot be imported.
    """
    devices, _ = list_video_devices(root)
    try:
        modules = camera_modules("auto")
    except SourceError as error:
        if any(device.raw for device in devices):
            raise SourceError(f"{error}; alternatively, use a USB camera with --source /dev/videoN") from None
        modules = []
    if modules:
        log.info("source auto: using picamera2:%d", modules[0])
        return PicameraSource(modules[0], requested)
    if sys.platform != "linux":
        return OpenCVSource.camera(0, requested)
    cameras = [device for device in devices if not device.raw and not device.helper]
    if not cameras:
        raise SourceError(
            "no camera was found for the source auto: connect a USB camera or a camera module, or specify another "
            "source. To see what is missing, run edgerec doctor"
        )
    log.info("source auto: using %s (%s)", cameras[0].path, cameras[0].name)
    return OpenCVSource.camera(cameras[0].path, requested)
