"""A small part of the HTTP target of ``benchmarks/fuzz.py``, and proof that the target finds faults."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import REPOSITORY

for module in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(module)


@pytest.fixture(scope="module")
def run_http():
    """Run cases of the target, and return the figures."""
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import fuzz

        yield lambda folder, first, count: fuzz.run_target(
            "http", fuzz.TARGETS["http"], folder, seed=1, count=count, first=first
        )
    finally:
        sys.path.pop(0)


def test_damaged_http_is_accepted_or_refused_in_one_line(run_http, tmp_path):
    figures = run_http(tmp_path, 0, 12)
    assert figures.examples == []
    assert figures.tried == figures.accepted + figures.refused == 12


def test_password_in_an_error_is_found(run_http, tmp_path, monkeypatch):
    monkeypatch.setattr("edgerec.camera.sources.http.failure", str)
    figures = run_http(tmp_path, 56, 1)
    assert "the error shows the password" in figures.examples[0]


def test_password_that_follows_a_redirect_is_found(run_http, tmp_path, monkeypatch):
    monkeypatch.setattr("edgerec.utils.urls.Url.origin", property(lambda url: url.host))
    figures = run_http(tmp_path, 43, 1)
    assert "sent to another server" in figures.examples[0]
