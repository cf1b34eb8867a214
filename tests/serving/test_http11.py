"""What is refused as HTTP/1.1 because it can be read in two ways, and in which words."""

from __future__ import annotations

import h11
import pytest

from hunyuan.errors import HunyuanError
from hunyuan.serving.http11 import StrictConnection

HEAD = b"POST /edit HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def fault_of(data: bytes, piece: int = 65536) -> HunyuanError | None:
    """Feeds a server's side of a connection; returns what it was refused for."""
    connection = StrictConnection()
    for start in range(0, len(data), piece):
        connection.receive_data(data[start : start + piece])
        try:
            while connection.next_event() not in (h11.NEED_DATA, h11.PAUSED):
                pass
        except h11.RemoteProtocolError:
            assert connection.fault is not None
            return connection.fault
    return None


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "both Content-Length and"),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc", 400, "both Content-Length and"),
        (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400, "Content-Length headers disagree"),
        (HEAD + b"Content-Length: 3, 4\r\n\r\nabcd", 400, "Content-Length headers disagree"),
        (HEAD + b"Content-Length: +3\r\n\r\nabc", 400, "Content-Length is not a number"),
        (HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", 400, "Content-Length is not a number"),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, "not just `chunked`"),
        (HEAD + b"Transfer-Encoding: identity\r\n\r\n", 400, "not just `chunked`"),
        (HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "more than one Transfer-"),
        (HEAD + b"Transfer-Encoding:\x0bchunked\r\n\r\n", 400, "`Name: value`"),
        (HEAD + b"Transfer-Encoding : chunked\r\n\r\n", 400, "`Name: value`"),
        (HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n", 400, "goes on in the next line"),
        (HEAD + b"X: a\r\n\tb\r\n\r\n", 400, "goes on in the next line"),
        (HEAD + b"X: a\nContent-Length: 3\r\n\r\nabc", 400, "ends in LF alone"),
        (b"POST /edit HTTP/1.1\nHost: x\n\n", 400, "ends in LF alone"),
        (HEAD + b"X: a\x00b\r\n\r\n", 400, "`Name: value`"),
        (b"POST /edit HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "HTTP/1.0 knows no Transfer"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "this server speaks HTTP/1.1"),
        (b"GET /livez HTTP/1.9\r\nHost: x\r\n\r\n", 400, "this server speaks HTTP/1.1"),
        (b"POST /edit HTTP/1.1\r\n\r\n", 400, "no Host header"),
        (HEAD + b"Host: y\r\n\r\n", 400, "more than one Host"),
        (b"POST  /edit HTTP/1.1\r\nHost: x\r\n\r\n", 400, "`METHOD PATH HTTP/1.1`"),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400, "`METHOD PATH HTTP/1.1`"),
        (HEAD + b"X: " + b"a" * 17_000 + b"\r\n\r\n", 431, "16,384 bytes and 100 lines"),
        (HEAD + b"X: " + b"a" * 17_000, 431, "16,384 bytes and 100 lines"),
        (HEAD + b"X: a\r\n" * 100 + b"\r\n", 431, "16,384 bytes and 100 lines"),
        (CHUNKED + b"xyz\r\n", 400, "does not begin with its length in hex"),
        (CHUNKED + b"-1\r\n", 400, "does not begin with its length in hex"),
        (CHUNKED + b"2\r\nabcd\r\n", 400, "longer than it says"),
        (CHUNKED + b"1;" + b"e" * 70_000, 400, "a line between the chunks of its body is too long"),
        (CHUNKED + b"0\r\n" + b"T: a\r\n" * 20_000, 400, "a line between the chunks of its body is too long"),
        (CHUNKED + b"1\r\nx\r\n" * 5000, 400, "chunks of less than 128 bytes"),
    ],
)
@pytest.mark.parametrize("piece", [100, 65536])
def test_what_is_refused(data: bytes, status: int, message: str, piece: int) -> None:
    fault = fault_of(data, piece)
    assert fault is not None
    assert fault.status == status
    assert message in str(fault)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /livez HTTP/1.0\r\n\r\n",
        HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        HEAD + b"X: \xe9\r\nEmpty:\r\n\r\n",
        CHUNKED + b"5;note=a\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
        CHUNKED + b"1\r\nx\r\n" * 2000 + b"0\r\n\r\n",
        CHUNKED + b"400\r\n" + b"x" * 1024 + b"\r\n" + (b"200\r\n" + b"x" * 512 + b"\r\n") * 8000 + b"0\r\n\r\n",
        HEAD + b"X: " + b"a" * 15_000 + b"\r\n\r\n",
        HEAD + b"Content-Length: 9\r\n\r\na\nb\r\n c\n\n",  # a body may look like anything
    ],
)
@pytest.mark.parametrize("piece", [100, 65536])
def test_what_is_not(data: bytes, piece: int) -> None:
    assert fault_of(data, piece) is None


def test_the_second_request_of_a_connection_is_looked_at_as_well() -> None:
    connection = StrictConnection()
    connection.receive_data(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\nHost: x\n\n")
    assert isinstance(connection.next_event(), h11.Request)
    assert isinstance(connection.next_event(), h11.EndOfMessage)
    assert connection.next_event() is h11.PAUSED
    connection.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
    connection.send(h11.EndOfMessage())
    connection.start_next_cycle()
    with pytest.raises(h11.RemoteProtocolError):
        connection.next_event()
    assert "LF alone" in str(connection.fault)
