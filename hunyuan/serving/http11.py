"""HTTP/1.1 on one connection, stricter than the web server reads it, and under watch.

Knows uvicorn's protocol class and h11. Two things are put in between: `StrictConnection` refuses whatever another
program on the way might read as a different request, and `WatchedProtocol` tells `connections.py` what a connection
is doing and ends it when told to. docs/decisions.md says why here.
"""

from __future__ import annotations

import array
import fcntl
import functools
import json
import re
import termios
import uuid
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from hunyuan.errors import HunyuanError, InvalidRequest
from hunyuan.serving.connections import Connections, Phase
from hunyuan.serving.http_errors import HeadTooLarge
from hunyuan.serving.peers import Peers

MAX_HEAD_BYTES = 16 * 1024
MAX_HEAD_LINES = 100
FREE_CHUNKS = 2048
BYTES_A_CHUNK = 128  # on average, behind the free ones: each costs the event loop as much as a large one
_CONNECTION = "hunyuan.connection"  # the key in the ASGI scope's `state`
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_FOLDED = re.compile(rb"\n[ \t]")
_WORDS = {  # h11's messages, which quote the request, by what they begin with
    "Missing mandatory Host": "it has no Host header",
    "Found multiple Host": "it has more than one Host header",
    "conflicting Content-Length": "its Content-Length headers disagree",
    "bad Content-Length": "its Content-Length is not a number of bytes",
    "multiple Transfer-Encoding": "it has more than one Transfer-Encoding header",
    "Only Transfer-Encoding": "its Transfer-Encoding is not just `chunked`, the only one taken",
    "illegal request line": "its first line is not `METHOD PATH HTTP/1.1`",
    "no request line": "its first line is empty",
    "illegal header line": "one of its header lines is not `Name: value`",
    "illegal chunk header": "a chunk of its body does not begin with its length in hex",
    "malformed chunk footer": "a chunk of its body is longer than it says",
    "Receive buffer too long": "a line between the chunks of its body is too long",
    "unsupported HTTP version": "this server speaks HTTP/1.1",
}


def head_fault(received: bytes) -> HunyuanError | None:
    """What is wrong with a request's head, of which `received` may be the beginning or more than all.

    Line feeds without CR and folded lines are allowed to be read in two ways, and a proxy in front may take the other.
    """
    end = _END_OF_HEAD.search(received)
    head = received[: end.end()] if end else received
    if len(head) > MAX_HEAD_BYTES or head.count(b"\n") > MAX_HEAD_LINES:
        limits = f"{MAX_HEAD_BYTES:,} bytes and {MAX_HEAD_LINES} lines"
        return HeadTooLarge(f"the request's line and headers are longer than {limits}")
    if _BARE_LF.search(head):
        return bad_http("a line of its head ends in LF alone; each must end in CRLF")
    if _FOLDED.search(head):
        return bad_http("one of its headers goes on in the next line; write it in one")
    return None


def bad_http(what: str) -> HunyuanError:
    return InvalidRequest("request", f"it is not good HTTP/1.1: {what}")


class StrictConnection(h11.Connection):
    """h11's parser; `fault` is what a `RemoteProtocolError` was about, in words of ours."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.fault: HunyuanError | None = None
        self.requests = 0
        self.body_bytes = 0  # of all requests
        self._chunks = 0  # of this one
        self._chunk_bytes = 0

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            self._raise(head_fault(self.trailing_data[0]))
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            words = next((words for start, words in _WORDS.items() if str(error).startswith(start)), "it is malformed")
            self.fault = self.fault or bad_http(words)
            raise
        if isinstance(event, h11.Request):
            self.requests += 1
            self._chunks = self._chunk_bytes = 0
            self._raise(_framing_fault(event))
        elif isinstance(event, h11.Data):
            self._count(event)
        return event

    def _count(self, data: h11.Data) -> None:
        self.body_bytes += len(data.data)
        self._chunk_bytes += len(data.data)
        self._chunks += data.chunk_start
        if self._chunks > FREE_CHUNKS + self._chunk_bytes // BYTES_A_CHUNK:
            self._raise(bad_http(f"its body comes in chunks of less than {BYTES_A_CHUNK} bytes; send larger ones"))

    def _raise(self, fault: HunyuanError | None) -> None:
        if fault is not None:
            self.fault = fault
            raise h11.RemoteProtocolError(str(fault))


def _framing_fault(request: h11.Request) -> HunyuanError | None:
    if request.http_version not in (b"1.0", b"1.1"):
        return bad_http("this server speaks HTTP/1.1")
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" not in names:
        return None
    if b"content-length" in names:
        return bad_http("it has both Content-Length and Transfer-Encoding, so where it ends is anyone's guess")
    if request.http_version < b"1.1":
        return bad_http("HTTP/1.0 knows no Transfer-Encoding")
    return None


class _Counted:
    """A transport that knows how much of what was written the client's side has confirmed."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._written += len(data)
        self._transport.write(data)

    @property
    def taken(self) -> int:
        return self._written - self._transport.get_write_buffer_size() - self._unconfirmed()

    def _unconfirmed(self) -> int:
        """Bytes in the kernel's buffer, which takes megabytes from nobody's reading."""
        return self._kernel_says(termios.TIOCOUTQ)

    @property
    def unread(self) -> bool:
        """Whether the client has sent what nobody here has looked at yet."""
        return self._kernel_says(termios.FIONREAD) > 0

    def _kernel_says(self, question: int) -> int:
        connection, count = self._transport.get_extra_info("socket"), array.array("i", [0])
        try:
            fcntl.ioctl(connection.fileno(), question, count)
        except (AttributeError, OSError, ValueError):
            return 0  # closed already
        return count[0]


