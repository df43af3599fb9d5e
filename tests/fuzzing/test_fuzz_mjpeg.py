"""A small part of the MJPEG target of ``benchmarks/fuzz.py``, and proof that the target finds faults."""

from __future__ import annotations

from edgerec.camera.sources.jpeg import JpegSplitter


def test_crafted_streams_give_complete_files_with_bounded_work(fuzz_target, tmp_path):
    figures = fuzz_target("mjpeg", tmp_path, 25)
    assert figures.examples == []
    assert figures.accepted == 25


def test_incomplete_files_are_found(fuzz_target, tmp_path, monkeypatch):
    monkeypatch.setattr(JpegSplitter, "feed", lambda _, chunk: [chunk])
    assert "is not complete" in fuzz_target("mjpeg", tmp_path, 2).examples[0]
