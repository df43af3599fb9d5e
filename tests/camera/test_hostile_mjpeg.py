"""Tests that the work for MJPEG data is bounded by the number of bytes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgerec.camera.sources.jpeg import JpegSplitter
from tests.servers import image_part, jpeg

# A linear splitter needs less than a second of CPU time. The limit ends a process that needs more.
CPU_LIMIT_S = 15
SPLITTER_PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1])))
from edgerec.camera.sources.jpeg import JpegSplitter
start, unit, end = (bytes.fromhex(text) for text in sys.argv[2:5])
body = start + unit * (600_000 // len(unit)) + end
splitter = JpegSplitter(bytes.fromhex(sys.argv[5]))
step = int(sys.argv[6])
for at in range(0, len(body), step):
    splitter.feed(body[at:at + step])
print(len(splitter.feed(bytes.fromhex(sys.argv[7]))))
"""
BOUNDARY = b"--frame"


@pytest.mark.parametrize("step", [600_000, 1000], ids=["at once", "in pieces"])
@pytest.mark.parametrize(
    ("start", "unit", "end"),
    [
        ("", "ffd8ffe00004", "00" * 64),  # segments that lead to the next start
        ("", "ffd8fffe0004" * 100 + "ffda0002" + "11" * 1000, "ff01"),
        ("", "ffd8" + "ff" * 500, "00"),  # fill bytes
        ("", "ffd8ffe00004" + BOUNDARY.hex(), "ffda0002ffd9"),
    ],
)
def test_parsing_time_is_proportional_to_the_number_of_bytes(start, unit, end, step):
    images = image_part(jpeg(5)) * 20
    arguments = [str(CPU_LIMIT_S), start, unit, end, BOUNDARY.hex(), str(step), (b"\r\n" * 99 + images).hex()]
    result = subprocess.run(
        [sys.executable, "-c", SPLITTER_PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout) >= 1  # the stream continues behind the garbage


def with_size(content: bytes, side: int) -> bytes:
    """Return the JPEG file with another width and height in its header."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + side.to_bytes(2, "big") * 2 + content[at + 4 :]


def test_a_file_with_too_few_bytes_for_its_pixels_is_dropped():
    content = jpeg(5)
    assert JpegSplitter().feed(content) == [content]
    assert JpegSplitter().feed(with_size(content, 8000) + content) == [content]


def test_a_file_with_too_many_scans_is_dropped():
    content = jpeg(5)
    scans = content[:-2] + content[content.index(b"\xff\xda") : -2] * 200 + b"\xff\xd9"
    assert JpegSplitter().feed(scans + content) == [content]


def test_a_thumbnail_of_an_incomplete_file_is_not_returned():
    thumbnail, complete = jpeg(3, (64, 48)), jpeg(5)
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    cut = (complete[:2] + segment + complete[2:])[: -len(complete) // 2]
    assert JpegSplitter(BOUNDARY).feed(image_part(cut) + image_part(complete)) == [complete]
