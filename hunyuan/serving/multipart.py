"""Reads a multipart/form-data body strictly: every part is known, comes once, and is what it should be.

Knows the format, not the meaning: which fields there are comes from the caller, and values stay as sent. Nothing
is ever fetched from an address that a field contains.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, parse_options_header
from starlette.requests import Request

from hunyuan.errors import InvalidImage, InvalidPrompt, InvalidRequest, UnknownField
from hunyuan.serving.http_errors import NOT_MULTIPART, UnsupportedMediaType

MULTIPART = "multipart/form-data"


@dataclass
class Form:
    """The parts of one body: bytes of the files, text of the others."""

    files: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def field_error(name: str, message: str) -> InvalidRequest:
    """The error class, and so the code, that belongs to a field."""
    if name == "prompt":
        return InvalidPrompt(message)
    if name == "image":
        return InvalidImage(message, name)
    return InvalidRequest(name, message)


async def read_form(request: Request, files: Collection[str], texts: Collection[str], max_bytes: int) -> Form:
    """Reads the whole body.

    Args:
        files: names of the fields that must come as files.
        texts: names of the fields that must come as text.
        max_bytes: files up to this size stay in memory; the envelope lets no longer body through.

    Raises:
        UnsupportedMediaType: the body is not multipart/form-data.
        InvalidRequest: a part is unknown, doubled, of the wrong kind or not UTF-8, or the body is malformed.
    """
    media_type, options = parse_options_header(request.headers.get("content-type"))
    if media_type.decode("latin-1") != MULTIPART:
        raise UnsupportedMediaType(NOT_MULTIPART)
    collector = _Collector(files, texts)
    try:
        parser = FormParser(
            MULTIPART,
            collector.on_field,
            collector.on_file,
            collector.on_end,
            boundary=options.get(b"boundary", b""),
            config={"MAX_MEMORY_FILE_SIZE": max_bytes + 1, "UPLOAD_ERROR_ON_BAD_CTE": True},
        )
        async for chunk in request.stream():
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest("body", f"not well-formed {MULTIPART} ({error})") from error
    if not collector.ended:
        raise InvalidRequest("body", f"the {MULTIPART} body stops before its closing boundary")
    return collector.form


class _Collector:
    """Takes the parts as the parser finds them, and refuses one as early as it can."""

    def __init__(self, files: Collection[str], texts: Collection[str]) -> None:
        self.form = Form()
        self.ended = False
        self._files = files
        self._texts = texts

    def on_field(self, part: Field) -> None:
        name = self._checked_name(part)
        value = part.value or b""
        if name in self._files:
            hint = f"send it as a file (curl -F {name}=@photo.jpg); addresses are not fetched"
            raise field_error(name, f"came as text of {len(value)} bytes; {hint}")
        try:
            self.form.texts[name] = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise field_error(name, f"byte {error.start} is not valid UTF-8; text must be UTF-8") from error

    def on_file(self, part: File) -> None:
        name = self._checked_name(part)
        if name in self._texts:
            raise field_error(name, "came as a file; send it as plain text, without a file name")
        part.file_object.seek(0)
        self.form.files[name] = part.file_object.read()
        part.close()

    def on_end(self) -> None:
        self.ended = True

    def _checked_name(self, part: Field | File) -> str:
        name = (part.field_name or b"").decode("utf-8", "replace")
        if name not in self._files and name not in self._texts:
            known = ", ".join((*self._files, *self._texts))
            raise UnknownField(name[:64] or "(no name)", f"there is no such field; allowed are {known}")
        if name in self.form.files or name in self.form.texts:
            raise field_error(name, "came more than once; send it once")
        return name
