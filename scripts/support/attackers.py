"""Callers who mean harm, and a good one beside them who says how long it had to wait.

Knows sockets and loopback addresses: every 127.x.y.z is a caller of its own. Only ever pointed at a server of one's
own on loopback. Which attack it is, and what must hold, is the business of the tests and of
`scripts/checks/attack_service.py`.
"""

from __future__ import annotations

import functools
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx

BOUNDARY = "b"
OPENING = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'.encode()
CLOSING = (
    f'\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nharm\r\n--{BOUNDARY}--\r\n'.encode()
)
HALF_A_HEAD = b"POST /edit HTTP/1.1\r\nHost: x\r\nX-Part"


def head(length: int, *more: str, path: str = "/edit", method: str = "POST") -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: x",
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}",
        f"Content-Length: {length}",
        *more,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def connect(port: int, source: str = "127.0.0.1", receive_bytes: int | None = None) -> socket.socket:
    """Opens a connection from `source`; with `receive_bytes` it takes no more than about that without reading."""
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.bind((source, 0))
    connection.settimeout(10)
    connection.connect(("127.0.0.1", port))
    return connection


@contextmanager
def crowd(port: int, count: int, source: str, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """`count` connections that send `sent` and then nothing."""
    connections: list[socket.socket] = []
    try:
        for _ in range(count):
            connections.append(connect(port, source))
            with suppress(OSError):  # the server may have had enough of it already
                connections[-1].sendall(sent)
        yield connections
    finally:
        for connection in connections:
            connection.close()


def answer_of(connection: socket.socket, seconds: float = 10) -> bytes:
    """Everything that comes until the server closes the connection; what came so far where it does not in time."""
    connection.settimeout(seconds)
    received = b""
    with suppress(OSError):
        while piece := connection.recv(65536):
            received += piece
    return received


def open_after(connections: list[socket.socket], seconds: float) -> int:
    """How many connections the server has not closed when so much time is over; returns as soon as there is none."""
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < end:
            for key, _ in selector.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                try:
                    if key.fileobj.recv(65536):
                        continue
                except BlockingIOError:
                    continue
                except OSError:
                    pass
                selector.unregister(key.fileobj)
        return len(selector.get_map())


@functools.cache
def rubbish(megabytes: float) -> bytes:
    """A form whose picture is none."""
    return OPENING + bytes(int(megabytes * 1024 * 1024) - len(OPENING) - len(CLOSING)) + CLOSING


def upload_rubbish(port: int, megabytes: float, source: str) -> int:
    """A whole upload that is no picture; returns the answer's status, 0 where there was none."""
    body = rubbish(megabytes)
    with connect(port, source) as connection:
        connection.settimeout(60)
        try:
            connection.sendall(head(len(body), "Connection: close"))
            connection.sendall(body)
        except OSError:
            return 0
        status = answer_of(connection, 60)[9:12]
        return int(status) if status.isdigit() else 0


@dataclass
class GoodCaller:
    """Sends one edit after the other and does what `Retry-After` says. `waits` are seconds until the picture came."""

    url: str
    photo: bytes
    source: str = "127.0.0.1"
    headers: dict[str, str] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)

    def edit(self, client: httpx.Client) -> None:
        began = time.monotonic()
        while True:
            files = {"image": ("a.jpg", self.photo)}
            answer = client.post(f"{self.url}/edit", files=files, data={"prompt": "good", "steps": "1"})
            if answer.status_code != 429:
                break
            self.refusals.append(f"Retry-After: {answer.headers['retry-after']}")
            # A little later than said: at that very moment the server may close the connection that was idle so long.
            time.sleep(int(answer.headers["retry-after"]) + 0.25)
        self.waits.append(time.monotonic() - began)
        if answer.status_code != 200 or not answer.content.startswith(b"\x89PNG"):
            self.errors.append(f"{answer.status_code} {answer.text[:200]}")

    def probe(self, client: httpx.Client) -> None:
        for path in ("/livez", "/readyz", "/metrics"):
            began = time.monotonic()
            status = client.get(f"{self.url}{path}").status_code
            self.probes.append(time.monotonic() - began)
            if status != 200:
                self.errors.append(f"{path}: {status}")

    def report(self, title: str) -> str:
        return (
            f"{title}: {len(self.waits)} good edits, longest wait {max(self.waits, default=0):.2f} s; "
            f"{len(self.probes)} probes, longest {max(self.probes, default=0):.2f} s; "
            f"refused {len(self.refusals)} times {sorted(set(self.refusals))}; errors {self.errors}"
        )


@contextmanager
def good_caller(title: str, caller: GoodCaller) -> Iterator[GoodCaller]:
    """Works in a thread for as long as the caller is inside, at least one edit; prints how long it had to wait."""
    done = threading.Event()

    def work() -> None:
        transport = httpx.HTTPTransport(local_address=caller.source, verify=False)
        with httpx.Client(transport=transport, timeout=60, headers=caller.headers) as client:
            while True:
                try:
                    caller.edit(client)
                    caller.probe(client)
                except httpx.HTTPError as error:
                    caller.errors.append(repr(error))
                if done.wait(0.05):
                    return

    thread = threading.Thread(target=work, name="good caller")
    thread.start()
    try:
        yield caller
    finally:
        done.set()
        thread.join()
        print(caller.report(title))
