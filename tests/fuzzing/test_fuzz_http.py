"""A small part of the HTTP target of ``benchmarks/fuzz.py``, and proof that the target finds faults."""

from __future__ import annotations

import pytest

for module in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(module)


def test_damaged_http_is_accepted_or_refused_in_one_line(fuzz_target, tmp_path):
    figures = fuzz_target("http", tmp_path, 12, seed=1)
    assert figures.examples == []
    assert figures.tried == figures.accepted + figures.refused == 12


def test_password_in_an_error_is_found(fuzz_target, tmp_path, monkeypatch):
    monkeypatch.setattr("edgerec.camera.sources.http.failure", str)
    figures = fuzz_target("http", tmp_path, 1, first=56, seed=1)
    assert "the error shows the password" in figures.examples[0]


def test_password_that_follows_a_redirect_is_found(fuzz_target, tmp_path, monkeypatch):
    monkeypatch.setattr("edgerec.utils.url_redaction.Url.origin", property(lambda url: url.host))
    figures = fuzz_target("http", tmp_path, 1, first=43, seed=1)
    assert "sent to another server" in figures.examples[0]
