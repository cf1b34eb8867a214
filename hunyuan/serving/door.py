"""Who may call: a request's `Authorization: Bearer KEY` against the keys of the settings.

Knows which paths want no key. The caller's key is hashed before it is compared, and it is compared with all of them,
so that the time this takes tells nothing about any. A key goes nowhere from here; its name goes into the log.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import Scope

from hunyuan.api_keys import ApiKey, digest_of
from hunyuan.serving.http_errors import Unauthorized

PROBES = frozenset({"/livez", "/readyz"})
PAGE_FILES = frozenset({"/", "/api.css", "/api.js", "/ui"})
PAGE_FOLDER = "/ui/"
PLACES = "/edit/place"  # what a request for one holds is a job's id, which nobody can guess
HOW = "send `Authorization: Bearer KEY` with a key of this server"


class Door:
    """Lets callers in.

    Args:
        keys: of those who may; none: everybody may.
    """

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = tuple(keys)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(key.name for key in self._keys)

    def admit(self, scope: Scope) -> str | None:
        """The name of the caller's key; None where none is needed.

        Raises:
            Unauthorized: a key is needed, and the request has none, or none of ours.
        """
        if not self._keys or _is_open(scope):
            return None
        lines = Headers(scope=scope).getlist("authorization")
        if len(lines) > 1:
            raise Unauthorized(f"the request has more than one Authorization header; {HOW}")
        scheme, _, given = (lines[0] if lines else "").strip().partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise Unauthorized(f"this needs a key; {HOW}")
        name = self._name_of(given.strip().encode("latin-1"))
        if name is None:
            raise Unauthorized(f"the key that was sent is none of this server's; {HOW}")
        return name

    def _name_of(self, given: bytes) -> str | None:
        digest, found = digest_of(given), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key.name
        return found


def _is_open(scope: Scope) -> bool:
    """Whether a request wants no key. OPTIONS, with which a browser asks before it sends one, does nothing here."""
    path, method = scope["path"], scope.get("method", "")
    if method == "OPTIONS" or path in PROBES or (method == "POST" and path == PLACES):
        return True
    return method in ("GET", "HEAD") and (path in PAGE_FILES or path.startswith(PAGE_FOLDER))
