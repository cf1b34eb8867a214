"""With a proxy in the environment, this machine's own addresses are still reached directly."""

from __future__ import annotations

import os
import urllib.request

import httpx
import pytest
import requests.utils

from hunyuan.loopback import NAMES, ask_no_proxy

PROXY = "http://proxy.invalid:3128"
URLS = ["http://127.0.0.1:8000/livez", "http://localhost:8000/livez"]


@pytest.fixture
def _proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, PROXY)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "intranet.example, 10.0.0.1")


@pytest.mark.usefixtures("_proxied")
@pytest.mark.parametrize("url", URLS)
def test_every_client_reaches_this_machine_directly(url: str) -> None:
    assert requests.utils.get_environ_proxies(url) != {}
    ask_no_proxy()
    assert requests.utils.get_environ_proxies(url) == {}
    assert urllib.request.proxy_bypass(url.split("/")[2])
    with httpx.Client() as client:
        assert client._transport_for_url(httpx.URL(url)) is client._transport
    assert requests.utils.get_environ_proxies("http://example.org") != {}


@pytest.mark.usefixtures("_proxied")
def test_what_was_named_before_stays() -> None:
    ask_no_proxy()
    ask_no_proxy()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == ",".join(["intranet.example", "10.0.0.1", *NAMES])
