#!/usr/bin/env python
"""What the service costs beside the engine: our server and a bare Starlette one, in turns, with an engine that does
nothing.

    scripts/benchmarks/service_overhead.py [--requests 200] [--limit-ms 10] [--prepare]

Both get the same 1 MB JPEG, read the same multipart form, open the picture with the same `read_picture` and answer with
the same 1.5 MB PNG from the same `encode_png`. The bare one decodes in its own process, on a thread, and has no
BentoML, no queue, no envelope, no checks of fields, no logs and no metrics: the difference of the two medians is the
price of those and of the processes that decode. Requests alternate between the two, one at a time, so that both see
the same machine. Exits 1 when the difference is over the limit.

With `--prepare` the engine makes its own copy of the picture first, as ours does. The bare server's allocator keeps
the memory of the last one; the service gives it back after each edit and is charged for new pages here.

It says nothing about many requests at once (`load_test.py` does), and nothing about the network: all is loopback.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hunyuan.compare.sample_photos import encoded, photo  # noqa: E402
from scripts.support.local_server import STAND_IN, LocalServer, local_server, percentile, wait_until_ready  # noqa: E402
from scripts.support.ports import free_port  # noqa: E402

OUT_SIZE = "1000x500"  # noise: 3 bytes per pixel
MAX_PIXELS = 50_000_000
ENVIRONMENT = {"STAND_IN_SIZE": OUT_SIZE}
WARM_UP = 10


def bare_app() -> Starlette:
    """The yardstick; made by uvicorn in a process of its own."""
    from hunyuan.pictures.reader import read_picture
    from hunyuan.requests import EditRequest
    from hunyuan.serving.png import encode_png
    from scripts.support.stand_in_service import engine_from_environment

    engine = engine_from_environment()

    def work(data: bytes, prompt: str) -> bytes:
        result = engine.run(EditRequest(prompt, [read_picture(data, MAX_PIXELS)]))
        return encode_png(result, model_name="stand-in", version="0")

    async def edit(request: Request) -> Response:
        from anyio.to_thread import run_sync

        async with request.form() as form:
            image, prompt = form["image"], str(form["prompt"])
            assert not isinstance(image, str)
            data = await image.read()
        return Response(await run_sync(work, data, prompt), media_type="image/png")

    async def readyz(request: Request) -> Response:
        return Response()

    return Starlette(routes=[Route("/edit", edit, methods=["POST"]), Route("/readyz", readyz)])


@contextmanager
def bare_server(environment: dict[str, str]) -> Iterator[LocalServer]:
    port = free_port()
    app = "scripts.benchmarks.service_overhead:bare_app"
    command = [sys.executable, "-m", "uvicorn", "--factory", app, "--port", str(port)]
    with subprocess.Popen(
        [*command, "--log-level", "warning"], cwd=ROOT, env=os.environ | environment | {"PYTHONPATH": str(ROOT)}
    ) as process:
        try:
            server = LocalServer(f"http://127.0.0.1:{port}", process)
            wait_until_ready(server)
            yield server
        finally:
            process.terminate()


@dataclass(frozen=True)
class Comparison:
    """Milliseconds of each request; `bytes_in` and `bytes_out` of one file."""

    service: list[float]
    bare: list[float]
    bytes_in: int
    bytes_out: int

    @property
    def added_ms(self) -> float:
        return statistics.median(self.service) - statistics.median(self.bare)


def compare(requests: int, prepare: bool = False) -> Comparison:
    environment = ENVIRONMENT | {"STAND_IN_PREPARE": str(int(prepare))}
    data = encoded(photo(2000, 1500, grain=12), "JPEG", quality=90)
    with (
        local_server(environment, STAND_IN) as ours,
        bare_server(environment) as bare,
        httpx.Client(base_url=ours.url, timeout=30) as to_ours,
        httpx.Client(base_url=bare.url, timeout=30) as to_bare,
    ):
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(requests + WARM_UP):
            order = (0, 1) if number % 2 else (1, 0)  # neither is always the one that finds the caches cold
            for which in order:
                seconds, size = one(to_bare if which else to_ours, data)
                if number >= WARM_UP:
                    times[which].append(seconds * 1e3)
    return Comparison(times[0], times[1], len(data), size)


def one(client: httpx.Client, data: bytes) -> tuple[float, int]:
    started = time.perf_counter()
    answer = client.post("/edit", files={"image": ("photo.jpg", data, "image/jpeg")}, data={"prompt": "make it blue"})
    seconds = time.perf_counter() - started
    if answer.status_code != 200:
        raise RuntimeError(f"{client.base_url} answered {answer.status_code}: {answer.text[:300]}")
    return seconds, len(answer.content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200, help="measured requests to each server (default 200)")
    parser.add_argument("--limit-ms", type=float, default=10.0, help="of the difference of the medians (default 10)")
    parser.add_argument("--prepare", action="store_true", help="the engine makes its own copy of the picture first")
    options = parser.parse_args()
    result = compare(options.requests, options.prepare)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, n={options.requests} each, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print(f"{result.bytes_in / 1e6:.2f} MB in, {result.bytes_out / 1e6:.2f} MB out, one request at a time, in turns")
    for name, times in (("this service", result.service), ("bare Starlette", result.bare)):
        print(f"{name:15} p50 {statistics.median(times):6.1f} ms   p95 {percentile(times, 95):6.1f} ms")
    print(f"added           p50 {result.added_ms:6.1f} ms   (limit {options.limit_ms:g})")
    return 1 if result.added_ms > options.limit_ms else 0


if __name__ == "__main__":
    sys.exit(main())
