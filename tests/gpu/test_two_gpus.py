"""Layers over two GPUs against the same layers on one: the same text and the same picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from split_model import move_layers

from hunyuan import Editor, EditRequest, EditResult, Settings
from hunyuan.accel.prepare import HOPPER, capability, flashinfer_is_compiled
from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.compare.sample_photos import photo
from hunyuan.engines import native
from hunyuan.engines.native import NativeEngine
from hunyuan.generation.job import EditJob
from hunyuan.placement import Placement
from hunyuan.plan.choice import Gpu, choose

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.device_count() < 2, reason=f"needs two NVIDIA GPUs, and torch sees {torch.cuda.device_count()}"
    ),
    pytest.mark.filterwarnings("default"),  # what FlashInfer warns of is not ours to fix
]
FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
LAYERS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = TinyShape(hidden=256, head_dim=128, heads=4, kv_heads=2, expert_width=128, layers=LAYERS)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("gpu") / "tiny", shape)


@pytest.fixture(params=["bfloat16", "float32"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[NativeEngine]:
    editor = Editor.load(Settings(model_id=folder, device="cuda", dtype=request.param, moe_impl="eager"))
    assert isinstance(editor.engine, NativeEngine)
    yield editor.engine
    torch.cuda.empty_cache()


def edit(engine: NativeEngine) -> EditResult:
    request = EditRequest("Make the sky orange", images=[photo(1000, 700)], do_sample=False)
    return EditJob(engine.checkpoint, request, seed=3, steps=4, noise_on_cpu=True).run()


@pytest.mark.parametrize("counts", [(3, 2), (1, 4)])
def test_two_gpus_make_the_picture_that_one_makes(engine: NativeEngine, counts: tuple[int, int]) -> None:
    reference, model = edit(engine), engine.checkpoint.model
    move_layers(model.model, Placement.in_order([FIRST, SECOND], counts))
    result = edit(engine)
    assert {p.device for p in model.model.layers[-1].parameters()} == {SECOND}
    assert torch.cuda.current_device() == 0
    assert result.cot_text == reference.cot_text
    difference = np.abs(np.array(result.image).astype(int) - np.array(reference.image).astype(int))
    # Two GPUs of one kind run the same kernels on the same numbers.
    assert difference.max() == 0


@pytest.mark.parametrize("weights", ["bf16", "fp8", "4bit"])
def test_a_model_too_big_for_one_gpu_is_spread_on_the_fast_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    if capability(FIRST) != HOPPER or not flashinfer_is_compiled():
        pytest.skip("needs Hopper GPUs and FlashInfer's compiled kernels")
    shape = TinyShape(hidden=512, heads=4, kv_heads=2, head_dim=128, experts=8, topk=4, expert_width=256, layers=24)
    folder = write_tiny_checkpoint(tmp_path / "tiny", shape)
    settings = Settings(
        model_id=folder, device="cuda", weights=weights, moe_impl="flashinfer", noise_device="cpu", cache_dir=tmp_path
    )
    request = EditRequest("Make the sky orange", images=[photo(512, 512)], seed=3, steps=4, do_sample=False)
    reference = Editor.load(settings).run(request)
    plan = choose(read_config(folder), weights, "bf16", [Gpu("huge", 1 << 45)]).plan
    assert plan is not None
    monkeypatch.setattr(native, "visible_gpus", lambda device: [Gpu("a byte too small", plan.needed - 1)] * 2)
    spread = Editor.load(settings)
    assert isinstance(spread.engine, NativeEngine)
    layers = spread.engine.checkpoint.model.model.layers
    assert [next(layer.parameters()).device for layer in (layers[0], layers[-1])] == [FIRST, SECOND]
    result = spread.run(request)
    assert result.cot_text == reference.cot_text
    difference = np.abs(np.array(result.image).astype(int) - np.array(reference.image).astype(int))
    assert difference.mean() < 2
