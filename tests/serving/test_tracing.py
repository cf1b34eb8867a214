"""One span an edit, to where the standard variables say; none without them."""

from __future__ import annotations

import logging

import pytest
from span_collector import collecting

from hunyuan.errors import Cancelled, OutOfMemory
from hunyuan.serving.records import EditRecord, RequestRecord
from hunyuan.serving.tracing import Tracing

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
NAMES = ("SERVICE_NAME", "RESOURCE_ATTRIBUTES")
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _no_variables_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACES_EXPORTER", "SDK_DISABLED", "EXPORTER_OTLP_ENDPOINT", "EXPORTER_OTLP_TRACES_ENDPOINT", *NAMES):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def record_of_an_edit(request_id: str = "id-1") -> RequestRecord:
    facts = EditRecord(9, "4:3", 2**63 - 1, 8)
    facts.tokens, facts.steps_done, facts.queue_s, facts.stages = 100, 8, 0.25, {"denoise": 3.5}
    call = RequestRecord(request_id, "/edit", status=200)
    call.edit = facts
    return call


def trace(call: RequestRecord, **headers: str) -> None:
    tracing = Tracing()
    tracing.start()
    try:
        with tracing.edit(headers, call):
            pass
    finally:
        tracing.stop()


def test_no_variable_no_tracing(caplog: pytest.LogCaptureFixture) -> None:
    trace(record_of_an_edit())
    assert not caplog.records


@pytest.mark.parametrize(
    "switch", [{"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}]
)
def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, switch: dict[str, str]) -> None:
    with collecting() as spans:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url)
        for name, value in switch.items():
            monkeypatch.setenv(name, value)
        trace(record_of_an_edit())
    assert spans.got == []


@pytest.mark.parametrize(
    ("variable", "path"), [("OTEL_EXPORTER_OTLP_ENDPOINT", ""), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/v1/traces")]
)
def test_a_span_carries_the_figures_into_the_callers_trace(
    monkeypatch: pytest.MonkeyPatch, variable: str, path: str
) -> None:
    with collecting() as spans:
        monkeypatch.setenv(variable, f"{spans.url}{path}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
        trace(record_of_an_edit(), traceparent=TRACEPARENT)
        service, span, attributes = spans.of_request("id-1")
    assert (service, span.name, span.trace_id.hex()) == ("pictures", "edit", TRACE_ID)
    assert attributes == {
        "hunyuan.request_id": "id-1",
        "hunyuan.seed": "9223372036854775807",
        "hunyuan.steps": 8,
        "hunyuan.tokens": 100,
        "hunyuan.queue_s": 0.25,
        "hunyuan.stage.denoise_s": 3.5,
    }
    assert span.status.code == 0


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("OTEL_SERVICE_NAME", "", "hunyuan-image"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=theirs,a=b", "theirs"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=here", "hunyuan-image"),
    ],
)
def test_a_trace_has_a_service_name_that_nobody_set(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, name: str
) -> None:
    with collecting() as spans:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url)
        monkeypatch.setenv(variable, value)
        trace(record_of_an_edit())
        assert spans.of_request("id-1")[0] == name


def test_a_failure_of_ours_is_an_error_and_a_client_that_left_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [record_of_an_edit("full"), record_of_an_edit("left")]
    calls[0].error, calls[1].error = OutOfMemory("no room"), Cancelled("gone")
    with collecting() as spans:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url)
        for call in calls:
            trace(call)
        found = {name: spans.of_request(name) for name in ("full", "left")}
    assert {name: attributes["hunyuan.error"] for name, (_, _, attributes) in found.items()} == {
        "full": "out_of_memory",
        "left": "cancelled",
    }
    assert [span.status.code for _, span, _ in found.values()] == [2, 0]


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"OTEL_TRACES_EXPORTER": "unheard-of"}, "unheard-of"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp_proto_grpc"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "otlp_proto_grpc"),
    ],
)
def test_an_exporter_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variables: dict[str, str], wanted: str
) -> None:
    monkeypatch.setattr("hunyuan.serving.tracing.entry_points", lambda **_: [])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING):
        trace(record_of_an_edit())
    assert wanted in caplog.text
