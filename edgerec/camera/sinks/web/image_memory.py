"""Count the memory of the frames that are kept for the web page."""

from __future__ import annotations

from edgerec.camera.frame import Frame


class ImageMemory:
    """Counts the memory of frames. A buffer that several frames share, e.g. regions of one image, counts once.

    Attributes:
        size_bytes: total size of the buffers.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self._users: dict[int, int] = {}

    def add(self, frame: Frame) -> None:
        """Add the memory of a frame. The caller must keep the frame until it calls :meth:`remove`."""
        for buffer, size_bytes in frame.buffers.items():
            users = self._users.get(buffer, 0)
            self._users[buffer] = users + 1
            self.size_bytes += size_bytes if users == 0 else 0

    def remove(self, frame: Frame) -> None:
        """Stop counting a frame."""
        for buffer, size_bytes in frame.buffers.items():
            self._users[buffer] -= 1
            if self._users[buffer] == 0:
                del self._users[buffer]
                self.size_bytes -= size_bytes
