"""Reads a multipart/form-data body strictly: every part is known, comes once, and is what it should be.

Knows the format, not the meaning: which fields there are comes from the caller, and values stay as sent. Nothing
is ever fetched from an address that a field contains. What is wrong with a body is said in words of our own
(`form_faults.py`); the library below only finds where parts begin and end.

A body must go when its request is over, not when Python's cycle collector comes round: nothing here refers back to
what refers to it (the library's own `FormParser` does).
"""

from __future__ import annotations

import binascii
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from hunyuan.errors import InvalidImage, InvalidPrompt, InvalidRequest, UnknownField
from hunyuan.serving import form_faults
from hunyuan.serving.http_errors import NOT_MULTIPART, UnsupportedMediaType

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

# It quotes a malformed body, a line each time; the answer says what is wrong, to the one who sent it.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

MULTIPART = "multipart/form-data"
_AS_IT_IS = ("", "7bit", "8bit", "binary")
_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "base64": binascii.a2b_base64,
    "quoted-printable": binascii.a2b_qp,
}
_UTF8 = ("", "utf-8", "utf8", "us-ascii")
_OPENING = 512  # bytes of a body that are looked at to explain what is wrong with it


@dataclass
class Form:
    """The parts of one body: bytes of the files, text of the others; `lists` are files that may come more than once."""

    files: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    lists: dict[str, list[bytes]] = field(default_factory=dict)


def field_error(name: str, message: str) -> InvalidRequest:
    """The error class, and so the code, that belongs to a field."""
    if name == "prompt":
        return InvalidPrompt(message)
    if name in ("image", "image[]"):
        return InvalidImage(message, name)
    return InvalidRequest(name, message)


async def read_form(
    request: Request,
    files: Collection[str],
    texts: Collection[str],
    on_bytes: Callable[[int], None] = lambda count: None,
    lists: Mapping[str, int] | None = None,
    refused: Mapping[str, str] | None = None,
) -> Form:
    """Reads the whole body; the envelope bounds its size.

    Args:
        files: names of the fields that must come as files.
        texts: names of the fields that must come as text.
        on_bytes: told how many bytes have come, each time.
        lists: names of the files that may come more than once, and how often.
        refused: names of fields that are known and cannot be taken, and why not.

    Raises:
        UnsupportedMediaType: the body is compressed, or not multipart/form-data.
        InvalidRequest: a part is unknown, doubled, of the wrong kind or not UTF-8, or the body is malformed.
    """
    boundary = _boundary(request)
    collector, opening = _Collector(files, texts, lists or {}, refused or {}), b""
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        async for chunk in request.stream():
            if len(opening) < _OPENING:
                opening += chunk[:_OPENING]
            on_bytes(len(chunk))
            parser.write(chunk)
    except FormParserError as error:
        raise form_faults.malformed(error, opening, boundary, collector.parts, collector.header) from error
    if not collector.ended:
        raise form_faults.unfinished(opening, boundary, collector.parts, collector.header)
    return collector.form


def _boundary(request: Request) -> bytes:
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:40]!r} is not taken; send the body uncompressed")
    media_type, options = parse_options_header(request.headers.get("content-type"))
    if media_type.decode("latin-1") != MULTIPART:
        raise UnsupportedMediaType(NOT_MULTIPART)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise form_faults.no_boundary()
    return boundary


@dataclass
class _Part:
    """One part while it arrives."""

    name: str
    as_file: bool
    unchosen: bool  # a browser's file field that nobody touched has an empty file name
    charset: str
    decode: Callable[[bytes], bytes] | None
    data: BytesIO = field(default_factory=BytesIO)

    def value(self) -> bytes:
        data = self.data.getvalue()  # shares the buffer, where `read` would copy it
        if self.decode is None:
            return data
        try:
            return self.decode(data)
        except ValueError as error:
            raise field_error(self.name, f"cannot undo its Content-Transfer-Encoding ({error})") from error


