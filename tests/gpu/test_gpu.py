"""What only a GPU can show: recorded values in fp32, bf16 against fp32, reproducible bytes, memory that comes back.

Run by scripts/checks/test_gpu.sh on a machine with a card; skipped elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hunyuan import Editor, EditRequest, Settings
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.generation.random_numbers import RequestRandom
from scripts import check_goldens
from scripts.goldens.folder import Golden

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch sees none"),
]
GOLDEN = Path(__file__).parents[1] / "data" / "golden_a"
SECTIONS = list(json.loads((GOLDEN / "manifest.json").read_text())["sections"])


@pytest.fixture(scope="module")
def shared() -> Golden:
    return Golden(GOLDEN, "cuda")


@pytest.mark.parametrize("section", SECTIONS)
def test_recorded_values_in_fp32(shared: Golden, section: str) -> None:
    assert check_goldens.check_section(shared, section).failures == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu") / "tiny"
    write_tiny_checkpoint(out, TinyShape(hidden=256, head_dim=128, heads=4, kv_heads=2, expert_width=128))
    return out


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def editor(request: pytest.FixtureRequest, folder: Path) -> Iterator[Editor]:
    yield Editor.load(Settings(model_id=folder, device="cuda", dtype=request.param, noise_device="cpu"))
    torch.cuda.empty_cache()


def photo(size: tuple[int, int] = (1000, 700)) -> Image.Image:
    return Image.effect_noise(size, 60).convert("RGB")


def test_one_seed_gives_the_same_bytes(editor: Editor) -> None:
    request = EditRequest("Make the sky orange", images=[photo()], seed=3, steps=4)
    first, second = (np.array(editor.run(request).image) for _ in range(2))
    assert np.array_equal(first, second)


def test_bf16_stays_close_to_fp32_on_the_cpu(editor: Editor, folder: Path) -> None:
    # Square, so that the posterior takes up as many random numbers in 16 bits as in 32 and the noise is the same.
    picture = photo((512, 512))
    request = EditRequest("Make the sky orange", images=[picture], seed=3, steps=4, do_sample=False)
    reference = Editor.load(Settings(model_id=folder, device="cpu", dtype="float32")).run(request)
    result = editor.run(request)
    assert result.cot_text == reference.cot_text
    assert result.size == reference.size
    difference = np.abs(np.array(result.image).astype(int) - np.array(reference.image).astype(int)).mean()
    assert difference < (3 if editor.settings.dtype == "bfloat16" else 0.5)


def test_memory_comes_back(editor: Editor) -> None:
    allocated = []
    for i in range(5):
        images = [photo()] * (i % 3)
        editor.run(EditRequest("Make the sky orange", images=images, seed=i, steps=2, resolution=f"{i + 3}:4"))
        torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated())
    assert allocated[1:] == [allocated[1]] * 4


def test_a_gpu_draws_16_bit_noise_as_rounded_fp32() -> None:
    random = RequestRandom(7, torch.device("cuda"), noise_on_cpu=False)
    shape = (1, 8, 13, 19)
    direct = torch.randn(shape, generator=torch.Generator("cuda").manual_seed(7), device="cuda", dtype=torch.bfloat16)
    assert torch.equal(random.normal(shape, torch.bfloat16, torch.device("cuda")), direct)
