"""The picture in a window, with its answer."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

import numpy as np

from edgerec.camera.frame import Result
from edgerec.camera.sinks.label_text import draw_ascii, draw_label
from edgerec.camera.source_state import StateChange
from edgerec.contract.preprocess import Image
from edgerec.errors import EdgerecError
from edgerec.utils.native_output import captured_stderr
from edgerec.utils.optional import require

TITLE = "edgerec"
# Smaller pictures are enlarged to this height, so that the text beside them can be read.
MIN_HEIGHT_PX = 360


def has_screen() -> bool:
    """Whether a window has somewhere to be, as far as the system tells."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class Window:
    """Shows each frame with label, score and frames per second; ``q`` or closing it ends."""

    inline = True  # OpenCV's windows want the thread that made them

    def __init__(self) -> None:
        self.closed = False
        self._fps = FrameRate()

    def __enter__(self) -> Window:
        """Open the window; raises :class:`EdgerecError` where there is no screen or no window support."""
        cv2 = require("cv2")
        # Qt ends the whole process when it finds no display, so we look first.
        if not has_screen():
            raise EdgerecError(
                "there is no display for the window: add --headless for lines, --json for a script, --web for a page"
            )
        try:
            with captured_stderr():  # Qt complains about fonts that it does not need
                cv2.namedWindow(TITLE, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
                cv2.waitKey(1)
        except cv2.error:
            raise EdgerecError(
                'this OpenCV has no windows (opencv-python-headless): add --headless, or pip install "edgerec[desktop]"'
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        require("cv2").destroyAllWindows()

    def write(self, result: Result) -> None:
        """Show one frame and look for a key."""
        cv2 = require("cv2")
        cv2.imshow(TITLE, overlay(result, self._fps.tick())[:, :, ::-1])
        self.poll()

    def poll(self) -> None:
        """Process the window's events. Without this call, the window ignores keys and its close button."""
        cv2 = require("cv2")
        key = cv2.waitKey(1) & 0xFF
        self.closed = key == ord("q") or cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1

    def state(self, change: StateChange) -> None:
        """The picture stands still while its source does; the words are on stderr."""

    def close(self) -> None:
        """Leaving the window's with block closes it."""


class FrameRate:
    """Frames per second, averaged over the last second or so."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._period_s = 0.0

    def tick(self) -> float:
        """Count a frame; 0.0 until two were counted."""
        now = time.monotonic()
        if self._last is not None:
            period = now - self._last
            # An exponential mean whose memory is one second, whatever the rate.
            weight = min(1.0, max(period, 0.05)) if self._period_s else 1.0
            self._period_s += weight * (period - self._period_s)
        self._last = now
        return 1 / self._period_s if self._period_s else 0.0


def overlay(result: Result, fps: float, hint: str = "q ends") -> Image:
    """Return the frame's image, uint8 RGB, with a bar below it that shows label, score, frame rate and ``hint``."""
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
    new = "" if novelty is None else f"novelty {novelty:.1f}   "
    small = f"{new}{fps:.0f} frames/s   {result.age_ms:.0f} ms   {hint}"
    cv2.putText(bar, small, (10, 48), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (170, 170, 170), 1, cv2.LINE_AA)
    return np.vstack([image, bar])
