"""Origins of web pages as browsers write them: a scheme, a host and, where it is not the scheme's own, a port.

Knows the form (RFC 6454, section 6.2). A text that a browser would never send is refused: it would match nothing.
"""

from __future__ import annotations

import re

_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?")
_OWN_PORT = {"http": 80, "https": 443}


def origin_of(text: str) -> str:
    """`text` where it is an origin.

    Raises:
        ValueError: with what is wrong.
    """
    if text == "*":
        raise ValueError("* is not taken; name each origin, such as https://pages.example")
    match = _ORIGIN.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is no origin: http:// or https://, a host in lower case and perhaps a port; no path, "
            "not even the / at its end"
        )
    port = match["port"]
    if port is not None and (int(port) == _OWN_PORT[match["scheme"]] or not 1 <= int(port) <= 65_535):
        raise ValueError(f"{text!r}: browsers send no such port in an origin; leave it out or correct it")
    return text
