"""Tests of parsing network addresses."""

from __future__ import annotations

import pytest

from edgerec.errors import AddressError
from edgerec.utils.host_port import parse_host_port


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", ("127.0.0.1", 9464)),
        ("8000", ("127.0.0.1", 8000)),
        (":8000", ("127.0.0.1", 8000)),
        ("0.0.0.0", ("0.0.0.0", 9464)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("localhost:80", ("localhost", 80)),
        ("[::1]:0", ("::1", 0)),
        ("[::]", ("::", 9464)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
    ],
)
def test_missing_host_and_port_are_replaced_by_the_defaults(text, address):
    assert parse_host_port(text, "127.0.0.1", 9464) == address


@pytest.mark.parametrize(
    "text", ["a b", "x:y", "host:99999", "70000", "http://host:80", "1:2:3", "::1:80", "[x]:1", "٣"]
)
def test_invalid_addresses_are_refused(text):
    with pytest.raises(AddressError, match=r"use HOST:PORT, such as 127\.0\.0\.1:9464"):
        parse_host_port(text, "127.0.0.1", 9464)


@pytest.mark.parametrize("text", ["", "host", "8000", ":8000", "[::1]"])
def test_host_and_port_are_required_without_defaults(text):
    with pytest.raises(AddressError, match=r"use HOST:PORT, such as 10\.0\.0\.1:12345"):
        parse_host_port(text)
    assert parse_host_port("10.1.2.3:4000") == ("10.1.2.3", 4000)
