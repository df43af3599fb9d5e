"""Limits of the freed memory that glibc keeps."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Run the camera, let 16 threads allocate memory at the same time, and print glibc's XML description of its heaps.
CAMERA_THEN_THREADS = """
import ctypes, os, sys, threading
from edgerec.cli.app import app
try:
    app(ARGUMENTS)
except SystemExit as end:
    assert not end.code, end.code
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
barrier = threading.Barrier(16)
def allocate():
    barrier.wait()
    for _ in range(1000):
        libc.malloc(100)
    barrier.wait()
threads = [threading.Thread(target=allocate) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fopen.restype = ctypes.c_void_p
file = libc.fopen(sys.argv[-1].encode(), b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
"""


def without_malloc_settings():
    return {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no arenas")
def test_threads_of_the_camera_command_share_one_malloc_arena(bundle, tmp_path):
    report = tmp_path / "malloc.xml"
    options = ["camera", str(bundle), "--source", "synthetic:32x32@100", "--json", "--csv", str(tmp_path / "rows.csv")]
    code = CAMERA_THEN_THREADS.replace("ARGUMENTS", repr([*options, "--max-frames", "2"]))
    subprocess.run(
        [sys.executable, "-c", code, str(report)],
        env=without_malloc_settings(),
        check=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
    )
    assert report.read_text().count("<heap nr=") == 1


# Allocate 80 MB in blocks on the heap, and free all but the last one, which prevents malloc from shrinking the heap.
FREE_ALL_BUT_THE_LAST = """
import os
import numpy as np
from edgerec.utils.allocator import return_freed_memory
def resident_bytes():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
blocks = [np.ones(4000, np.uint8) for _ in range(20_000)]
blocks = blocks[-1:]
before = resident_bytes()
return_freed_memory()
print(before - resident_bytes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep freed memory differently")
def test_freed_memory_is_returned_to_the_system():
    output = subprocess.run(
        [sys.executable, "-c", FREE_ALL_BUT_THE_LAST],
        env=without_malloc_settings(),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert int(output) > 60_000_000
