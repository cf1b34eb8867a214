"""Who is let in, and what the door looks at."""

from __future__ import annotations

from typing import Any

import pytest

from hunyuan.api_keys import keys_of
from hunyuan.serving.door import Door
from hunyuan.serving.http_errors import Unauthorized

KEY, OTHER = "3f9a-not-a-real-key-0217", "71cc-not-a-real-key-5580"
KEYS = f"team-a:{KEY},team-b:{OTHER}"
DOOR = Door(keys_of(KEYS))


def scope(path: str = "/edit", method: str = "POST", *authorization: str) -> dict[str, Any]:
    headers = [(b"authorization", value.encode("latin-1")) for value in authorization]
    return {"type": "http", "path": path, "method": method, "headers": headers}


@pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY} "])
def test_a_key_is_known_by_its_name(given: str) -> None:
    assert DOOR.admit(scope("/edit", "POST", given)) == "team-a"
    assert DOOR.admit(scope("/metrics", "GET", f"Bearer {OTHER}")) == "team-b"
    assert DOOR.names == ("team-a", "team-b")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "this needs a key"),
        ([""], "this needs a key"),
        (["Bearer"], "this needs a key"),
        ([KEY], "this needs a key"),
        ([f"Basic {KEY}"], "this needs a key"),
        ([f"Bearer {KEY}x"], "none of this server's"),
        ([f"Bearer {KEY[:-1]}"], "none of this server's"),
        ([f"Bearer {KEY.upper()}"], "none of this server's"),
        (["Bearer \xff\xfe"], "none of this server's"),
        ([f"Bearer {KEY}, Bearer {KEY}"], "none of this server's"),
        ([f"Bearer {KEY}", f"Bearer {KEY}"], "more than one Authorization"),
    ],
)
def test_anything_else_is_no_key(given: list[str], words: str) -> None:
    with pytest.raises(Unauthorized, match=words) as caught:
        DOOR.admit(scope("/edit", "POST", *given))
    assert KEY[:8] not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/livez"), ("GET", "/readyz"), ("OPTIONS", "/edit"), ("GET", "/"), ("HEAD", "/ui"), ("GET", "/ui/a.js")],
)
def test_some_paths_want_none(method: str, path: str) -> None:
    assert DOOR.admit(scope(path, method)) is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/"),
        ("POST", "/ui/edit"),
        ("GET", "/uix"),
        ("GET", "/healthz"),
        ("GET", "/docs.json"),
        ("GET", "//ui/"),
    ],
)
def test_what_is_like_them_wants_one(method: str, path: str) -> None:
    with pytest.raises(Unauthorized):
        DOOR.admit(scope(path, method))


def test_without_keys_everybody_may() -> None:
    assert Door().admit(scope()) is None


def test_every_key_is_compared_whatever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first of them nor a right one ends it, and what is compared are digests."""
    compared = []

    def compare(ours: bytes, theirs: bytes) -> bool:
        compared.append((len(ours), len(theirs)))
        return ours == theirs

    monkeypatch.setattr("hunyuan.serving.door.hmac.compare_digest", compare)
    DOOR.admit(scope("/edit", "POST", f"Bearer {KEY}"))
    with pytest.raises(Unauthorized):
        DOOR.admit(scope("/edit", "POST", "Bearer x"))
    assert compared == [(32, 32)] * 4