class WatchedProtocol(H11Protocol):
    """One connection, for `Connections`."""

    def __init__(self, connections: Connections, peers: Peers, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.conn: StrictConnection = StrictConnection()
        self.app_state = {**self.app_state, _CONNECTION: self}
        self.peer: str | None = None
        self.host: str | None = None
        self._connections, self._peers = connections, peers
        self._leaving = False

    # -- what uvicorn calls ------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Counted(transport))  # type: ignore[arg-type]
        self.host = self.client[0] if self.client else None
        self.peer = self._peers.of_connection(self.host)
        self._connections.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._leaving:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is not HTTP."""
        if self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete):
            self.flow.pause_reading()  # bytes behind a whole request that said it was the last: it gets its answer
            return
        self._connections.note("not_http")
        self.refuse(self.conn.fault or bad_http("it is malformed"))

    def shutdown(self) -> None:
        """uvicorn's, when it ends: whoever still sends may read the answer first; the sweep ends that soon."""
        if not self._leaving and self.phase is not Phase.DRAIN:
            super().shutdown()

    def _should_upgrade(self) -> bool:
        return False  # nothing here speaks websockets; the request is then one like any other

    # -- what `Connections` calls ------------------------------------------------------------------------------

    @property
    def unread(self) -> bool:
        return bool(self.transport.unread)

    @property
    def phase(self) -> Phase:
        if self._leaving:
            return Phase.LEAVING
        if self.transport.get_write_buffer_size() > 0:
            return Phase.ANSWER
        if self.cycle is not None and not self.cycle.response_complete:
            return Phase.WORKING
        if self.conn.their_state is h11.SEND_BODY:
            return Phase.DRAIN
        if self.conn.trailing_data[0]:
            return Phase.HEAD
        return Phase.SILENT if self.cycle is None else Phase.IDLE

    @property
    def moved(self) -> int:
        return self.conn.body_bytes + int(self.transport.taken)  # type: ignore[attr-defined]

    @property
    def turn(self) -> int:
        return self.conn.requests

    def refuse(self, error: HunyuanError, at_once: bool = False) -> None:
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_answer(error))
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._leaving = True
        if at_once or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.flow.resume_reading()  # closing with bytes unread would take the answer back
            self.transport.write_eof()

    def abort(self) -> None:
        self.transport.abort()


def _answer(error: HunyuanError) -> bytes:
    """The envelope of an error, as `envelope.py` makes it for requests that it gets to see."""
    request_id = uuid.uuid4().hex
    body = json.dumps({"error": error.code, "message": str(error), "request_id": request_id}).encode()
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"X-Request-ID: {request_id}",
        "Connection: close",
    ]
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        lines.append(f"Retry-After: {retry_after_s}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def host_of(scope: Scope) -> str | None:
    """The address at the other end of the request's connection, whatever a header says it is."""
    connection = scope.get("state", {}).get(_CONNECTION)
    if isinstance(connection, WatchedProtocol):
        return connection.host
    client = scope.get("client")
    return client[0] if client else None


def watch_over(server: uvicorn.Server, connections: Connections, peers: Peers) -> None:
    """Puts `WatchedProtocol` into a web server that is about to listen."""
    server.config.backlog = connections.fit_to_descriptors()
    made: Any = functools.partial(WatchedProtocol, connections, peers)
    server.config.http_protocol_class = made
