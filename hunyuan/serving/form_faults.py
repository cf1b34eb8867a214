"""What is wrong with a multipart body, in words that say what to do about it.

Knows how clients get this format wrong. Does not parse: it looks at a parser's failure and at the first bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import DEFAULT_MAX_HEADER_COUNT, DEFAULT_MAX_HEADER_SIZE, MAX_BOUNDARY_LENGTH

from hunyuan.errors import InvalidRequest

_LET_THE_CLIENT = "let the client library set Content-Type by itself, it knows the boundary that it writes"
_KNOWN = {
    "Boundary length": f"the boundary in Content-Type is longer than {MAX_BOUNDARY_LENGTH} characters",
    "Maximum header size": f"a header line of a part is longer than {DEFAULT_MAX_HEADER_SIZE:,} bytes",
    "Maximum header count": f"a part has more than {DEFAULT_MAX_HEADER_COUNT} header lines",
}


def why_not(name: str, refused: Mapping[str, str]) -> str | None:
    """Why a field is refused, if it is one of those; `svg[model]`, as forms spell it, is a part of `svg`."""
    return refused.get(name) or refused.get(name.partition("[")[0])


def no_boundary() -> InvalidRequest:
    return _fault(f"Content-Type names no boundary; {_LET_THE_CLIENT}")


def line_feeds() -> InvalidRequest:
    return _fault("its lines end in LF alone; multipart/form-data needs CRLF (\\r\\n) after boundaries and headers")


def nameless(what: str) -> InvalidRequest:
    return _fault(f'a part {what}; each needs Content-Disposition: form-data; name="..."')


def malformed(error: FormParserError, opening: bytes, boundary: bytes, parts: int, header: bytes) -> InvalidRequest:
    """Explains the parser's failure.

    Args:
        opening: the body's first bytes.
        parts: how many parts had begun.
        header: what was read of a value in a part's headers when it failed.
    """
    if _ends_in_line_feeds(opening, boundary, header):
        return line_feeds()
    known = next((words for start, words in _KNOWN.items() if str(error).startswith(start)), None)
    if known is not None:
        return _fault(known)
    if parts == 0:
        return _begins_otherwise(opening, boundary)
    return _fault("a header line of a part is malformed; it must read `Name: value` and end in CRLF (\\r\\n)")


def unfinished(opening: bytes, boundary: bytes, parts: int, header: bytes) -> InvalidRequest:
    """The body ended, and the parser still waits; arguments as for `malformed`."""
    if not opening:
        return _fault("it is empty; send the fields as multipart/form-data (curl -F image=@photo.jpg -F prompt=...)")
    if _ends_in_line_feeds(opening, boundary, header):
        return line_feeds()
    if parts == 0:
        return _begins_otherwise(opening, boundary)
    return _fault("it stops before its closing boundary (--boundary--); was the upload cut short?")


def _begins_otherwise(opening: bytes, boundary: bytes) -> InvalidRequest:
    if opening.lstrip(b"\r\n").startswith(_delimiter(boundary)):
        return _fault("behind its first boundary there is no CRLF (\\r\\n) and no part")
    return _fault(f"it does not begin with the boundary that Content-Type names; {_LET_THE_CLIENT}")


def _ends_in_line_feeds(opening: bytes, boundary: bytes, header: bytes) -> bool:
    return b"\n" in header or _delimiter(boundary) + b"\n" in opening


def _delimiter(boundary: bytes) -> bytes:
    return b"--" + boundary


def _fault(message: str) -> InvalidRequest:
    return InvalidRequest("body", message)
