"""A little OTLP receiver for the tests: keeps the spans that a process sends over HTTP.

Knows the protocol's one request. What is in the spans is the tests' business.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Spans:
    """`got`: what has come, as (service name, span, its attributes)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.got: list[tuple[str, Any, dict[str, Any]]] = []

    def of_request(self, request_id: str, seconds: float = 10) -> tuple[str, Any, dict[str, Any]]:
        end = time.monotonic() + seconds
        while True:
            found = [entry for entry in self.got if entry[2].get("hunyuan.request_id") == request_id]
            assert len(found) <= 1, found
            if found:
                return found[0]
            assert time.monotonic() < end, self.got
            time.sleep(0.02)


@contextmanager
def collecting() -> Iterator[Spans]:
    """Listens on loopback until the `with` ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                spans.got.extend(_spans_in(body, self.headers.get("Content-Encoding", "")))
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: the tests read the spans."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        spans = Spans(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield spans
        finally:
            server.shutdown()
            thread.join()


def _spans_in(body: bytes, encoding: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    assert encoding == ""
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _values(resource.resource.attributes).get("service.name", "")
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield service, span, _values(span.attributes)


def _values(attributes: Any) -> dict[str, Any]:
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in attributes}
