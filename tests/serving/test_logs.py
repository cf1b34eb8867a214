"""The log: JSON lines, one a request, nothing of what a request holds; the figures made of the same facts."""

from __future__ import annotations

import json
import logging
import re
from io import StringIO

import pytest

from hunyuan.errors import Cancelled, DeadlineExceeded, HunyuanError, InvalidPrompt
from hunyuan.serving.http_errors import ShuttingDown
from hunyuan.serving.logs import LogForm, ServiceLog, log_request, request_record
from hunyuan.serving.metrics import metrics
from hunyuan.serving.records import EditRecord, GpuMemory, RequestRecord


def full_record() -> RequestRecord:
    facts = EditRecord(9, "4:3", 7, 8, admitted=True)
    facts.input_size, facts.output_size = (40, 30), (1024, 768)
    facts.pictures, facts.tokens, facts.steps_done, facts.queue_s = 1, 100, 8, 0.25
    facts.stages = {"think": 2.0, "denoise": 3.5, "total": 6.0, "a stage of tomorrow": 1.0}
    facts.gpu_memory = (GpuMemory(0, 1, 2, 3), GpuMemory(1, 4, 5, 6))
    call = RequestRecord("id-1", "/edit", started=10.0, ended=17.0, status=200, bytes_in=5, bytes_out=6)
    call.edit, call.caller = facts, "team-a"
    return call


def test_the_line_about_an_edit() -> None:
    assert request_record(full_record()) == {
        "event": "request",
        "request_id": "id-1",
        "path": "/edit",
        "caller": "team-a",
        "status": 200,
        "error": None,
        "seconds": 7.0,
        "proxy_s": 0.0,
        "bytes_in": 5,
        "bytes_out": 6,
        "prompt_chars": 9,
        "seed": 7,
        "images": 1,
        "pictures": 1,
        "input_size": "40x30",
        "output_size": "1024x768",
        "resolution": "4:3",
        "steps": 8,
        "steps_done": 8,
        "tokens": 100,
        "queue_s": 0.25,
        "stages": {"think": 2.0, "denoise": 3.5, "total": 6.0, "a stage of tomorrow": 1.0},
        "gpu_memory": [{"gpu": 0, "before": 1, "after": 2, "peak": 3}, {"gpu": 1, "before": 4, "after": 5, "peak": 6}],
    }


def test_the_line_about_a_refused_request_has_the_same_fields() -> None:
    call = RequestRecord("id-2", "/somewhere?else", error=InvalidPrompt("secret"), status=400)
    record = request_record(call)
    assert set(record) == set(request_record(full_record()))
    assert (record["path"], record["error"], record["steps"], record["stages"]) == (
        "other",
        "invalid_prompt",
        None,
        None,
    )
    assert "secret" not in json.dumps(record)


def test_lines_are_json_and_all_are_out_when_it_stops() -> None:
    stream = StringIO()
    log = ServiceLog(stream=stream)
    log.start()
    try:
        logging.getLogger("hunyuan.somewhere").info("two\nlines of %s", "text")
        try:
            raise ValueError("a reason")
        except ValueError:
            logging.getLogger("hunyuan.somewhere").exception("it failed")
        log_request(full_record())
    finally:
        log.stop()
        log.stop()
    first, second, third = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["message"], first["level"], first["logger"]) == ("two\nlines of text", "info", "hunyuan.somewhere")
    assert first["time"].endswith("+00:00")
    assert "ValueError: a reason" in second["traceback"]
    assert third["request_id"] == "id-1"
    assert logging.getLogger("hunyuan").propagate


def sample(name: str, **labels: str) -> float:
    from prometheus_client import REGISTRY

    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_figures_of_a_request() -> None:
    metrics()
    before = {
        "count": sample("hunyuan_requests_total", status="200", error=""),
        "tokens": sample("hunyuan_tokens_per_second_sum"),
        "steps": sample("hunyuan_steps_per_second_sum"),
        "denoise": sample("hunyuan_stage_seconds_sum", stage="denoise"),
    }
    metrics().request(full_record())
    assert sample("hunyuan_requests_total", status="200", error="") == before["count"] + 1
    assert sample("hunyuan_tokens_per_second_sum") == before["tokens"] + 50
    assert sample("hunyuan_steps_per_second_sum") == before["steps"] + 2
    assert sample("hunyuan_stage_seconds_sum", stage="denoise") == before["denoise"] + 3.5
    assert sample("hunyuan_gpu_memory_bytes", gpu="0", when="peak") == 3
    assert sample("hunyuan_gpu_memory_bytes", gpu="1", when="before") == 4
    assert sample("hunyuan_stage_seconds_count", stage="a stage of tomorrow") == 0


