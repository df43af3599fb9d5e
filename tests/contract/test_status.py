"""Tests of the status file's format."""

from __future__ import annotations

import json

import pytest

from edgerec.contract.status import MAX_STATUS_BYTES, check_status, parse_status

STATUS = {
    "version": 1,
    "pid": 7,
    "bundle": "ab" * 32,
    "name": "signs",
    "started_s": 1.5,
    "updated_s": 2.0,
    "frames": 3,
    "fps": 10.0,
    "skipped": 0,
    "invalid": 0,
    "temperature_c": None,
    "throttled": [],
    "sources": [{"name": "0", "state": "live", "reason": ""}],
    "last": {"source": "0", "label": "stop", "score": 0.5, "at_s": 1.75},
}


def test_status_file_is_parsed():
    assert parse_status(json.dumps(STATUS).encode()) == STATUS
    assert check_status(STATUS | {"last": None, "temperature_c": 50.5, "new_key": 1})["temperature_c"] == 50.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version is 2, expected 1"),
        ({"frames": "3"}, "frames is '3', expected an integer"),
        ({"last": {"source": "0"}}, "last.label is missing"),
        ({"sources": [{"name": 0, "state": "live", "reason": ""}]}, r"sources\[0\].name is 0, expected a string"),
    ],
)
def test_invalid_status_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_status(STATUS | change)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'"' + b"x" * MAX_STATUS_BYTES + b'"'])
def test_other_content_is_refused(content):
    with pytest.raises(ValueError, match=r"."):
        parse_status(content)
