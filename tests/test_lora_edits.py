"""The built-in demo with an adapter: its pictures change, at scale 0 not by a bit, and answers name the adapter."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
from lora_files import random_pairs, write_kohya
from PIL import Image
from server_process import photo_bytes, running

from hunyuan import Editor, EditRequest, Settings
from hunyuan.checkpoint.adapters.keys import LinearLayers
from hunyuan.checkpoint.builtin import KINDS
from hunyuan.checkpoint.folder import read_config
from hunyuan.demo import REQUESTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def ink(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On attention, shared MLP and experts of the first layers."""
    layers = LinearLayers(read_config(KINDS["demo"].folder(cache)))
    names = [
        name for name in layers.specs if name.startswith(("model.layers.0.", "model.layers.1.")) and ".wg" not in name
    ]
    kinds = {".self_attn.", ".shared_mlp.", ".experts."}
    assert all(any(kind in name for name in names) for kind in kinds)
    return write_kohya(
        tmp_path_factory.mktemp("lora") / "ink.safetensors", random_pairs(layers, names, 4, size=0.4), 4.0
    )


def edited(cache: Path, **settings: object) -> tuple[str, np.ndarray]:
    values = {"model_id": "demo", "device": "cpu", "cache_dir": cache, **settings}
    editor = Editor.load(Settings.model_validate(values))
    photo = Image.fromarray(np.linspace(0, 255, 128 * 128 * 3).reshape(128, 128, 3).astype(np.uint8))
    result = editor.run(EditRequest(REQUESTS[0], images=[photo], seed=7, bot_task="image"))
    return editor.model_name, np.asarray(result.image).astype(int)


def test_pictures_change_with_the_scale(cache: Path, ink: Path) -> None:
    name, plain = edited(cache)
    assert name == "demo"
    name, nothing = edited(cache, lora=f"{ink}:0")
    assert name == "demo+ink:0"
    assert np.array_equal(nothing, plain)
    differences = []
    for scale in (0.5, 1.0):
        name, picture = edited(cache, lora=[(ink, scale)])
        assert name == ("demo+ink" if scale == 1 else f"demo+ink:{scale}")
        differences.append(np.abs(picture - plain).mean())
    assert 0.2 < differences[0] < differences[1], differences  # of 255


def test_two_halves_are_a_whole(cache: Path, ink: Path) -> None:
    """To what rounding in float32 does to a picture."""
    _, whole = edited(cache, lora=ink)
    name, halves = edited(cache, lora=f"{ink}:0.5,{ink}:0.5")
    assert name == "demo+ink:0.5+ink:0.5"
    assert np.abs(halves - whole).max() <= 1


@pytest.mark.server
def test_answers_name_it_and_not_its_path(cache: Path, ink: Path, tmp_path: Path) -> None:
    with running(tmp_path, MODEL_ID="demo", HUNYUAN_CACHE_DIR=str(cache), HUNYUAN_LORA=f"{ink}:0.5") as server:
        ready = httpx.get(f"{server.url}/readyz")
        assert ready.headers["x-model"] == "demo+ink:0.5"
        assert ready.text.startswith("ready: demo+ink:0.5: ")
        answer = httpx.post(
            f"{server.url}/edit",
            files={"image": ("photo.jpg", photo_bytes(), "image/jpeg")},
            data={"prompt": REQUESTS[0], "seed": "7"},
            timeout=120,
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-model"] == "demo+ink:0.5"
        said = [line["message"] for line in server.lines() if "merging the adapter" in line.get("message", "")]
        assert len(said) == 1
        assert said[0].startswith("merging the adapter ink:0.5 into ")
        assert str(ink.parent) not in said[0]
