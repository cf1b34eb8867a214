"""One OpenTelemetry span around each edit, switched on by the standard OTEL_* variables.

BentoML has tracing of its own, but it listens to its configuration file only and drops every span unless that file
sets a rate. This span is independent of it: it belongs to the trace that the client's `traceparent` names, goes where
`OTEL_TRACES_EXPORTER` or `OTEL_EXPORTER_OTLP_ENDPOINT` say, and carries the figures of `EditRecord`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from hunyuan.serving.records import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

_SWITCHES = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
OUR_NAME = "hunyuan-image"  # unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES give another
_NAMELESS = "unknown_service"  # what the library says where nobody gave a name
_GROUP = "opentelemetry_traces_exporter"  # where exporter packages announce themselves


class Tracing:
    """Off until `start` finds one of the switches set; off, an edit costs nothing."""

    def __init__(self) -> None:
        self._provider: TracerProvider | None = None

    def start(self) -> None:
        off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        if off or not any(os.environ.get(name) for name in _SWITCHES):
            return
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider  # reads the sampler from OTEL_*
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create()  # reads name and attributes from OTEL_*
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith(_NAMELESS):
            resource = resource.merge(Resource({SERVICE_NAME: OUR_NAME}))
        provider = TracerProvider(resource=resource)
        for name in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(","):
            found = [point for key in _keys(name.strip()) for point in entry_points(group=_GROUP, name=key)]
            if found:
                provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
                self._provider = provider
            elif name.strip() != "none":
                wanted = " or ".join(_keys(name.strip()))
                logger.warning("no tracing to %r: install the package of the exporter %s", name.strip(), wanted)

    def stop(self) -> None:
        if self._provider is not None:
            self._provider.shutdown()  # sends what is left

    @contextmanager
    def edit(self, headers: Mapping[str, str], record: RequestRecord) -> Iterator[None]:
        """The span of one edit. `headers` are only searched for the caller's trace."""
        if self._provider is None:
            yield
            return
        from opentelemetry import propagate

        tracer = self._provider.get_tracer("hunyuan")
        # A context of its own: the framework's current span is one that is never recorded.
        with tracer.start_as_current_span(
            "edit", context=propagate.extract(headers), record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            finally:
                _describe(span, record)


def _keys(name: str) -> tuple[str, ...]:
    """The names that the packages for OTLP use; OTLP over HTTP is what comes with this project."""
    if name != "otlp":
        return (name,)
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    return ("otlp_proto_grpc", "otlp") if protocol == "grpc" else ("otlp_proto_http",)


def _describe(span: Span, record: RequestRecord) -> None:
    from opentelemetry.trace import StatusCode

    edit, error = record.edit, record.error
    values: dict[str, str | float | None] = {"request_id": record.request_id, "error": error.code if error else None}
    if edit is not None:
        values |= {
            "seed": None if edit.seed is None else str(edit.seed),  # larger than a span's whole numbers may be
            "steps": edit.steps_done,
            "tokens": edit.tokens,
            "queue_s": edit.queue_s,
            **{f"stage.{name}_s": seconds for name, seconds in edit.stages.items()},
        }
    span.set_attributes({f"hunyuan.{name}": value for name, value in values.items() if value is not None})
    if error is not None and error.status >= 500:
        span.set_status(StatusCode.ERROR)
