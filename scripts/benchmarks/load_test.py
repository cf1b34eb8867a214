#!/usr/bin/env python
"""Open-loop load: requests come at their own times, whether or not the server keeps up, as they do in life.

    scripts/benchmarks/load_test.py [--seconds 300] [--rate R] [--stand-in SECONDS] [--queue-size 8] [--deadline 300]

Starts a server with the built-in tiny checkpoint (or, with --stand-in, an engine that takes that long and paints
nothing), measures how many edits a second it does one after the other, and sends twice that rate (or --rate).
Afterwards each of these must hold, else it exits 1:

- every request got exactly one answer, and the server's log has exactly one line for it;
- an accepted one got its PNG within the deadline; every other one got 429 with `Retry-After`;
- a 429 came at once (within two seconds), and there were some: twice the capacity cannot be served;
- the server's resident memory afterwards is within 5 % of before.

It does not know how good the pictures are, and it measures this machine, which runs client and server together. Where
other work comes and goes on it, so does the capacity: the report says how much was really offered and served, and
--rate sets what is offered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hunyuan.compare.sample_photos import encoded, photo
from scripts.support.local_server import SERVICE, STAND_IN, LocalServer, key_headers, local_server, percentile

MEMORY_GROWTH = 1.05
REFUSED_WITHIN_S = 2.0
PATIENCE_S = 30.0  # beyond the deadline; an answer that takes longer counts as lost
MOST_REQUESTS = 100_000


@dataclass(frozen=True)
class Outcome:
    """How one request ended. `status` is 0 where there was no answer."""

    request_id: str
    status: int
    code: str
    seconds: float
    late_s: float  # how much later than planned it was sent: the client's own trouble


@dataclass
class Load:
    """A run, with everything that is judged."""

    rate: float
    deadline_s: float
    sent: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    mib_before: float = 0.0
    mib_after: float = 0.0
    log: str = ""
    took_s: float = 0.0

    def violations(self) -> list[str]:
        found: list[str] = []
        per_id = Counter(o.request_id for o in self.outcomes)
        if len(per_id) != self.sent or any(count != 1 for count in per_id.values()):
            found.append(f"{self.sent} sent, {len(self.outcomes)} outcomes of {len(per_id)} requests")
        odd = Counter(f"{o.status} {o.code}" for o in self.outcomes if o.status not in {200, 429} or " " in o.code)
        found += [f"{count} ended with {what}" for what, count in odd.items()]
        served, shed = self.seconds_of(200), self.seconds_of(429)
        if served and max(served) > self.deadline_s:
            found.append(f"an accepted request took {max(served):.1f} s; the deadline is {self.deadline_s:g} s")
        if not served:
            found.append("no request was served")
        if not shed:
            found.append("none was refused, at twice the capacity")
        if shed and max(shed) > REFUSED_WITHIN_S:
            found.append(f"a refusal took {max(shed):.1f} s")
        if self.mib_after > self.mib_before * MEMORY_GROWTH:
            found.append(f"memory grew from {self.mib_before:.0f} to {self.mib_after:.0f} MiB")
        return found + self.violations_in_log(per_id)

    def violations_in_log(self, ids: Counter[str]) -> list[str]:
        lines = Counter(one for line in self.log.splitlines() for one in [request_id_in(line)] if one in ids)
        missing, double = len(ids) - len(lines), sum(count > 1 for count in lines.values())
        return [f"the server's log: {missing} requests missing, {double} double"] if missing or double else []

    def seconds_of(self, status: int) -> list[float]:
        return [o.seconds for o in self.outcomes if o.status == status]

    def print(self) -> None:
        print(f"{'outcome':28} {'count':>6} {'p50 s':>8} {'p95 s':>8} {'max s':>8}")
        for status, code in sorted({(o.status, o.code) for o in self.outcomes}):
            times = [o.seconds for o in self.outcomes if (o.status, o.code) == (status, code)]
            middle, high = statistics.median(times), percentile(times, 95)
            print(f"{status} {code:24} {len(times):6} {middle:8.2f} {high:8.2f} {max(times):8.2f}")
        late = max((o.late_s for o in self.outcomes), default=0.0)
        print(
            f"sent {self.sent}, answered {sum(o.status > 0 for o in self.outcomes)}; sent late by at most {late:.3f} s"
        )
        served = len(self.seconds_of(200)) / max(self.took_s, 1e-9)
        if served:
            print(f"offered {self.rate:.2f}/s, served {served:.2f}/s: {self.rate / served:.1f} times what was possible")
        growth = self.mib_after / self.mib_before - 1 if self.mib_before else math.nan
        print(f"server's memory {self.mib_before:.0f} MiB before, {self.mib_after:.0f} MiB after ({growth:+.1%})")


def request_id_in(line: str) -> str:
    """Of a line of the request log; "" for any other line."""
    try:
        record = json.loads(line)
    except ValueError:
        return ""
    return str(record.get("request_id", "")) if isinstance(record, dict) and record.get("event") == "request" else ""


def arrival_times(rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Independent arrivals, `rate` a second on average; at least one."""
    rng, times, now = random.Random(seed), [0.0], 0.0
    while len(times) < MOST_REQUESTS:
        now += rng.expovariate(rate)
        if now >= seconds:
            return times
        times.append(now)
    raise SystemExit(f"more than {MOST_REQUESTS:,} requests: lower --rate or --seconds")


