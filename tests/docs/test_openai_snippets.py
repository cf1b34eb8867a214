"""The examples of docs/http.md for /v1, run as they stand: curl, Python with `openai`, JavaScript in Node.

The snippets of one language are one program, in the documents' order. The server is the real one with the scripted
editor of the fault tests, so that a picture takes a second.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from server_process import ROOT, Server, photo_bytes

pytestmark = pytest.mark.server

TEXT = (ROOT / "docs/http.md").read_text(encoding="utf-8").partition("## OpenAI's images API")[2]
ADDRESS = "http://127.0.0.1:8000"
NAMED = "mask: this model takes no mask; say in the prompt where to change what"


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photo.jpg").write_bytes(photo_bytes())
    (tmp_path / "hat.png").write_bytes(photo_bytes(fmt="PNG"))
    return tmp_path


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def formats(folder: Path, *names: str) -> list[str | None]:
    found = []
    for name in names:
        with Image.open(folder / name) as picture:
            found.append(picture.format)
    return found


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server: Server, folder: Path) -> None:
    script = "\n".join(snippets("bash")).replace(ADDRESS, server.url)
    assert script.count("curl ") == 5
    told = run(folder, "bash", "-euc", script)
    assert told.startswith("b'\\x89PNG'\n")
    assert NAMED in told
    assert '"object":"list"' in told
    assert len(json.loads((folder / "answer.json").read_text())["data"]) == 2
    events = (folder / "events.txt").read_text()
    assert events.startswith("event: hunyuan.queue\ndata: ")
    assert events.count("event: image_generation.partial_image\n") == 2


def test_python(server: Server, folder: Path) -> None:
    program = "\n".join(snippets("python")).replace(ADDRESS, server.url)
    told = run(folder, sys.executable, "-W", "error", "-c", program)
    assert formats(folder, "edited.png", "lighthouse.png", "preview-0.png", "preview-1.png") == ["PNG"] * 4
    assert formats(folder, "hat-7.webp", "hat-8.webp") == ["WEBP"] * 2
    assert "invalid_field mask " in told
    assert NAMED in told
    assert "denoise 2 2" in told
    assert told.endswith("['faulty']\n")


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_javascript(server: Server, folder: Path) -> None:
    (folder / "all.mjs").write_text("\n".join(snippets("js")).replace(ADDRESS, server.url))
    told = run(folder, "node", "all.mjs")
    made = ("edited.png", "image_generation.partial_image.png", "image_generation.completed.png")
    assert formats(folder, *made) == ["PNG"] * 3
    assert formats(folder, "hat-7.webp", "hat-8.webp") == ["WEBP"] * 2
    assert "denoise 2 2" in told
    assert "no transparency" in told
    assert told.endswith("faulty\n")


def test_the_answers_that_are_shown_have_the_fields_of_real_ones(server: Server, folder: Path) -> None:
    shown, error = (json.loads(text) for text in snippets("json"))
    curl = snippets("bash")[0].partition("\npython3")[0].replace(ADDRESS, server.url)
    run(folder, "bash", "-euc", curl)
    real = json.loads((folder / "answer.json").read_text())
    assert set(shown) == set(real)
    assert set(shown["data"][0]) == set(real["data"][0])
    assert set(shown["usage"]) == set(real["usage"])
    usage = shown["usage"]
    assert usage["input_tokens"] == sum(usage["input_tokens_details"].values())
    assert usage["output_tokens"] == sum(usage["output_tokens_details"].values())
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert error["error"]["message"] == NAMED
