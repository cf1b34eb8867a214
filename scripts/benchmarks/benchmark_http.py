#!/usr/bin/env python
"""Measures edits over HTTP against one server on this machine; `benchmark_h100.sh` is the way in.

Reports p50/p95/p99 of what a client sees, the mean of each stage of `Server-Timing`, GPU memory as nvidia-smi has it,
and the set-up, in words that somebody else can repeat. What it cannot know it calls "not known": of a server that
somebody else started it sees headers and hardware, not the settings.

Exits 1 when a request failed: figures of a run with failures are not figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hunyuan.compare.sample_photos import encoded, photo
from scripts.support.local_server import LocalServer, key_headers, percentile, server_for

PROMPT = "Make the sky orange and keep everything else as it is"
NOT_INCLUDED = "network (loopback only), loading, warm-up, an empty page cache, other users of the GPU"
SETTING_NAMES = ("MODEL_ID", "ENGINE", "DEVICE", "DTYPE", "WEIGHTS", "DENSE", "MOE_IMPL", "NOISE_DEVICE")


@dataclass(frozen=True)
class Sample:
    """One served edit. `stages` are milliseconds."""

    seconds: float
    stages: dict[str, float]
    headers: httpx.Headers


def stages_of(header: str) -> dict[str, float]:
    """`prepare;dur=12.3, total;dur=45` as numbers; parts without a duration are left out."""
    stages = {}
    for part in header.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        for parameter in parameters:
            if parameter.startswith("dur="):
                stages[name] = float(parameter[4:])
    return stages


def edit(client: httpx.Client, data: bytes, fields: dict[str, str]) -> Sample:
    started = time.perf_counter()
    answer = client.post("/edit", files={"image": ("photo.jpg", data, "image/jpeg")}, data=fields)
    seconds = time.perf_counter() - started
    if answer.status_code != 200:
        raise SystemExit(f"failed: HTTP {answer.status_code}: {answer.text[:500]}")
    return Sample(seconds, stages_of(answer.headers.get("server-timing", "")), answer.headers)


def measure(server: LocalServer, options: argparse.Namespace, data: bytes) -> tuple[list[Sample], float, int | None]:
    """The samples, the seconds of the whole run, and the largest GPU memory seen, in MiB."""
    fields = {"prompt": PROMPT, "resolution": options.resolution, "seed": str(options.seed)}
    if options.steps is not None:
        fields["steps"] = str(options.steps)
    with httpx.Client(base_url=server.url, timeout=options.timeout, headers=key_headers()) as client:
        for _ in range(options.warm_up):
            edit(client, data, fields)
        with ThreadPoolExecutor(options.concurrency) as pool, GpuMemory() as memory:
            started = time.perf_counter()
            samples = list(pool.map(lambda _: edit(client, data, fields), range(options.n)))
            return samples, time.perf_counter() - started, memory.most_mib()


class GpuMemory:
    """The most memory in use on any GPU while the `with` lasts, looked at five times a second; None without a GPU."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._most: int | None = None

    def __enter__(self) -> GpuMemory:
        if shutil.which("nvidia-smi"):
            command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return self

    def most_mib(self) -> int | None:
        if self._process is not None:
            self._process.terminate()
            output, _ = self._process.communicate(timeout=10)
            self._process = None
            self._most = max((int(line) for line in output.split() if line.isdecimal()), default=None)
        return self._most

    def __exit__(self, *_: object) -> None:
        self.most_mib()


def gpus() -> str:
    if not shutil.which("nvidia-smi"):
        return "none (nvidia-smi is not available)"
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return "; ".join(done.stdout.strip().splitlines()) or "none"