async def send(client: httpx.AsyncClient, data: bytes, steps: int, name: str, late_s: float = 0.0) -> Outcome:
    started = time.perf_counter()
    try:
        answer = await client.post(
            "/edit",
            files={"image": ("photo.jpg", data, "image/jpeg")},
            data={"prompt": "make the sky red", "steps": str(steps), "seed": "1"},
            headers={"X-Request-ID": name},
        )
        status, code = answer.status_code, described(answer, name)
    except httpx.HTTPError as error:
        status, code = 0, f"no answer ({type(error).__name__})"
    return Outcome(name, status, code, time.perf_counter() - started, late_s)


def described(answer: httpx.Response, name: str) -> str:
    """One word for an answer that is as it should be; a sentence for one that is not."""
    if answer.headers.get("x-request-id") != name:
        return f"of another request ({answer.headers.get('x-request-id')})"
    if answer.status_code == 200:
        return "picture" if answer.content.startswith(b"\x89PNG") else "not a PNG"
    if answer.status_code == 429 and not answer.headers.get("retry-after", "").isdecimal():
        return "without Retry-After"
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return "without an envelope"


async def run_load(server: LocalServer, options: argparse.Namespace) -> Load:
    data = encoded(photo(800, 600), "JPEG", quality=90)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    timeout = httpx.Timeout(options.deadline + PATIENCE_S)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=timeout, headers=key_headers()) as client:
        alone = [await send(client, data, options.steps, f"alone-{n}") for n in range(options.warm_up + 1)]
        if any(o.status != 200 for o in alone):
            raise SystemExit(f"the server does not serve: {alone[-1]}\n{server.log()[-3000:]}")
        capacity = 1 / statistics.median(o.seconds for o in alone[1:])
        load = Load(options.rate or 2 * capacity, options.deadline)
        print(f"capacity {capacity:.2f}/s one after the other; sending {load.rate:.2f}/s for {options.seconds:g} s")
        load.mib_before = server.rss_mib() or 0.0
        times = arrival_times(load.rate, options.seconds)
        started = time.perf_counter()
        load.sent, load.outcomes = len(times), await send_all(client, data, times, options.steps)
        load.took_s = time.perf_counter() - started
    await asyncio.sleep(1)  # the log is written outside the hot path
    load.mib_after, load.log = server.rss_mib() or 0.0, server.log()
    return load


async def send_all(client: httpx.AsyncClient, data: bytes, times: list[float], steps: int) -> list[Outcome]:
    started = time.perf_counter()
    tasks = []
    for number, planned in enumerate(times):
        await asyncio.sleep(max(0.0, started + planned - time.perf_counter()))
        late_s = time.perf_counter() - started - planned
        tasks.append(asyncio.create_task(send(client, data, steps, f"load-{number}", late_s)))
    return list(await asyncio.gather(*tasks))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300, help="for how long requests are sent (default 300)")
    parser.add_argument("--rate", type=float, help="requests a second (default: twice the measured capacity)")
    parser.add_argument("--stand-in", type=float, metavar="SECONDS", help="no model: an edit just takes so long")
    parser.add_argument("--queue-size", type=int, default=8)
    parser.add_argument("--deadline", type=float, default=300, help="seconds a request may take (default 300)")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=5, help="requests that measure the capacity (default 5)")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    settings = {
        "MODEL_ID": os.environ.get("MODEL_ID", "tiny"),
        "HUNYUAN_QUEUE_SIZE": str(options.queue_size),
        "HUNYUAN_REQUEST_TIMEOUT_S": str(options.deadline),
    }
    if options.stand_in is not None:
        settings["STAND_IN_SECONDS"] = str(options.stand_in)
    target = SERVICE if options.stand_in is None else STAND_IN
    with local_server(settings, target) as server:
        load = asyncio.run(run_load(server, options))
    load.print()
    violations = load.violations()
    for violation in violations:
        print(f"VIOLATION {violation}")
    print("failed" if violations else "all requests accounted for")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
