"""A small part of the targets of ``benchmarks/fuzz.py`` for zip files and runs, and proof that they find faults."""

from __future__ import annotations

import pytest


@pytest.fixture
def run_files(run, bundle, fuzz_target):
    """Run cases of a target with the valid input of the fixtures, and return the figures."""
    valid = {"zips": bundle, "runs": run.path}
    return lambda name, *arguments, **changes: fuzz_target(name, *arguments, start=lambda _: valid[name], **changes)


@pytest.mark.parametrize(("name", "count"), [("zips", 8), ("runs", 25)])
def test_damaged_files_are_accepted_or_refused_in_one_line(run_files, tmp_path, name, count):
    figures = run_files(name, tmp_path, count)
    assert figures.examples == []
    assert figures.tried == figures.accepted + figures.refused == count


def test_unexpected_values_are_found(run_files, tmp_path, monkeypatch):
    monkeypatch.setattr("edgerec.train.run_files.check_type", lambda *arguments: None)
    figures = run_files("runs", tmp_path, 25)
    assert "Error" in figures.examples[0]


def test_zip_files_that_unpack_to_more_memory_are_found(run_files, tmp_path, monkeypatch):
    monkeypatch.setattr("edgerec.utils.bounded_parsing.MAX_COMPRESSION_RATIO", 1 << 40)
    figures = run_files("zips", tmp_path, 8, memory_bytes=30 << 20)
    assert any("MiB of memory" in example for example in figures.examples)
