"""A served queue with HUNYUAN_TEXT_BATCH: the same pictures as one at a time, and streams that think early."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from openai_events import events_of
from server_process import Server, photo_bytes, running

pytestmark = [pytest.mark.server, pytest.mark.slow]
WAIT_S = 240


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("together")
    with running(folder, MODEL_ID="demo", HUNYUAN_TEXT_BATCH="3", HUNYUAN_QUEUE_SIZE="8") as server:
        yield server


def edit(server: Server, seed: int) -> httpx.Response:
    fields = {"prompt": f"Make it {'much ' * seed}bluer", "seed": str(seed), "steps": "2"}
    return httpx.post(f"{server.url}/edit", data=fields, files={"image": photo_bytes()}, timeout=WAIT_S)


def test_pictures_in_company_are_those_of_each_alone(server: Server) -> None:
    seeds = range(5)
    alone = [edit(server, seed) for seed in seeds]
    with ThreadPoolExecutor(len(seeds)) as pool:
        together = list(pool.map(lambda seed: edit(server, seed), seeds))
    assert {answer.status_code for answer in [*alone, *together]} == {200}
    assert [answer.content for answer in together] == [answer.content for answer in alone]
    assert len({answer.content for answer in alone}) > 1
    for answer in together:
        line = server.request_line(answer.headers["X-Request-ID"])
        assert line["tokens"] > 0
        assert 0 <= line["queue_s"] <= line["seconds"]
        assert line["stages"]["think"] > 0


def test_whoever_hangs_up_holds_up_nobody(server: Server) -> None:
    def hang_up(seed: int) -> None:
        fields = {"prompt": "Make it redder", "seed": str(seed), "steps": "2"}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/edit", data=fields, files={"image": photo_bytes()}, timeout=0.2)

    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(edit, server, seed) for seed in (1, 2)]
        gone = [pool.submit(hang_up, seed) for seed in (8, 9)]
        answers += [pool.submit(edit, server, seed) for seed in (3, 4)]
        for future in gone:
            future.result()
        assert [future.result().status_code for future in answers] == [200] * 4
    assert httpx.get(f"{server.url}/livez").status_code == 200


def test_a_waiting_stream_hears_what_it_thinks(server: Server) -> None:
    def stream(seed: int) -> list[dict[str, object]]:
        body = {"prompt": "Make it bluer", "seed": str(seed), "steps": "2", "stream": "true", "stream_progress": "true"}
        files = {"image": photo_bytes()}
        with httpx.stream("POST", f"{server.url}/v1/images/edits", data=body, files=files, timeout=WAIT_S) as answer:
            assert answer.status_code == 200, answer.read()
            return list(events_of(answer))

    with ThreadPoolExecutor(4) as pool:
        streams = list(pool.map(stream, range(4)))
    for events in streams:
        kinds = [str(event["type"]) for event in events]
        assert kinds[-1] == "image_edit.completed", kinds
        assert "hunyuan.text" in kinds, kinds
    early = [
        any(e["type"] == "hunyuan.queue" for e in events[[e["type"] for e in events].index("hunyuan.text") :])
        for events in streams
    ]
    assert any(early), streams  # its text began before its turn
    assert not all(early), streams
