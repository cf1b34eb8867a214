"""The scripts that measure: their arithmetic, their judgement, and a short form of each against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks.benchmark_http import log_facts, stages_of
from scripts.benchmarks.load_test import Load, Outcome, arrival_times, request_id_in
from scripts.support.local_server import existing_server, percentile

ROOT = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "HUNYUAN_DEVICE": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150, check=False)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([3.0], 50, 3.0), ([1, 2, 3, 4], 50, 2), (list(range(1, 101)), 95, 95), (list(range(1, 101)), 99, 99)],
)
def test_percentiles_are_values_that_occurred(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected
    assert percentile(values[::-1], percent) == expected


@pytest.mark.parametrize("url", ["http://example.org:8000", "http://10.0.0.1", "http://127.0.0.1.example.org"])
def test_only_this_machine_is_a_target(url: str) -> None:
    with pytest.raises(SystemExit, match="only a server on this machine"):
        existing_server(url)


def test_a_running_server_of_somebody_else_keeps_its_secrets() -> None:
    server = existing_server("http://127.0.0.1:8000/")
    assert server.url == "http://127.0.0.1:8000"
    assert (server.rss_mib(), server.log(), server.alive()) == (None, "", True)


def test_stages_come_from_the_header() -> None:
    assert stages_of('prepare;dur=12.5, vae;desc="x";dur=3, cached') == {"prepare": 12.5, "vae": 3.0}
    assert stages_of("") == {}


def test_what_the_log_tells() -> None:
    record = json.dumps({"event": "request", "tokens": 15})
    other = json.dumps({"message": "device cpu, dtype torch.float32, mixture of experts: eager"})
    assert log_facts(f"noise\n{other}\n{record}\n{{broken") == {
        "decoded tokens": "15",
        "engine says": "device cpu, dtype torch.float32, mixture of experts: eager",
    }
    assert log_facts("") == {}


def test_arrivals_are_open_loop_and_repeatable() -> None:
    times = arrival_times(10, 100)
    assert times == arrival_times(10, 100) == sorted(times)
    assert 850 < len(times) < 1150
    assert arrival_times(0.001, 1) == [0.0]
    with pytest.raises(SystemExit, match="lower --rate"):
        arrival_times(1e6, 300)


def load(*outcomes: Outcome, sent: int | None = None, log: str | None = None) -> Load:
    lines = [json.dumps({"event": "request", "request_id": o.request_id}) for o in outcomes]
    result = Load(1.0, 10.0, len(outcomes) if sent is None else sent, list(outcomes), 100.0, 104.0)
    result.log = "\n".join(lines) if log is None else log
    return result


SERVED, SHED = Outcome("a", 200, "picture", 5.0, 0.0), Outcome("b", 429, "queue_full", 0.1, 0.0)


def test_a_run_in_order_has_no_violations() -> None:
    assert load(SERVED, SHED).violations() == []
    assert request_id_in('{"event": "request", "request_id": "a"}') == "a"
    assert request_id_in('{"event": "start", "request_id": "a"}') == request_id_in("request a") == ""


@pytest.mark.parametrize(
    ("run_of", "words"),
    [
        (load(SERVED, SHED, sent=3), "3 sent, 2 outcomes"),
        (load(SERVED, SHED, SHED), "of 2 requests"),
        (load(SERVED, SHED, Outcome("c", 0, "no answer (ReadError)", 1, 0)), "1 ended with 0 no answer"),
        (load(SERVED, SHED, Outcome("c", 504, "timeout", 10, 0)), "1 ended with 504 timeout"),
        (load(SERVED, SHED, Outcome("c", 429, "without Retry-After", 0, 0)), "without Retry-After"),
        (load(SERVED, SHED, Outcome("c", 200, "not a PNG", 1, 0)), "not a PNG"),
        (load(SERVED, SHED, Outcome("c", 200, "picture", 11, 0)), "took 11.0 s; the deadline"),
        (load(SERVED, Outcome("b", 429, "queue_full", 3, 0)), "a refusal took 3.0 s"),
        (load(SERVED), "none was refused"),
        (load(SHED), "no request was served"),
        (load(SERVED, SHED, log=""), "2 requests missing, 0 double"),
        (load(SERVED, SHED, log=load(SERVED, SHED, SHED).log), "0 requests missing, 1 double"),
    ],
)
def test_each_rule_is_looked_at(run_of: Load, words: str) -> None:
    assert any(words in violation for violation in run_of.violations()), run_of.violations()


def test_memory_that_grows_is_a_violation() -> None:
    run_of = load(SERVED, SHED)
    run_of.mib_after = 106.0
    assert run_of.violations() == ["memory grew from 100 to 106 MiB"]


@pytest.mark.server
@pytest.mark.alone
def test_load_at_twice_the_capacity() -> None:
    done = run(
        sys.executable, "scripts/benchmarks/load_test.py", "--seconds", "10", "--stand-in", "0.2", "--warm-up", "3"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "429 queue_full" in done.stdout
    assert "all requests accounted for" in done.stdout


@pytest.mark.server
@pytest.mark.alone
def test_the_service_adds_little() -> None:
    done = run(sys.executable, "scripts/benchmarks/service_overhead.py", "--requests", "30", "--limit-ms", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1.50 MB out" in done.stdout


@pytest.mark.server
def test_the_benchmark_says_what_it_measured() -> None:
    done = run("scripts/benchmark_h100.sh", "-n", "1", "--warm-up", "0", "--steps", "1", "--resolution", "1:1")
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("demo", "p99", "not included", "prepare", "GPU memory", "n=1 after 0 warm-up"):
        assert words in done.stdout, words