def log_records(log: str) -> Iterable[dict[str, Any]]:
    for line in log.splitlines():
        if line.startswith("{"):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def log_facts(log: str) -> dict[str, str]:
    """What the log of our own server tells beyond the headers; empty for somebody else's."""
    facts = {}
    tokens = {str(r["tokens"]) for r in log_records(log) if r.get("event") == "request" and r.get("tokens") is not None}
    if tokens:
        facts["decoded tokens"] = " or ".join(sorted(tokens))
    device = next((line for line in log.splitlines() if "mixture of experts" in line), "")
    if "device " in device:
        facts["engine says"] = "device " + device.split("device ", 1)[1].rstrip('"} ').split('"')[0]
    return facts


def set_up(server: LocalServer, options: argparse.Namespace, sample: Sample, data: bytes) -> dict[str, str]:
    ours = server.process is not None
    settings = [f"{name}={os.environ[key]}" for name in SETTING_NAMES if (key := variable(name)) in os.environ]
    return {
        "GPU": gpus(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "torch here": metadata.version("torch"),
        "server": "started by this script" if ours else f"{server.url}, started by somebody else",
        "settings": (", ".join(settings) or "all default") if ours else "not known",
        "model": sample.headers.get("x-model", "not known"),
        **log_facts(server.log()),
        "steps": sample.headers.get("x-steps", "not known"),
        "size": f"{sample.headers.get('x-image-size', 'not known')} (asked for: {options.resolution})",
        "guidance": "the checkpoint's generation_config.json",
        "input": f"{options.input_size} JPEG, {len(data):,} bytes; prompt of {len(PROMPT)} characters; fixed seed",
        "requests": f"n={options.n} after {options.warm_up} warm-up, concurrency {options.concurrency}",
        "not included": NOT_INCLUDED,
    }


def variable(name: str) -> str:
    return name if name == "MODEL_ID" else f"HUNYUAN_{name}"


def print_figures(samples: list[Sample], seconds: float, most_mib: int | None) -> None:
    times = [sample.seconds for sample in samples]
    for percent in (50, 95, 99):
        note = "" if len(times) * (100 - percent) >= 100 else "  (few samples: this is the largest or nearly so)"
        print(f"  {f'p{percent}':14} {percentile(times, percent):9.3f} s{note}")
    print(f"  {'mean':14} {statistics.mean(times):9.3f} s")
    print(f"  {'throughput':14} {len(times) / seconds * 60:9.2f} edits/min")
    print("stages, mean of Server-Timing")
    for name in samples[0].stages:
        values = [sample.stages[name] for sample in samples if name in sample.stages]
        print(f"  {name:14} {statistics.mean(values):9.1f} ms")
    inside = statistics.mean(sample.stages.get("queue", 0) + sample.stages.get("total", 0) for sample in samples)
    print(f"  {'outside these':14} {statistics.mean(times) * 1e3 - inside:9.1f} ms  (upload, decoding, PNG, download)")
    print("GPU memory, most in use: " + (f"{most_mib:,} MiB" if most_mib is not None else "not available"))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=20, help="measured requests (default 20)")
    parser.add_argument("--warm-up", type=int, default=2, help="requests before that (default 2)")
    parser.add_argument("--concurrency", type=int, default=1, help="requests at the same time (default 1)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the server's)")
    parser.add_argument("--resolution", default="1024x1024", help="default 1024x1024")
    parser.add_argument("--input-size", default="1024x1024", help="of the made-up photo (default 1024x1024)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--timeout", type=float, default=600, help="seconds until a request counts as failed")
    parser.add_argument("--url", help="a running server on this machine; default: one is started")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    width, height = map(int, options.input_size.split("x"))
    data = encoded(photo(width, height), "JPEG", quality=90)
    with server_for(options.url) as server:
        samples, seconds, most_mib = measure(server, options, data)
        time.sleep(0.5)  # the log is written outside the hot path
        facts = set_up(server, options, samples[-1], data)
    print("set-up")
    for name, value in facts.items():
        print(f"  {name:14} {value}")
    print("latency seen by the client")
    print_figures(samples, seconds, most_mib)
    return 0


if __name__ == "__main__":
    sys.exit(main())
