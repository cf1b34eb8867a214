"""Two replicas with the built-in checkpoint behind HAProxy: edits are spread, one dies, figures are scraped."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from box import KEY, Box, needs_haproxy, proxy_before, replica, replicas_in
from server_process import ROOT, Server, assert_envelope

from scripts.support.ports import free_port

pytestmark = [pytest.mark.server, pytest.mark.slow, needs_haproxy]

EDITS = 10


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("box")
    with replicas_in(folder, MODEL_ID="demo") as servers, proxy_before(servers, folder / "proxy") as shared:
        shared.wait_for("gpu0", "gpu1")
        yield shared


def small(box: Box, request_id: str, **fields: Any) -> httpx.Response:
    return box.edit(request_id, "Make the sky red", seed=7, **{"steps": 1, "timeout": 300} | fields)


def test_edits_are_spread_and_a_seed_gives_one_picture_on_both(box: Box) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: small(box, f"spread-{n}"), range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.content for answer in answers}) == 1
    lines = [box.request_line(f"spread-{n}") for n in range(6)]
    counts = Counter(number for number, r in enumerate(box.replicas) for line in r.requests() if line["status"] == 200)
    assert min(counts[0], counts[1]) >= 1, counts
    waited = max(line["proxy_s"] for line in lines)
    assert waited > 2 * max(line["queue_s"] for line in lines)  # in the proxy, not behind an edit on a replica


def test_metrics_of_both_are_scraped(box: Box, tmp_path: Path) -> None:
    """By Prometheus itself, with deploy/prometheus.yml and the key from a file."""
    for server in box.replicas:
        assert_envelope(httpx.get(f"{server.url}/metrics"), 401, "unauthorized")
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus here (Debian's package)")
    with prometheus(box, tmp_path) as url:
        end = time.monotonic() + 30
        while (found := asked(url, "up")) != {"gpu0": 1.0, "gpu1": 1.0, "proxy": 1.0}:
            assert time.monotonic() < end, found
            time.sleep(0.2)
        assert asked(url, "hunyuan_ready") == {"gpu0": 1.0, "gpu1": 1.0}
        assert min(asked(url, 'hunyuan_requests_total{status="200"}').values()) >= 1
        rules = httpx.get(f"{url}/api/v1/rules").json()["data"]["groups"][0]["rules"]
        assert {rule["name"] for rule in rules} >= {"HunyuanDown", "HunyuanNotReady", "HunyuanQueueWait"}
        assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    about_the_proxy = set(re.findall(r"\bhaproxy_\w+", (ROOT / "deploy/grafana.json").read_text()))
    about_the_proxy |= set(re.findall(r"\bhaproxy_\w+", (ROOT / "deploy/alerts.yml").read_text()))
    figures = httpx.get(f"{box.figures}/metrics").text
    assert {name for name in about_the_proxy if f"\n{name}{{" not in figures} == set()


@contextmanager
def prometheus(box: Box, folder: Path) -> Iterator[str]:
    settings = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    settings["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "key").write_text(KEY)
    places = {f"gpu{n}": f"127.0.0.1:{server.port}" for n, server in enumerate(box.replicas)}
    places["proxy"] = box.figures.removeprefix("http://")
    for job in settings["scrape_configs"]:
        if "authorization" in job:
            job["authorization"]["credentials_file"] = str(folder / "key")
        (static,) = job.pop("static_configs")
        names = [target.partition(":")[0] for target in static["targets"]]
        job["static_configs"] = [
            {"targets": [places[name]], "labels": {"instance": name}} for name in names if name in places
        ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    shutil.copy(ROOT / "deploy/alerts.yml", folder)
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


def asked(url: str, expression: str) -> dict[str, float]:
    """By instance; empty while Prometheus does not listen yet."""
    try:
        answer = httpx.get(f"{url}/api/v1/query", params={"query": expression})
    except httpx.TransportError:
        return {}
    if answer.status_code != 200:
        return {}
    return {one["metric"]["instance"]: float(one["value"][1]) for one in answer.json()["data"]["result"]}


def kill_all_of(server: Server) -> None:
    """Without a word, as when its container is gone; the worker has a process group of its own."""
    master = psutil.Process(server.process.pid)
    every = [master, *master.children(recursive=True)]
    for process in every:
        process.suspend()  # or the worker may say that it shuts down, once its master is gone
    for process in every:
        process.kill()
    server.process.wait(10)


def served(box: Box) -> set[str]:
    return {line["request_id"] for server in box.replicas for line in server.requests() if line["status"] == 200}


def test_a_replica_killed_under_load_loses_nothing_silently(box: Box, tmp_path: Path) -> None:
    """Every request gets one answer: its picture, or 502 `replica_lost` with its id; the other replica goes on, and one
    in the place of the dead is taken in again."""
    victim = box.replicas[0]
    before = {number: len(server.requests()) for number, server in enumerate(box.replicas)}
    with ThreadPoolExecutor(EDITS) as pool:
        asked = [pool.submit(small, box, f"load-{n}") for n in range(EDITS)]
        end = time.monotonic() + 60
        while len(victim.requests()) < before[0] + 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        kill_all_of(victim)
        answers = [one.result() for one in asked]
    by_status = Counter(answer.status_code for answer in answers)
    assert set(by_status) <= {200, 502}, by_status
    assert by_status[502] <= 2  # the edit that ran, and one that came while the processes ended; the rest waited
    assert len({answer.content for answer in answers if answer.status_code == 200}) == 1
    for number, answer in enumerate(answers):
        if answer.status_code == 502:
            assert_envelope(answer, 502, "replica_lost")
            assert answer.json()["request_id"] == f"load-{number}"
    got = {f"load-{number}" for number, answer in enumerate(answers) if answer.status_code == 200}
    end = time.monotonic() + 5
    while len(missing := got - served(box)) > 1 and time.monotonic() < end:
        time.sleep(0.1)
    assert len(missing) <= 1  # a log's last line may die with its process
    assert len(box.replicas[1].requests()) - before[1] >= EDITS // 2
    box.wait_for("gpu1", seconds=5)
    print(f"answers: {dict(by_status)}")
    again = replica(tmp_path, 0, victim.port, MODEL_ID="demo")
    try:
        box.wait_for("gpu0", "gpu1")
        end = time.monotonic() + 60
        with ThreadPoolExecutor(2) as pool:
            while not again.requests():  # the first two may go to the other, and a line is written after its answer
                assert time.monotonic() < end, again.log.read_text()
                assert {answer.status_code for answer in pool.map(lambda _: small(box, ""), range(2))} == {200}
    finally:
        again.stop()
