"""Load as users make it, for locust: photos of several sizes and formats, several prompts, now and then a size wish.

    locust --headless --host http://127.0.0.1:8000 --users 4 --spawn-rate 1 --run-time 2m --edit-steps 8

A full queue is not a failure: 429 and 503 count as shed, and the user comes back after `Retry-After`. 504 counts by
itself, and so does a 4xx or a picture that is not what the headers say, as a failure. The counts are printed at the
end; the exit code is 1 when there was a failure. `--edit-steps` (or EDIT_STEPS) asks for that many denoising steps;
EDIT_API_KEY holds the key where the server wants one.

The photos are made up in memory, no file is read. It does not judge what the pictures show.
"""

from __future__ import annotations

import os
import random
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import gevent
from locust import HttpUser, between, events, task

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hunyuan.compare.sample_photos import MEDIA_TYPES, encoded, photo
from hunyuan.loopback import ask_no_proxy

ask_no_proxy()

SIZES = ((512, 512), (1024, 768), (768, 1024), (1280, 720), (2000, 1500), (300, 900))
PROMPTS = (
    "Make the sky orange",
    "Replace the background with a quiet street at night, keep the person as is",
    "Turn this into a watercolour painting with visible brush strokes and a paper texture",
    "把背景换成下雪的森林",
    'Add a sign that says "OPEN 24 h"',
    "Remove the car on the left. " * 12,
)
RESOLUTIONS = ("auto", "1024x1024", "1280x720", "3:4")
PNG_END = b"IEND\xaeB`\x82"  # the last chunk is the same in every PNG
MOST_PATIENCE_S = 60  # a user does not wait longer than this, whatever Retry-After says
COUNTS: Counter[str] = Counter()


class Upload(NamedTuple):
    name: str
    data: bytes
    media_type: str


class Verdict(NamedTuple):
    """`kind` is counted; `problem` is empty unless it is a failure; `wait_s` is what the server asks for."""

    kind: str
    problem: str = ""
    wait_s: float = 0.0


def make_uploads() -> list[Upload]:
    """Every size in every format."""
    return [
        Upload(f"{width}x{height}.{fmt.lower()}", encoded(photo(width, height, seed=number), fmt), media_type)
        for number, (width, height) in enumerate(SIZES)
        for fmt, media_type in MEDIA_TYPES.items()
    ]


def png_size(data: bytes) -> str | None:
    """WIDTHxHEIGHT as the file itself says, or None when it is no whole PNG."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or data[12:16] != b"IHDR" or not data.endswith(PNG_END):
        return None
    width, height = struct.unpack(">II", data[16:24])
    return f"{width}x{height}"


def judge(answer: Any, fields: dict[str, str]) -> Verdict:
    """What an answer is: served, shed, timeout or failed."""
    if answer.status_code in {429, 503}:
        wait = answer.headers.get("Retry-After", "")
        return Verdict(f"shed {answer.status_code}", wait_s=float(wait) if wait.isdecimal() else 1.0)
    if answer.status_code == 504:
        return Verdict("timeout 504")
    if answer.status_code != 200:
        return Verdict("failed", f"HTTP {answer.status_code}: {answer.text[:200]}")
    problem = picture_problem(answer.content, answer.headers, fields)
    return Verdict("failed" if problem else "served", problem)


def picture_problem(data: bytes, headers: Any, fields: dict[str, str]) -> str:
    """What is wrong with a 200; empty: nothing."""
    size = png_size(data)
    if size is None:
        return "a 200 that is no whole PNG"
    if size != headers.get("X-Image-Size"):
        return f"the PNG is {size}, X-Image-Size says {headers.get('X-Image-Size')}"
    for field, header in (("seed", "X-Seed"), ("steps", "X-Steps")):
        if field in fields and headers.get(header) != fields[field]:
            return f"{header} is {headers.get(header)}, {field}={fields[field]} was sent"
    return ""


def random_fields(rng: random.Random, steps: int | None) -> dict[str, str]:
    fields = {"prompt": rng.choice(PROMPTS)}
    if rng.random() < 0.7:
        fields["seed"] = str(rng.randrange(2**63))
    if rng.random() < 0.3:
        fields["resolution"] = rng.choice(RESOLUTIONS)
    if steps is not None:
        fields["steps"] = str(steps)
    return fields


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    steps = os.environ.get("EDIT_STEPS")
    parser.add_argument(
        "--edit-steps", type=int, default=int(steps) if steps else None, help="denoising steps (the server's default)"
    )


@events.test_stop.add_listener
def print_counts(environment: Any, **_: Any) -> None:
    counts = ", ".join(f"{kind}: {count}" for kind, count in sorted(COUNTS.items())) or "nothing"
    print(f"\nedits by outcome: {counts}", flush=True)


class Editor(HttpUser):
    """Somebody who edits one photo after the other and looks at each for a moment."""

    wait_time = between(0.5, 3)
    uploads: list[Upload] = []  # noqa: RUF012  made once, at the first user

    def on_start(self) -> None:
        if not Editor.uploads:
            Editor.uploads.extend(make_uploads())
        self.rng = random.Random()
        if key := os.environ.get("EDIT_API_KEY"):
            self.client.headers["Authorization"] = f"Bearer {key}"

    @task
    def edit(self) -> None:
        upload = self.rng.choice(self.uploads)
        fields = random_fields(self.rng, self.environment.parsed_options.edit_steps)
        # `catch_response`: locust would count every 429 as a failure.
        with self.client.post("/edit", files={"image": upload}, data=fields, catch_response=True) as answer:
            verdict = judge(answer, fields)
            answer.request_meta["name"] = f"/edit {verdict.kind}"
            if verdict.problem:
                answer.failure(f"{upload.name}: {verdict.problem}")
            else:
                answer.success()
        COUNTS[verdict.kind] += 1
        if verdict.wait_s:
            gevent.sleep(min(verdict.wait_s, MOST_PATIENCE_S))
