"""A real `bentoml serve` process with the built-in tiny checkpoint: the one-line start works, curl edits."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image
from server_process import ROOT, Server, running, start
from test_jobs import END, OLD_PYDANTIC, sync_client, until

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, str]:
        return dict(json.loads(self.body))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server")) as shared:
        yield shared


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1000x700, with something on it, as a camera would store it."""
    y, x = np.mgrid[0:700, 0:1000]
    values = np.stack([x / 4, y / 3, 128 + 100 * np.sin(x / 60) * np.cos(y / 40)], axis=-1)
    path = tmp_path_factory.mktemp("photo") / "a photo, with; signs.jpg"
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def curl(server: Server, folder: Path, *arguments: str, path: str = "/edit") -> Answer:
    headers, body = folder / "headers", folder / "body"
    command = ["curl", "-sS", "-m", "100", "-D", str(headers), "-o", str(body), *arguments, f"{server.url}{path}"]
    subprocess.run(command, check=True)
    blocks = headers.read_text().strip().split("\n\n")
    status, *lines = blocks[-1].splitlines()  # the last block: curl shows "100 Continue" as one too
    pairs = (line.split(": ", 1) for line in lines)
    return Answer(int(status.split()[1]), {name.lower(): value for name, value in pairs}, body.read_bytes())


def image_field(photo: Path) -> str:
    return f'image=@"{photo}"'


def test_curl_edits_a_photo_and_a_seed_repeats_it(server: Server, photo: Path, tmp_path: Path) -> None:
    fields = ["-F", image_field(photo), "-F", "prompt=Make the sky red", "-F", "seed=42", "-F", "steps=2"]
    first = curl(server, tmp_path, *fields, "-H", "X-Request-ID: first")
    assert first.status == 200, first.body
    assert first.headers["content-type"] == "image/png"
    assert first.headers["x-request-id"] == "first"
    assert first.headers["x-seed"] == "42"
    assert first.headers["x-steps"] == "2"
    assert first.headers["x-model"] == "builtin-tiny-random"
    assert re.search(r"\btotal;dur=[0-9.]+", first.headers["server-timing"])
    with Image.open(tmp_path / "body") as picture:
        assert picture.format == "PNG"
        assert first.headers["x-image-size"] == f"{picture.width}x{picture.height}"
    again = curl(server, tmp_path, *fields)
    assert again.body == first.body
    assert again.headers["x-request-id"] != "first"
    assert_figures(server, first, photo)


def assert_figures(server: Server, answer: Answer, photo: Path) -> None:
    """What log, metrics and headers say about the edit that `answer` came from."""
    line = server.request_line("first")
    assert (line["status"], line["error"], line["path"]) == (200, None, "/edit")
    assert (line["prompt_chars"], line["seed"], line["images"], line["steps"]) == (16, 42, 1, 2)
    assert line["input_size"] == "1000x700"
    assert line["output_size"] == answer.headers["x-image-size"]
    assert line["tokens"] > 0
    assert set(line["stages"]) >= {"prepare", "prefill", "think", "first_step", "denoise", "vae", "total"}
    assert line["seconds"] >= line["stages"]["total"]
    assert line["gpu_memory"] == []
    assert line["bytes_out"] == len(answer.body)
    assert line["bytes_in"] > photo.stat().st_size
    timings = answer.headers["server-timing"]
    assert re.match(r"queue;dur=[0-9.]+, prepare;dur=", timings)
    figures = httpx.get(f"{server.url}/metrics").text
    for stage in ("think", "denoise", "vae"):
        assert re.search(rf'hunyuan_stage_seconds_count{{stage="{stage}"}} [1-9]', figures)
    assert re.search(r"hunyuan_tokens_per_second_count [1-9]", figures)


@pytest.mark.parametrize(
    ("arguments", "status", "code", "message"),
    [
        (["-F", "image=@PHOTO"], 400, "invalid_prompt", "prompt: this field is missing"),
        (["-F", "image=@LICENSE", "-F", "prompt=x"], 400, "invalid_image", "none of PNG, JPEG, WebP, HEIC and AVIF"),
        (["-F", "image=http://127.0.0.1/x.png", "-F", "prompt=x"], 400, "invalid_image", "came as text"),
        (["-F", "image=@PHOTO", "-F", "prompt=x", "-F", "step=2"], 400, "unknown_field", "step: "),
        (["-F", "image=@PHOTO", "-F", "prompt=x", "-F", "resolution=1024x16"], 400, "invalid_field", "at most 8:1"),
        (["-d", "prompt=x"], 415, "unsupported_media_type", "multipart/form-data"),
    ],
)
def test_curl_gets_a_clear_error(
    *, server: Server, photo: Path, tmp_path: Path, arguments: list[str], status: int, code: str, message: str
) -> None:
    filled = [
        image_field(photo) if a == "image=@PHOTO" else a.replace("@LICENSE", f"@{ROOT}/LICENSE") for a in arguments
    ]
    answer = curl(server, tmp_path, *filled)
    assert (answer.status, answer.error["error"]) == (status, code)
    assert message in answer.error["message"]
    assert answer.error["request_id"] == answer.headers["x-request-id"]


@pytest.mark.filterwarnings(*OLD_PYDANTIC)
def test_a_job_is_the_same_edit_and_stops_when_cancelled(server: Server, photo: Path) -> None:
    with sync_client(server) as client:
        task = client.edit.submit(image=photo, prompt="Make the sky red", seed=42, steps=2)
        until(lambda: task.get_status().value in END, 300)
        png = bytes(task.get())
        assert png == bytes(client.edit(image=photo, prompt="Make the sky red", seed=42, steps=2))
        other = client.edit.submit(image=photo, prompt="Make the sky red", steps=100)
        until(lambda: other.get_status().value == "in_progress")
        other.cancel()
        assert other.get_status().value == "canceled"


def test_a_large_upload_is_refused_without_breaking_the_connection(server: Server, tmp_path: Path) -> None:
    big = tmp_path / "big.png"
    big.write_bytes(bytes(22 * 1024 * 1024))
    for extra in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect:"]):
        answer = curl(server, tmp_path, "-F", f"image=@{big}", "-F", "prompt=x", *extra)
        assert (answer.status, answer.error["error"]) == (413, "payload_too_large"), extra


def test_the_log_names_settings_and_model_but_no_prompt(server: Server) -> None:
    log = server.log.read_text()
    assert "setting MODEL_ID=tiny" in [line.get("message") for line in server.lines()]
    assert "HUNYUAN_DEVICE=cpu" in log
    assert "builtin-tiny-random" in log
    assert "Make the sky red" not in log
    assert "a photo, with" not in log
    assert "Traceback" not in log
    assert httpx.get(f"{server.url}/readyz").text.startswith("ready: builtin-tiny-random")


def test_a_checkpoint_that_cannot_be_loaded_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    # In a container BentoML leaves restarting to whoever runs it; elsewhere it starts the worker again and again.
    failing = start(tmp_path, MODEL_ID=str(tmp_path / "empty"), BENTOML_CONTAINERIZED="true")
    try:
        assert failing.process.wait(60) != 0
    finally:
        failing.stop()
    last = failing.lines()[-1]
    assert last["level"] == "critical"
    assert last["message"].startswith("cannot serve: ")
    assert "config.json" in last["message"]


def test_an_unknown_setting_fails_the_start(tmp_path: Path) -> None:
    failing = start(tmp_path, HUNYUAN_STEPZ="3")
    assert failing.process.wait(60) != 0
    assert "HUNYUAN_STEPZ" in failing.log.read_text()
