"""Any text as the value of an HTTP header, which takes ASCII only. Knows no header by name."""

from __future__ import annotations

import re
from urllib.parse import quote

MOST_BYTES = 1024
_NOT_PRINTABLE = re.compile(r"[^ -~]")


def printable(text: str) -> str:
    """`text` with a question mark for whatever a header cannot hold: a folder's name may be anything."""
    return _NOT_PRINTABLE.sub("?", text)


def percent_encoded(text: str, most: int = MOST_BYTES) -> str:
    """`text` in UTF-8, percent-encoded (RFC 3986), cut before the first character that does not fit `most` bytes."""
    parts, room = [], most
    for letter in text:
        part = quote(letter, safe="")
        room -= len(part)
        if room < 0:
            break
        parts.append(part)
    return "".join(parts)
