"""Whose share a caller counts for."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from starlette.datastructures import Headers

from hunyuan.serving.peers import Peers

PEERS = Peers([ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48")])


def peer(host: str | None, *headers: tuple[str, str]) -> str | None:
    return PEERS.of_request(host, Headers(raw=[(name.lower().encode(), value.encode()) for name, value in headers]))


def test_an_address_is_a_peer_and_a_v6_network_is_one() -> None:
    assert PEERS.of_connection("192.0.2.1") == "192.0.2.1"
    assert PEERS.of_connection("::ffff:192.0.2.1") == "192.0.2.1"
    assert PEERS.of_connection("2001:db8:2:3::1") == PEERS.of_connection("2001:db8:2:3:4::9") == "2001:db8:2:3::/64"
    assert PEERS.of_connection("2001:db8:2:4::1") != "2001:db8:2:3::/64"


@pytest.mark.parametrize("host", ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8:1::7", None, "not an address"])
def test_a_proxy_counts_for_nobody(host: str | None) -> None:
    assert PEERS.of_connection(host) is None
    assert peer(host) is None


def test_nobody_else_is_believed() -> None:
    assert peer("192.0.2.1", ("X-Forwarded-For", "198.51.100.1")) == "192.0.2.1"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("X-Forwarded-For", "198.51.100.1")], "198.51.100.1"),
        ([("X-Forwarded-For", "203.0.113.5, 198.51.100.1")], "198.51.100.1"),
        ([("X-Forwarded-For", "203.0.113.5, 198.51.100.1, 10.9.9.9")], "198.51.100.1"),
        ([("X-Forwarded-For", "203.0.113.5"), ("X-Forwarded-For", "198.51.100.1")], "198.51.100.1"),
        ([("X-Forwarded-For", "198.51.100.1:4711")], "198.51.100.1"),
        ([("X-Forwarded-For", "[2001:db8:2:3::1]:4711")], "2001:db8:2:3::/64"),
        ([("X-Forwarded-For", "10.9.9.9")], None),
        ([("X-Forwarded-For", "198.51.100.1, unknown")], "unknown"),
        ([("X-Forwarded-For", "")], "unknown"),
        ([("Forwarded", 'for=203.0.113.5;proto=http, for="198.51.100.1:80";by=10.0.0.1')], "198.51.100.1"),
        ([("Forwarded", 'proto=https; FOR="[2001:db8:2:3::1]"')], "2001:db8:2:3::/64"),
        ([("Forwarded", "for=_hidden")], "unknown"),
        ([("Forwarded", "proto=https")], "unknown"),
        ([], None),
    ],
)
def test_what_a_proxy_says_is_believed(headers: list[tuple[str, str]], expected: str | None) -> None:
    assert peer("10.1.2.3", *headers) == expected
