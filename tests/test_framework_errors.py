"""BentoML's own 429 and 504, which our service never lets it come to, wear the envelope all the same."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from server_process import assert_envelope, running

pytestmark = pytest.mark.server

FAULTY = Path(__file__).parent / "faulty"


def test_its_timeout_and_its_limit_of_requests(tmp_path: Path) -> None:
    with running(tmp_path, "impatient_service:Impatient", FAULTY) as server, ThreadPoolExecutor(3) as pool:
        began = time.monotonic()
        answers = list(pool.map(lambda _: httpx.post(f"{server.url}/edit", json={}, timeout=20), range(3)))
        assert time.monotonic() - began < 10
    slow, *shed = sorted(answers, key=lambda answer: -answer.status_code)
    assert_envelope(slow, 504, "timeout")
    for answer in shed:
        assert_envelope(answer, 429, "queue_full")
        assert int(answer.headers["retry-after"]) > 0
