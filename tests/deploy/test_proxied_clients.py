"""What clients of /v1 and pages of other sites get through deploy/haproxy.cfg: streams, a model's name, CORS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import openai
import psutil
import pytest
from box import AUTHORIZATION, KEY, Box, needs_haproxy, proxy_before, replicas_in
from openai_events import assert_error, events_of

pytestmark = [pytest.mark.server, pytest.mark.slow, needs_haproxy]

STEP_S = 0.05
ORIGIN = "https://pages.example"
GENERATIONS = "/v1/images/generations"


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("box")
    pages = {"HUNYUAN_CORS_ORIGINS": ORIGIN}
    with (
        replicas_in(folder, target="faulty_service:HunyuanImage", **pages) as servers,
        proxy_before(servers, folder / "proxy", {**pages, "QUEUE_SIZE": "1"}) as shared,
    ):
        shared.wait_for("gpu0", "gpu1")
        yield shared


def wish(name: str, steps: int) -> dict[str, Any]:
    body = {"prompt": f"good {name}", "steps": steps, "stream": True, "stream_progress": True, "partial_images": 2}
    return {"json": body, "headers": AUTHORIZATION | {"X-Request-ID": name}}


def test_a_streams_events_come_one_by_one(box: Box) -> None:
    """Each when it happens: a proxy that gathers them would send all at the end."""
    with (
        httpx.Client(base_url=box.url, timeout=30) as client,
        client.stream("POST", GENERATIONS, **wish("watched", 20)) as answer,
    ):
        came = [(time.monotonic(), event) for event in events_of(answer)]
    assert came[-1][1]["type"] == "image_generation.completed"
    steps = [at for at, event in came if event["type"] == "hunyuan.stage" and event["stage"] == "denoise"]
    assert len(steps) >= 10
    assert steps[-1] - steps[0] > 10 * STEP_S
    assert max(later - one for one, later in pairwise(steps)) < 0.5 * (steps[-1] - steps[0])


def test_who_leaves_a_stream_stops_the_replica_behind_the_proxy(box: Box) -> None:
    with (
        httpx.Client(base_url=box.url, timeout=30) as client,
        client.stream("POST", GENERATIONS, **wish("leaver", 90)) as answer,
    ):
        next(event for event in events_of(answer) if event["type"] == "hunyuan.stage" and event["done"] >= 2)
    line = box.request_line("leaver")
    assert line["error"] == "cancelled"
    assert 0 < line["steps_done"] < 45


def test_the_model_is_told_by_its_name(box: Box) -> None:
    client = openai.OpenAI(api_key=KEY, base_url=f"{box.url}/v1", max_retries=0)
    assert client.models.retrieve("faulty").id == "faulty"
    for name in ("an other", "../edit", "faulty/../../edit"):
        with pytest.raises(openai.NotFoundError, match="no such model here"):
            client.models.retrieve(name)


def test_a_page_elsewhere_reads_the_proxys_own_errors(box: Box) -> None:
    def asked(origin: str, **headers: str) -> list[httpx.Response]:
        headers["Origin"] = origin
        return [httpx.post(f"{box.url}{path}", headers=headers, content=b"x") for path in ("/edit", GENERATIONS)]

    for answer in asked(ORIGIN):
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert {"X-Request-ID", "Retry-After"} <= set(answer.headers["access-control-expose-headers"].split(", "))
        assert "Origin" in answer.headers["vary"]
    for answer in asked("https://other.example"):
        assert "access-control-allow-origin" not in answer.headers
    good = httpx.get(f"{box.url}/v1/models", headers=AUTHORIZATION | {"Origin": ORIGIN})
    assert good.headers.get_list("access-control-allow-origin") == [ORIGIN]  # the replica's own, once
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{box.url}/edit", headers=preflight).headers["access-control-allow-origin"] == ORIGIN
    refused = httpx.options(f"{box.url}{GENERATIONS}", headers=preflight | {"Origin": "https://other.example"})
    assert_error(refused, 400, "invalid_field")


def test_a_replica_that_dies_leaves_no_stream_that_looks_whole(box: Box) -> None:
    """And a page elsewhere reads that nobody answers any more. The last test of this box."""

    def watched(name: str) -> None:
        with (
            httpx.Client(base_url=box.url, timeout=30) as client,
            client.stream("POST", GENERATIONS, **wish(name, 90)) as answer,
        ):
            for event in events_of(answer):
                seen.add(name)
                assert event["type"].startswith("hunyuan.") or event["type"].endswith("partial_image")

    seen = set[str]()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(watched, f"dies-{n}") for n in range(2)]
        end = time.monotonic() + 10
        while len(seen) < 2:
            assert time.monotonic() < end
            time.sleep(0.02)
        for server in box.replicas:
            for process in psutil.Process(server.process.pid).children(recursive=True):
                process.kill()
        for one in both:
            with pytest.raises(httpx.RemoteProtocolError):
                one.result()
    for server in box.replicas:
        server.stop()
    box.wait_for()
    for method, path in (("POST", "/edit"), ("POST", GENERATIONS), ("GET", "/v1/models")):
        answer = httpx.request(method, f"{box.url}{path}", headers=AUTHORIZATION | {"Origin": ORIGIN}, timeout=30)
        assert answer.status_code == 503
        assert answer.headers["access-control-allow-origin"] == ORIGIN
