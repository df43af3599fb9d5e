"""Show each frame and its prediction in a window."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from edgerec.camera.frame import Result
from edgerec.camera.sinks.label_text import draw_ascii, draw_label
from edgerec.camera.source_state import StateChange
from edgerec.contract.preprocess import Image
from edgerec.errors import EdgerecError
from edgerec.utils.native_output import captured_stderr
from edgerec.utils.optional import require

TITLE = "edgerec"
# Minimum image height in pixels. Smaller images are enlarged, so that the text in the window is readable.
MIN_HEIGHT_PX = 360


def has_screen() -> bool:
    """Return True if a window can be opened. On Linux, this requires an X11 or Wayland display."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class Window:
    """A window showing each frame, its label, score and frame rate. ``q`` or the close button stops the camera."""

    inline = True  # OpenCV windows must be used in the thread that created them.

    def __init__(self) -> None:
        """Open the window.

        Raises:
            EdgerecError: there is no display, or the installed OpenCV cannot open windows.
        """
        self.closed = False
        self._fps = FrameRate()
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
        """Show one frame and process window events."""
        cv2 = require("cv2")
        cv2.imshow(TITLE, overlay(result, self._fps.tick())[:, :, ::-1])
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
            # The frame period is an exponential moving average with a time constant of one second.
            weight = min(1.0, max(period_s, 0.05)) if self._period_s else 1.0
            self._period_s += weight * (period_s - self._period_s)
        self._last_s = now_s
        return 1 / self._period_s if self._period_s else 0.0


def overlay(result: Result, fps: float, hint: str = "press q to quit") -> Image:
    """Return the frame as a uint8 RGB image, with a bar that shows the label, score, frame rate and ``hint``."""
    cv2 = require("cv2")
    image = result.frame.image
    if image.shape[0] < MIN_HEIGHT_PX:
        factor = -(-MIN_HEIGHT_PX // image.shape[0])
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    bar = np.zeros((56, image.shape[1], 3), np.uint8)
    prediction = result.decision or result.classification
    right = draw_label(bar, prediction.label, prediction.index, 10, 26)
    draw_ascii(bar, f"  {prediction.score:.0%}", right, 26)
    novelty = result.classification.novelty
    novelty_text = "" if novelty is None else f"novelty {novelty:.1f}   "
    status = f"{novelty_text}{fps:.0f} frames/s   {result.age_ms:.0f} ms   {hint}"
    cv2.putText(bar, status, (10, 48), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (170, 170, 170), 1, cv2.LINE_AA)
    return np.vstack([image, bar])
