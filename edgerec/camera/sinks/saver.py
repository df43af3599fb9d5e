"""Pictures that are worth a look, kept for the next training, in a ring that never fills the disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from edgerec.camera.frame import Result
from edgerec.camera.states import StateChange
from edgerec.contract.decision import TIME_TOLERANCE_S, UNKNOWN
from edgerec.contract.files import checked_output
from edgerec.contract.preprocess import Image, encode_png
from edgerec.errors import EdgerecError
from edgerec.optional import require

Rule = Literal["low-confidence", "changes", "all"]
JPEG_QUALITY = 95
_BLOCK = 4096
_LONGEST = 80
# The names of our own files, which alone are ever removed.
_OURS = re.compile(r"edgerec_\d{8}T\d{6}\.\d{6}Z_[a-z0-9-]{1,40}_s\d{3}\.(?:jpg|png)")
_PART = re.compile(r"\.edgerec_\d{8}T\S{1,80}\.part")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class SaveSpec:
    """Which pictures are saved, and how much room they may take.

    Attributes:
        rule: ``low-confidence``, ``changes`` of the decision, or ``all``.
        most_bytes: all of them together; the oldest go first.
        reserve_bytes: free space of the disk that is left to others; pictures go for it as well.
        below: a frame whose best score is less is of low confidence.
        margin: so is one whose second best score is as close as this.
        least_s: seconds from one picture to the next of a source.
        png: without loss, and several times as large.
    """

    rule: Rule = "low-confidence"
    most_bytes: int = 500_000_000
    reserve_bytes: int = 200_000_000
    below: float = 0.6
    margin: float = 0.2
    least_s: float = 0.0
    png: bool = False

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"save is {self.rule!r}; expected one of {', '.join(get_args(Rule))}")
        if self.most_bytes < 1 or self.reserve_bytes < 0 or self.least_s < 0:
            raise ValueError("most_bytes is 1 or more, reserve_bytes and least_s 0 or more")
        if not (0 <= self.below <= 1 and 0 <= self.margin <= 1):
            raise ValueError(f"below is {self.below} and margin {self.margin}; expected 0 to 1")


def parse_size(text: str) -> int:
    """Bytes of ``500MB``, ``2GiB`` or ``1000000``; raises ValueError."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMG]?i?B?)\s*", text, re.IGNORECASE)
    unit = found[2].upper() if found else ""
    unit += "B" if unit and unit[-1] != "B" else ""
    if not found or unit not in _UNITS or float(found[1]) * _UNITS[unit] < 1:
        raise ValueError(f"{text!r} is no size: expected as 500MB or 2GB")
    return int(float(found[1]) * _UNITS[unit])


