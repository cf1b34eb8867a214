"""How long a request has waited in front of this process, and whom that is believed of."""

from __future__ import annotations

import logging
import time
from ipaddress import ip_network
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from hunyuan.serving.arrival import Arrivals, time_of
from hunyuan.serving.envelope import Envelope
from hunyuan.serving.peers import Peers
from hunyuan.serving.records import RequestRecord

PROXY, OTHER = "10.1.2.3", "192.0.2.1"


def arrivals() -> Arrivals:
    return Arrivals(Peers([ip_network("10.0.0.0/8")]))


def scope(host: str, *said: str) -> dict[str, Any]:
    return {"client": (host, 4711), "headers": [(b"x-request-start", one.encode()) for one in said]}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("t=1700000000123", 1700000000.123),
        ("1700000000.5", 1700000000.5),
        ("t=1700000000.250", 1700000000.25),
        ("t=1700000000123456", 1700000000.123456),
        ("1700000000", 1700000000.0),
        ("", None),
        ("t=", None),
        ("yesterday", None),
        ("-1700000000", None),
        ("1e9", None),
        ("t=17", None),
        ("9" * 40, None),
    ],
)
def test_the_unit_shows_in_the_size(text: str, seconds: float | None) -> None:
    assert time_of(text) == seconds


def test_a_proxy_is_believed_and_nobody_else() -> None:
    said = f"t={(time.time() - 42) * 1e3:.0f}"
    assert arrivals().waited_s(scope(PROXY, said)) == pytest.approx(42, abs=1)
    assert arrivals().waited_s(scope(OTHER, said)) == 0.0
    assert arrivals().waited_s(scope(PROXY)) == 0.0
    assert Arrivals(Peers()).waited_s(scope(PROXY, said)) == 0.0


def test_of_two_times_the_one_that_our_proxy_added_counts() -> None:
    first, second = (f"t={time.time() - age:.3f}" for age in (4000, 3))
    assert arrivals().waited_s(scope(PROXY, first, second)) == pytest.approx(3, abs=1)


@pytest.mark.parametrize("age", [-3600, 90_000, None], ids=["from the future", "of the day before", "no time"])
def test_what_cannot_be_so_is_said_once(caplog: pytest.LogCaptureFixture, age: float | None) -> None:
    said = "soon" if age is None else f"t={time.time() - age:.3f}"
    ours = arrivals()
    with caplog.at_level(logging.WARNING):
        assert [ours.waited_s(scope(PROXY, said)) for _ in range(3)] == [0.0] * 3
    assert len(caplog.records) == 1


def test_a_clock_that_is_a_little_ahead_is_no_mistake(caplog: pytest.LogCaptureFixture) -> None:
    assert arrivals().waited_s(scope(PROXY, f"t={time.time() + 0.4:.3f}")) == 0.0
    assert not caplog.records


def test_the_wait_counts_from_the_request_s_begin() -> None:
    ended: list[RequestRecord] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    TestClient(Envelope(app, 1000, lambda: None, on_end=ended.append, waited_s=lambda scope: 7.0)).get("/x")
    assert ended[0].proxy_s == 7.0
    assert ended[0].seconds == pytest.approx(7.0, abs=0.5)