class _Collector:
    """Takes the parts as the parser finds them, and refuses one as early as it can."""

    def __init__(
        self,
        files: Collection[str],
        texts: Collection[str],
        lists: Mapping[str, int],
        refused: Mapping[str, str],
    ) -> None:
        self.form = Form()
        self.ended = False
        self.parts = 0
        self._files, self._texts = files, texts
        self._lists, self._refused = lists, refused
        self._name, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._part: _Part | None = None

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    @property
    def header(self) -> bytes:
        """The value in a part's headers that is being read."""
        return bytes(self._value)

    def _on_part_begin(self) -> None:
        self.parts += 1
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if b"\n" in self._value:
            raise form_faults.line_feeds()
        self._headers[bytes(self._name).strip().lower()] = bytes(self._value).strip()
        self._name.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        disposition = self._headers.get(b"content-disposition")
        if disposition is None:
            raise form_faults.nameless("has no Content-Disposition header")
        options = parse_options_header(disposition)[1]
        if b"name" not in options:
            raise form_faults.nameless("has no name")
        name = self._checked_name(_text(options[b"name"]))
        # The library leaves `filename*=` out, by which some clients send a name that is not ASCII.
        extended = b"filename*" in disposition.lower()
        as_file = b"filename" in options or extended
        if name in self._texts and as_file:
            raise field_error(name, "came as a file; send it as plain text, without a file name")
        charset = parse_options_header(self._headers.get(b"content-type"))[1].get(b"charset", b"")
        unchosen = options.get(b"filename") == b"" and not extended
        self._part = _Part(name, as_file, unchosen, _text(charset).lower(), self._decoder())

    def _decoder(self) -> Callable[[bytes], bytes] | None:
        encoding = _text(self._headers.get(b"content-transfer-encoding", b"")).lower()
        if encoding in _AS_IT_IS:
            return None
        if encoding not in _DECODERS:
            message = f"a part's Content-Transfer-Encoding {encoding[:40]!r} is not known; send the part as it is"
            raise InvalidRequest("body", message)
        return _DECODERS[encoding]

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._part is not None
        self._part.data.write(memoryview(data)[start:end])

    def _on_part_end(self) -> None:
        part, self._part = self._part, None
        assert part is not None
        value = part.value()
        if part.name in self._texts:
            self.form.texts[part.name] = _checked_text(part, value)
        elif not part.as_file:
            hint = f"send it as a file (curl -F {part.name}=@photo.jpg); addresses are not fetched"
            raise field_error(part.name, f"came as text of {len(value)} bytes, for it has no filename; {hint}")
        elif not value and part.unchosen:
            raise field_error(part.name, "no file was chosen")
        elif part.name in self._lists:
            self.form.lists.setdefault(part.name, []).append(value)
        else:
            self.form.files[part.name] = value

    def _on_end(self) -> None:
        self.ended = True

    def _checked_name(self, name: str) -> str:
        if reason := form_faults.why_not(name, self._refused):
            raise field_error(name[:64], reason)
        if name not in self._files and name not in self._texts and name not in self._lists:
            known = ", ".join((*self._files, *self._lists, *self._texts))
            raise UnknownField(name[:64] or "(no name)", f"there is no such field; allowed are {known}")
        if name in self.form.files or name in self.form.texts:
            several = f", or several as {name}[]" if f"{name}[]" in self._lists else ""
            raise field_error(name, f"came more than once; send it once{several}")
        most = self._lists.get(name, 1)
        if len(self.form.lists.get(name, ())) >= most:
            raise field_error(name, f"came more than {most} times; {most} are allowed")
        return name


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _checked_text(part: _Part, value: bytes) -> str:
    if part.charset not in _UTF8:
        raise field_error(part.name, f"its Content-Type says charset={part.charset[:40]}; text must be UTF-8")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise field_error(part.name, f"byte {error.start} is not valid UTF-8; text must be UTF-8") from error