def test_only_an_admitted_edit_counts_as_cancelled() -> None:
    def count() -> float:
        return sample("hunyuan_cancellations_total", reason="disconnect")

    metrics()
    before = count()
    metrics().request(RequestRecord("x", error=Cancelled("gone"), status=499))
    assert count() == before
    call = full_record()
    call.error, call.status = Cancelled("gone"), 499
    metrics().request(call)
    assert count() == before + 1


@pytest.mark.parametrize("error", [ShuttingDown(), DeadlineExceeded("late"), Cancelled("gone")])
def test_an_edit_that_never_had_a_place_is_no_cancellation(error: HunyuanError) -> None:
    reason = {"shutting_down": "shutdown", "timeout": "deadline", "cancelled": "disconnect"}[error.code]
    call = RequestRecord("x", "/edit", error=error, status=error.status)
    call.edit = EditRecord(9, "auto", None, None)
    before = sample("hunyuan_cancellations_total", reason=reason)
    metrics().request(call)
    assert sample("hunyuan_cancellations_total", reason=reason) == before
    call.edit.admitted = True
    metrics().request(call)
    assert sample("hunyuan_cancellations_total", reason=reason) == before + 1


def test_stages_of_an_edit_that_did_not_finish_are_logged_and_not_measured() -> None:
    call = full_record()
    call.error, call.status = Cancelled("gone"), 499
    names = [("hunyuan_stage_seconds_count", {"stage": "denoise"}), ("hunyuan_tokens_per_second_count", {})]
    before = [sample(name, **labels) for name, labels in names]
    metrics().request(call)
    assert [sample(name, **labels) for name, labels in names] == before
    assert request_record(call)["stages"]["denoise"] == 3.5


def test_the_whole_request_is_measured_between_half_a_minute_and_a_minute() -> None:
    def count(le: str) -> float:
        return sample("hunyuan_request_seconds_bucket", status="200", le=le)

    metrics()
    edges = ["30.0", "35.0", "40.0", "45.0", "50.0", "60.0"]
    before = [count(le) for le in edges]
    call = full_record()
    call.ended = call.started + 37
    metrics().request(call)
    assert [count(le) - old for le, old in zip(edges, before, strict=True)] == [0, 0, 1, 1, 1, 1]
    page = RequestRecord("p", "/", started=0.0, ended=37.0, status=200)
    metrics().request(page)
    assert count("60.0") == before[-1] + 1


# --- for a person


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def written(log: ServiceLog) -> None:
    log.start()
    try:
        logging.getLogger("hunyuan.somewhere").warning("hm")
        for done in range(1, 101):
            log.progress("denoise", done, 100)
        log_request(full_record())
    finally:
        log.stop()


def test_a_terminal_gets_lines_and_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    written(ServiceLog(stream=stream))
    text = stream.getvalue()
    assert "\x1b[33m" in text
    assert re.search(r"denoise  \[#{30}\] 100/100", text)
    assert text.count("denoise  [") == 2  # the first and the last: the others came too soon after
    last = text.splitlines()[-1]
    assert last.endswith(
        "info     /edit 200, 7.00 s, 40x30 to 1024x768, seed 7, steps 8, tokens 100, "
        "think 2.00 s, denoise 3.50 s, a stage of tomorrow 1.00 s (id-1)"
    )


@pytest.mark.parametrize(
    ("form", "stream", "is_json"),
    [("auto", StringIO(), True), ("json", Terminal(), True), ("text", StringIO(), False), ("text", Terminal(), False)],
)
def test_the_form_can_be_chosen(form: LogForm, stream: StringIO, is_json: bool) -> None:
    written(ServiceLog(form, stream))
    lines = stream.getvalue().splitlines()
    assert all(line.startswith("{") for line in lines) == is_json
    if form == "json" or not stream.isatty():
        assert len(lines) == 2
        assert "\x1b" not in stream.getvalue()


def test_no_colours_where_nobody_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    written(ServiceLog(stream=stream))
    assert "\x1b[33m" not in stream.getvalue()
