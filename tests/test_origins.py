"""Which origins are taken."""

from __future__ import annotations

import pytest

from hunyuan.origins import origin_of


@pytest.mark.parametrize(
    "text", ["https://a.example", "http://localhost:3000", "http://127.0.0.1:8080", "https://[::1]:8443", "http://a-b"]
)
def test_what_browsers_send_is_an_origin(text: str) -> None:
    assert origin_of(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "*", "null", "a.example", "https://a.example/", "https://a.example/x", "https://A.example", "ftp://a", "https://",
        "https://a:443", "http://a:80", "http://a:0", "http://a:65536", "https://*.a", "https://u@a", "https://a?b",
    ],
)  # fmt: skip
def test_what_they_never_send_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"origin|port"):
        origin_of(text)
