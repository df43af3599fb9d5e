"""Show each frame and its prediction in a window."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from edgerec.camera.frame import Result
from edgerec.camera.sinks.label_text import draw_ascii, draw_label
from edgerec.camera.source_state import StateChange
from edgerec.contract.preprocess import Image, contiguous
from edgerec.errors import EdgerecError
from edgerec.utils.native_output import captured_stderr
from edgerec.utils.optional import require

TITLE = "edgerec"
# Minimum image height in pixels, to which smaller images are enlarged so that the text is readable.
MIN_HEIGHT_PX = 360
# Height in pixels of the dark background behind the label of a region.
_LABEL_HEIGHT_PX = 32


def has_screen() -> bool:
    """Return True if a window can be opened. On Linux, this requires an X11 or Wayland display."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class Window:
    """A window that shows each frame with its prediction. The ``q`` key or the close button stops the camera."""

    inline = True  # OpenCV windows must be used in the thread that created them.

    def __init__(self) -> None:
        """Open the window.

        Raises:
            EdgerecError: there is no display, or the installed OpenCV cannot open windows.
        """
        self.closed = False
        self._fps = FrameRate()
        self._regions: dict[str, RegionOverlay] = {}
        cv2 = require("cv2")
        # Qt aborts the process if there is no display.
        if not has_screen():
            raise EdgerecError(
                "there is no display for a window: use --headless or --json to print the results, or --web to serve a "
                "web page"
            )
        try:
            with captured_stderr():  # Suppress Qt's warnings about missing fonts.
                cv2.namedWindow(TITLE, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
                cv2.waitKey(1)
        except cv2.error:
            raise EdgerecError(
                "the installed OpenCV cannot open windows (opencv-python-headless): use --headless, or install OpenCV "
                'with window support: pip install "edgerec[desktop]"'
            ) from None

    def write(self, result: Result) -> None:
        """Show a frame and process window events. Frames with regions are shown once, after their last region."""
        cv2 = require("cv2")
        if result.frame.region is None:
            cv2.imshow(TITLE, overlay(result, self._fps.tick())[:, :, ::-1])
        else:
            regions = self._regions.setdefault(result.frame.source, RegionOverlay())
            regions.add(result)
            if result.frame.region.is_last:
                cv2.imshow(TITLE, regions.draw(self._fps.tick())[:, :, ::-1])
        self.poll()

    def poll(self) -> None:
        """Process window events (key presses and the close button)."""
        cv2 = require("cv2")
        key = cv2.waitKey(1) & 0xFF
        self.closed = key == ord("q") or cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1

    def state(self, change: StateChange) -> None:
        """Do nothing, because state changes are printed to stderr."""

    def close(self) -> None:
        """Close the window."""
        require("cv2").destroyAllWindows()


class FrameRate:
    """Computes the frame rate, averaged over about one second."""

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._period_s = 0.0

    def tick(self) -> float:
        """Count a frame and return the frame rate in frames per second, or 0.0 for the first frame."""
        now_s = time.monotonic()
        if self._last_s is not None:
            period_s = now_s - self._last_s
            # Smooth the frame period with an exponential moving average, whose time constant is one second.
            weight = min(1.0, max(period_s, 0.05)) if self._period_s else 1.0
            self._period_s += weight * (period_s - self._period_s)
        self._last_s = now_s
        return 1 / self._period_s if self._period_s else 0.0


def overlay(result: Result, fps: float, hint: str = "press q to quit") -> Image:
    """Return the frame as a uint8 RGB image, with a bar that shows the label, score, frame rate and ``hint``."""
    image, _ = _enlarged(result.frame.image)
    bar = np.zeros((56, image.shape[1], 3), np.uint8)
    prediction = result.decision or result.classification
    right = draw_label(bar, prediction.label, prediction.index, 10, 26)
    draw_ascii(bar, f"  {prediction.score:.0%}", right, 26)
    novelty = result.classification.novelty
    _draw_status(bar, "" if novelty is None else f"novelty {novelty:.1f}   ", fps, result, hint)
    return np.vstack([image, bar])


class RegionOverlay:
    """Draws the boxes and latest predictions of all regions on a source's frame."""

    def __init__(self) -> None:
        self._latest: dict[str, Result] = {}
        self._newest: Result | None = None
        self._size = (0, 0)

    def add(self, result: Result) -> None:
        """Add the result of a named region."""
        region = result.frame.region
        assert region is not None
        if (size := region.whole.shape[:2]) != self._size:
            self._latest.clear()  # The boxes become invalid if the size of the frames changes.
            self._size = size
        self._latest[region.name] = result.without_image
        self._newest = result

    def draw(self, fps: float, hint: str = "press q to quit") -> Image:
        """Return the newest frame with the boxes and labels of its regions, as a uint8 RGB image.

        A bar below the frame shows the frame rate and ``hint``. At least one result must have been added.
        """
        cv2 = require("cv2")
        newest = self._newest
        assert newest is not None
        assert newest.frame.region is not None
        image, factor = _enlarged(contiguous(newest.frame.region.whole))
        image = image.copy()
        boxes = []
        for name, result in self._latest.items():
            assert result.frame.region is not None
            left, top, right, bottom = (factor * edge for edge in result.frame.region.box)
            boxes.append(((left, top), (right - 1, bottom - 1)))
            text = image[top : min(top + _LABEL_HEIGHT_PX, bottom), left:right]
            text //= 3  # Darken the background so that white text is readable.
            prediction = result.decision or result.classification
            end = draw_label(text, prediction.label, prediction.index, draw_ascii(text, f"{name}: ", 6, 24), 24)
            draw_ascii(text, f" {prediction.score:.0%}", end, 24)
        for gray, thickness in ((0, 4), (255, 2)):  # Black edges make boxes visible on a bright background.
            for corner, opposite in boxes:
                cv2.rectangle(image, corner, opposite, (gray, gray, gray), thickness)
        bar = np.zeros((28, image.shape[1], 3), np.uint8)
        _draw_status(bar, "", fps, newest, hint)
        return np.vstack([image, bar])


def _enlarged(image: Image) -> tuple[Image, int]:
    """Enlarge a small image by an integer factor, and return the image and the factor."""
    if image.shape[0] >= MIN_HEIGHT_PX:
        return image, 1
    cv2 = require("cv2")
    factor = -(-MIN_HEIGHT_PX // image.shape[0])
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST), factor


def _draw_status(bar: Image, prefix: str, fps: float, result: Result, hint: str) -> None:
    cv2 = require("cv2")
    status = f"{prefix}{fps:.0f} frames/s   {result.age_ms:.0f} ms   {hint}"
    at = (10, bar.shape[0] - 8)
    cv2.putText(bar, status, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (170, 170, 170), 1, cv2.LINE_AA)
