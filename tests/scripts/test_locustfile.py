"""The load script: what it sends is valid, and it tells a served edit from a shed and a failed one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.support.local_server import STAND_IN, local_server

ROOT = Path(__file__).parents[2]

# In a process of its own: importing locust replaces the standard library's sockets by gevent's.
JUDGE = """
import json, random, sys
from io import BytesIO
from types import SimpleNamespace as Answer
from PIL import Image
import locustfile as f

def png(size):
    buffer = BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return buffer.getvalue()

def kind(status, content=b"", fields=None, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = Answer(status_code=status, content=content, headers=headers, text="text")
    return list(f.judge(answer, fields or {}))

fields = [f.random_fields(random.Random(n), 3) for n in range(50)]
json.dump({
    "served": kind(200, png((4, 3)), {"seed": "7"}, X_Image_Size="4x3", X_Seed="7"),
    "size": kind(200, png((4, 3)), X_Image_Size="3x4"),
    "seed": kind(200, png((4, 3)), {"seed": "7"}, X_Image_Size="4x3", X_Seed="8"),
    "cut": kind(200, png((4, 3))[:-1], X_Image_Size="4x3"),
    "html": kind(200, b"<html>"),
    "full": kind(429, Retry_After="12"),
    "loading": kind(503),
    "late": kind(504),
    "bad": kind(400),
    "broken": kind(500),
    "no_answer": kind(0),
    "uploads": len({u.data for u in f.make_uploads()}),
    "fields": fields,
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def judged() -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", JUDGE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_answers_are_told_apart(judged: dict[str, list[object]]) -> None:
    assert judged["served"] == ["served", "", 0.0]
    assert judged["full"] == ["shed 429", "", 12.0]
    assert judged["loading"] == ["shed 503", "", 1.0]
    assert judged["late"] == ["timeout 504", "", 0.0]
    for name in ("size", "seed", "cut", "html", "bad", "broken", "no_answer"):
        assert judged[name][0] == "failed", name
        assert judged[name][1], name


@pytest.mark.slow
def test_what_is_sent_varies_and_is_within_bounds(judged: dict[str, object]) -> None:
    fields = judged["fields"]
    assert isinstance(fields, list)
    assert judged["uploads"] == 18
    assert len({f["prompt"] for f in fields}) == 6
    assert {f["steps"] for f in fields} == {"3"}
    assert any("seed" in f for f in fields)
    assert any("seed" not in f for f in fields)
    assert all(1 <= len(f["prompt"]) <= 4000 and 0 <= int(f.get("seed", 0)) < 2**63 for f in fields)


@pytest.mark.server
def test_a_short_run_sheds_and_does_not_fail() -> None:
    key = "3f9a-not-a-real-key-0217"
    settings = {"STAND_IN_SECONDS": "0.5", "HUNYUAN_QUEUE_SIZE": "1", "HUNYUAN_API_KEYS": f"load:{key}"}
    with local_server(settings, STAND_IN) as server:
        command = [sys.executable, "-m", "locust", "-f", str(ROOT / "locustfile.py"), "--headless", "--only-summary"]
        load = [
            "--host",
            server.url,
            "--users",
            "6",
            "--spawn-rate",
            "6",
            "--run-time",
            "6s",
            "--edit-steps",
            "2",
            "--stop-timeout",
            "5",  # an edit and the one behind it take a second; who waits to try again is not waited for
        ]
        own = os.environ | {"EDIT_API_KEY": key}
        done = subprocess.run([*command, *load], env=own, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"edits by outcome: (.*)", done.stdout)
    assert counts is not None, done.stdout + done.stderr
    assert "served: " in counts[1]
    assert "failed" not in counts[1]
    assert "shed 429: " in counts[1]
