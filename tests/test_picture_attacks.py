"""Callers who send pictures made to take long, and a good one beside them, on a real server.

Its editor is a scripted one (`faulty/faulty_service.py`): what is attacked comes before the model.
"""

from __future__ import annotations

import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import httpx
import psutil
import pytest
from pictures.picture_files import PNG_SIGNATURE, chunk, jpeg_of_empty_scans
from server_process import Server, assert_envelope, photo_bytes
from slowness import slowness
from test_faults import faulty

pytestmark = pytest.mark.server

ATTACKERS = 4
GOOD_EDITS = 5
WAITS_AT_MOST_S = 20  # on a busy machine; before there were limits it was minutes


def slow_png() -> bytes:
    """Within every limit of structure: 49 million interlaced pixels that compress to nothing."""
    header = struct.pack(">IIBBBBB", 7000, 7000, 8, 2, 0, 0, 1)
    rows = zlib.compress(bytes(7000 * 7000 * 3 + 40_000), 1)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("attacked")
    with faulty(folder, HUNYUAN_QUEUE_SIZE="16", HUNYUAN_MAX_DECODE_S="2", HUNYUAN_PEER_SHARE="1") as running:
        yield running


def send(server: Server, data: bytes, timeout: float = 60, prompt: str = "good x") -> httpx.Response:
    return httpx.post(
        f"{server.url}/edit",
        files={"image": ("a", data)},
        data={"prompt": prompt, "steps": "1"},
        timeout=timeout,
        verify=False,
    )


@pytest.mark.parametrize(
    "data",
    [jpeg_of_empty_scans(7040, 7040, 25_000), jpeg_of_empty_scans(7000, 7000, 19), slow_png()],
    ids=["too many scans", "many scans", "interlaced"],
)
def test_a_good_caller_gets_pictures_beside_attackers(
    server: Server, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    done, statuses, good = threading.Event(), set[int](), photo_bytes()

    def attack() -> None:
        while not done.is_set():
            # The scripted editor fails at once: its answer would be a picture as large, and cost more than decoding.
            statuses.add(send(server, data, prompt="oom-prefill x").status_code)

    waits = []
    with ThreadPoolExecutor(ATTACKERS) as pool:
        attackers = [pool.submit(attack) for _ in range(ATTACKERS)]
        try:
            time.sleep(1)
            for _ in range(GOOD_EDITS):
                started = time.monotonic()
                answer = send(server, good)
                waits.append(time.monotonic() - started)
                assert answer.status_code == 200, answer.text
                assert httpx.get(f"{server.url}/livez").status_code == 200
        finally:
            done.set()
        for attacker in attackers:
            attacker.result()
    with capsys.disabled():
        print(f"\na good caller beside {ATTACKERS} attackers waited {sorted(waits)[len(waits) // 2]:.2f} s "
              f"(median), {max(waits):.2f} s at most; the attackers got {sorted(statuses)}")  # fmt: skip
    assert max(waits) < WAITS_AT_MOST_S * slowness()
    assert statuses <= {400, 429, 503}


def test_a_caller_who_leaves_takes_the_decoding_along(server: Server) -> None:
    """Nothing goes on for a picture whose caller has gone: the process that decoded it is replaced."""

    def killed() -> float:
        text = httpx.get(f"{server.url}/metrics").text
        name = 'hunyuan_decoders_killed_total{reason="caller"}'
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    picture, before, end = slow_png(), killed(), time.monotonic() + 120
    # When a patient caller leaves, a quick machine has decoded it; when a hasty one does, a busy one has not begun.
    for patience in cycle((0.4, 0.2, 0.1, 0.8, 1.6, 3.2)):
        if killed() > before:
            break
        assert time.monotonic() < end
        with suppress(httpx.TimeoutException):
            send(server, picture, timeout=patience, prompt="oom-prefill x")
        time.sleep(0.3)
    assert send(server, photo_bytes()).status_code == 200


def test_decoders_are_counted_and_end_with_the_server(tmp_path: Path) -> None:
    with faulty(tmp_path) as server:
        assert_envelope(send(server, b"no picture"), 400, "invalid_image")
        end = time.monotonic() + 60
        while "hunyuan_decoders 2.0" not in (text := httpx.get(f"{server.url}/metrics").text):
            assert time.monotonic() < end, text  # the second one is started beside the first one's work
            time.sleep(0.05)
        assert "hunyuan_decoding_seconds_count 1.0" in text
        whole = psutil.Process(server.process.pid)
        decoders = [p for p in whole.children(recursive=True) if "hunyuan.serving.decoder_process" in p.cmdline()]
        assert len(decoders) == 2
        assert not any(b"torch" in Path(f"/proc/{p.pid}/maps").read_bytes() for p in decoders)
        for process in [whole, *whole.children(recursive=True)]:
            if process not in decoders:
                process.kill()
        _, alive = psutil.wait_procs(decoders, 20)
        assert all(p.status() == psutil.STATUS_ZOMBIE for p in alive)