class SavedPictures:
    """Saves frames as ``FOLDER/LABEL/edgerec_TIME_SOURCE_SCORE.jpg``, an image folder that ``edgerec train`` takes.

    The picture is the part that the model saw, the label is what was answered, to be corrected by moving the file.
    Files that it has not written itself are left alone; its own, of earlier runs too, are the ring.

    Attributes:
        saved, removed: how many files.
    """

    closed = False
    name = "save"

    def __init__(self, folder: str | Path, spec: SaveSpec | None = None) -> None:
        """Make the folder, and find what earlier runs have left in it; raises :class:`EdgerecError`."""
        self.saved = self.removed = 0
        self._folder, self._spec = checked_output(folder, folder=True), spec or SaveSpec()
        self.outputs = (self._folder,)
        self._last: dict[str, tuple[float, str]] = {}
        self._ring: deque[tuple[Path, int]] = deque()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._find()
        except OSError as error:
            raise EdgerecError(f"pictures cannot be saved in {folder}: {error.strerror}") from None
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise EdgerecError(f"pictures cannot be saved in {folder}: it cannot be written")

    @property
    def held_bytes(self) -> int:
        """What the pictures take on the disk, in whole blocks."""
        return self._held

    def write(self, result: Result) -> None:
        """Save the frame if the rule wants it; raises :class:`EdgerecError` when there is no room."""
        label = self._wanted(result)
        if label is None:
            return
        content = self._encoded(result.frame.image)
        path = self._path(result, label)
        try:
            if not self._make_room(_taken(len(content))):
                raise EdgerecError(
                    f"no room for a picture in {self._folder}: the disk is full, or --save-max too small"
                )
            self._write(path, content)
        except OSError as error:
            raise EdgerecError(f"a picture cannot be saved in {self._folder}: {error.strerror}") from None
        self._last[result.frame.feed] = result.frame.captured_s, label
        self.saved += 1

    def state(self, change: StateChange) -> None:
        """States have no picture."""

    def close(self) -> None:
        """Every file is whole already."""

    def _wanted(self, result: Result) -> str | None:
        """The label to save the frame under, or None."""
        spec, answer, decision = self._spec, result.classification, result.decision
        last_s, last_label = self._last.get(result.frame.feed, (float("-inf"), None))
        if result.frame.stream and result.frame.captured_s - last_s < spec.least_s - TIME_TOLERANCE_S:
            return None
        if spec.rule == "all":
            return answer.label
        if spec.rule == "changes":
            label = decision.label if decision else answer.label
            changed = decision.changed if decision else label != last_label
            return label if changed else None
        best, second = [category.score for category in answer.categories[:2]] + [0.0] * (2 - len(answer.categories[:2]))
        sure = answer.label != UNKNOWN and best >= spec.below and best - second > spec.margin
        return None if sure else answer.label

    def _encoded(self, image: Image) -> bytes:
        if self._spec.png:
            return encode_png(image)
        cv2 = require("cv2")
        ok, content = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not ok:
            raise EdgerecError(f"a picture of shape {image.shape} cannot be written as JPEG")
        return content.tobytes()

    def _path(self, result: Result, label: str) -> Path:
        seconds = time.time() - (time.monotonic() - result.frame.captured_s)
        source = re.sub(r"[^a-z0-9]+", "-", (result.frame.feed or result.frame.source).lower())[-40:].strip("-")
        score, kind = round(result.classification.score * 100), "png" if self._spec.png else "jpg"
        while True:
            when = datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            name = f"edgerec_{when}_{source or 'camera'}_s{score:03d}.{kind}"
            path = self._folder / folder_name(label) / name
            if not path.exists():
                return path
            seconds += 1e-6

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        part = path.parent / f".{path.name}.part"
        try:
            part.write_bytes(content)
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        self._ring.append((path, _taken(len(content))))
        self._held += _taken(len(content))

    def _make_room(self, size: int) -> bool:
        spec = self._spec
        # When others have filled the disk, to give up all that was collected would not help.
        if size > spec.most_bytes or self._free() + self._held < spec.reserve_bytes + size:
            return False
        while self._held + size > spec.most_bytes or self._free() < spec.reserve_bytes + size:
            if not self._ring:
                return False
            path, taken = self._ring.popleft()
            self._held -= taken
            path.unlink(missing_ok=True)
            self.removed += 1
            with contextlib.suppress(OSError):  # a class without pictures is none
                path.parent.rmdir()
        return True

    def _free(self) -> int:
        return shutil.disk_usage(self._folder).free

    def _find(self) -> None:
        found = []
        for path in self._folder.glob("*/*"):
            if path.is_symlink() or not path.is_file():
                continue
            size = path.stat().st_size
            # After a power cut a file may be there without its content.
            if _PART.fullmatch(path.name) or (not size and _OURS.fullmatch(path.name)):
                path.unlink(missing_ok=True)
            elif _OURS.fullmatch(path.name):
                found.append((path, _taken(size)))
        self._ring.extend(sorted(found, key=lambda one: one[0].name))
        self._held = sum(taken for _, taken in found)

    _held = 0


def folder_name(label: str) -> str:
    """A folder's name for a label, the same one wherever a file system can have it; never one that leads elsewhere.

    What had to be changed ends with a digest of the label, so that two labels never share a folder.
    """
    name = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in label)
    name = name.encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore").strip(" .")
    # These three would be taken for the parts of a data set.
    if name == label and name and name.lower() not in ("train", "val", "test"):
        return name
    digest = hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name or 'label'}_{digest}"


def _taken(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
