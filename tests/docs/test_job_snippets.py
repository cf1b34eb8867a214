"""The examples of docs/http.md for jobs, run as they stand: curl, Python with BentoML's client, JavaScript in Node."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from server_process import ROOT, Server, photo_bytes

pytestmark = pytest.mark.server

TEXT = (ROOT / "docs/http.md").read_text(encoding="utf-8").partition("## Jobs")[2].partition("\n## ")[0]
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photo.jpg").write_bytes(photo_bytes())
    return tmp_path


def snippet(language: str, server: Server) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)
    return str(found).replace(ADDRESS, server.url)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server: Server, folder: Path) -> None:
    """One command after the other; `$TASK_ID` is what the first or the fourth of them told."""
    commands, told = snippet("bash", server).splitlines(), {}
    assert len(commands) == 5
    job_id = ""
    for action, command in zip(("submit", "status", "get", "retry", "cancel"), commands, strict=True):
        assert f"/edit/{action}" in command
        output = subprocess.run(
            ["bash", "-euc", command], cwd=folder, env={"TASK_ID": job_id}, capture_output=True, text=True, check=True
        ).stdout
        told[action] = json.loads(output) if action != "get" else {}
        if action in ("submit", "retry"):
            job_id = told[action]["task_id"]
        if action == "status":
            until_completed(server, job_id)
    assert (folder / "edited.png").read_bytes().startswith(b"\x89PNG")
    assert told["status"]["task_id"] == told["submit"]["task_id"] != told["retry"]["task_id"]
    assert told["cancel"].get("status") == "canceled" or told["cancel"]["error"] == "job_finished"


def until_completed(server: Server, job_id: str) -> None:
    end = time.monotonic() + 20
    while httpx.get(f"{server.url}/edit/status", params={"task_id": job_id}).json()["status"] != "completed":
        assert time.monotonic() < end
        time.sleep(0.05)


def test_python(server: Server, folder: Path) -> None:
    command = [sys.executable, "-c", snippet("python", server)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "edited.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_javascript(server: Server, folder: Path) -> None:
    (folder / "job.mjs").write_text(snippet("js", server))
    command = ["node", "job.mjs"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "edited.png").read_bytes().startswith(b"\x89PNG")


def test_the_answer_that_is_shown_has_the_fields_of_a_real_one(server: Server, folder: Path) -> None:
    shown = json.loads(snippet("json", server))
    files = {"image": ("photo.jpg", (folder / "photo.jpg").read_bytes())}
    real = httpx.post(f"{server.url}/edit/submit", data={"prompt": "good"}, files=files).json()
    assert list(shown) == list(real)
    assert real["status"] in ("pending", "in_progress")  # its turn may have come already
    assert shown["completed_at"] is real["completed_at"] is None
    assert len(shown["task_id"]) == len(real["task_id"])
