"""A small part of the MJPEG target of ``benchmarks/fuzz.py``, and proof that the target finds faults."""

from __future__ import annotations

import sys

import pytest

from edgerec.camera.sources.mjpeg import JpegSplitter
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def run_mjpeg():
    """Run cases of the target, and return the figures."""
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import fuzz

        yield lambda folder, count: fuzz.run_target("mjpeg", fuzz.TARGETS["mjpeg"], folder, seed=0, count=count)
    finally:
        sys.path.pop(0)


def test_crafted_streams_give_complete_files_with_bounded_work(run_mjpeg, tmp_path):
    figures = run_mjpeg(tmp_path, 25)
    assert figures.examples == []
    assert figures.accepted == 25


def test_incomplete_files_are_found(run_mjpeg, tmp_path, monkeypatch):
    monkeypatch.setattr(JpegSplitter, "feed", lambda _, chunk: [chunk])
    assert "is not complete" in run_mjpeg(tmp_path, 2).examples[0]
