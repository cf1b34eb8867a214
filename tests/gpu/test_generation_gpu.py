"""What only a GPU can show of generation: the captured decode step, and memory that comes back.

The fast backends have tests of their own; here plain torch stand-ins take their place, so that nothing but CUDA is
needed.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_safe import make_graph_safe
from PIL import Image

from hunyuan import CancelToken, Editor, EditRequest, Settings
from hunyuan.accel.captured_decoding import CapturedDecoder
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.errors import Cancelled
from hunyuan.generation.decoding import TextRun
from hunyuan.generation.job import Checkpoint, EditJob
from hunyuan.generation.sampling import Sampling, uniforms
from hunyuan.generation.text import TextPlan
from hunyuan.generation.workspace import Workspace
from hunyuan.requests import EditResult

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch sees none"),
]
DEVICE = torch.device("cuda", 0)
CAPACITY = 8192


@dataclass
class Engine:
    """A tiny checkpoint on the GPU in bf16; `plain` computes everything in the obviously right way."""

    plain: Checkpoint
    fast: Checkpoint
    workspace: Workspace


def load(folder: Path) -> Checkpoint:
    # By way of the CPU, where no fast backend is chosen.
    settings = Settings(model_id=folder, device="cpu", dtype="bfloat16", moe_impl="eager")
    checkpoint = Editor.load(settings).engine.checkpoint
    checkpoint.model.to(DEVICE)
    return checkpoint


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("gpu") / "tiny"
    write_tiny_checkpoint(folder, TinyShape(hidden=256, head_dim=128, heads=4, kv_heads=2, expert_width=128))
    plain, fast = load(folder), load(folder)
    make_graph_safe(fast.model)
    with torch.inference_mode():
        workspace = Workspace.create(fast.model, CAPACITY, CapturedDecoder)
    yield Engine(plain, fast, workspace)
    torch.cuda.empty_cache()


def photo(size: tuple[int, int] = (512, 384)) -> Image.Image:
    return Image.effect_noise(size, 60).convert("RGB")


def edit(**changes: Any) -> EditRequest:
    base: dict[str, Any] = {"prompt": "Make the sky orange", "do_sample": False, "max_new_tokens": 64}
    return EditRequest(**{**base, **changes})


def run(checkpoint: Checkpoint, request: EditRequest, workspace: Workspace | None, **more: Any) -> EditResult:
    return EditJob(checkpoint, request, 3, 4, noise_on_cpu=True, workspace=workspace, **more).run()


def png(result: EditResult) -> bytes:
    buffer = io.BytesIO()
    result.image.save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def waiting_for_the_device_is_an_error() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_step_is_captured(engine: Engine) -> None:
    assert engine.workspace.decoder is not None
    assert engine.workspace.decoder.graph is not None


@torch.inference_mode()
def test_a_step_does_not_wait_for_the_device(engine: Engine) -> None:
    decoder = engine.workspace.decoder
    assert decoder is not None
    decoder.step.position.zero_()
    decoder.step.count.zero_()
    torch.cuda.synchronize()
    with waiting_for_the_device_is_an_error():
        decoder.step.advance()
        decoder.graph.replay()
    torch.cuda.synchronize()
    assert int(decoder.step.position) == int(decoder.step.count) == 2


@pytest.mark.parametrize("images", [0, 1])
def test_captured_text_and_picture_equal_the_eager_ones(engine: Engine, images: int) -> None:
    request = edit(images=[photo()] * images)
    plain, fast = run(engine.plain, request, None), run(engine.fast, request, engine.workspace)
    assert (fast.cot_text, fast.tokens, fast.size) == (plain.cot_text, plain.tokens, plain.size)
    assert fast.tokens > 10
    pictures = [np.array(result.image).astype(int) for result in (plain, fast)]
    assert np.abs(pictures[0] - pictures[1]).mean() < 2


@pytest.mark.parametrize(
    "sampling", [Sampling(False), Sampling(True, 0.6, 1024, 0.95), Sampling(True, 30.0, 700, 0.99)]
)
@torch.inference_mode()
def test_replays_equal_the_same_step_uncaptured(engine: Engine, sampling: Sampling) -> None:
    decoder, model = engine.workspace.decoder, engine.fast.model
    assert decoder is not None
    plan = TextPlan.create(engine.fast.tokenizer, "think_recaption", True, True)
    logits = torch.randn(model.config.vocab_size, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    uniform = uniforms(torch.Generator().manual_seed(1), 100).to(DEVICE)
    texts, graph = [], decoder.graph
    try:
        for decoder.graph in (graph, None, graph):
            text = TextRun(plan, sampling, uniform, 5, 0)
            texts.append(decoder.decode(logits, text, lambda: None, lambda done: None))
    finally:
        decoder.graph = graph
    assert texts[0] == texts[1] == texts[2]
    if sampling.do_sample:
        assert len(set(texts[0])) > 3


@pytest.mark.parametrize("do_sample", [False, True])
def test_one_seed_gives_the_same_bytes(engine: Engine, do_sample: bool) -> None:
    request = edit(images=[photo()], do_sample=do_sample, temperature=5.0, max_new_tokens=40)
    assert png(run(engine.fast, request, engine.workspace)) == png(run(engine.fast, request, engine.workspace))


def test_memory_stays_flat_over_mixed_edits(engine: Engine) -> None:
    allocated = []
    for i in range(20):
        sizes: dict[str, Any] = {"images": [photo()] * (i % 3), "resolution": f"{i % 5 + 3}:4"}
        run(engine.fast, edit(bot_task="image" if i % 4 == 3 else "recaption", **sizes), engine.workspace)
        torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated())
    assert allocated[1:] == [allocated[1]] * 19


def test_a_cancel_in_the_text_leaves_the_buffers_usable(engine: Engine) -> None:
    before = run(engine.fast, edit(), engine.workspace)
    token = CancelToken()

    def watch(stage: str, done: int, total: int) -> None:
        if stage == "think" and done > 1:
            token.cancel()

    with pytest.raises(Cancelled):
        run(engine.fast, edit(), engine.workspace, on_progress=watch, cancel=token)
    assert png(run(engine.fast, edit(), engine.workspace)) == png(before)


@pytest.mark.parametrize("step_cache", [None, "taylor", "spectrum"])
def test_denoising_does_not_wait_for_the_device(engine: Engine, step_cache: str | None) -> None:
    """From the second step on: the first one sets up what all share."""
    context = waiting_for_the_device_is_an_error()
    entered = []

    def watch(stage: str, done: int, total: int) -> None:
        if stage == "denoise" and done == 1:
            context.__enter__()
            entered.append(True)
        if stage == "denoise" and done == total - 1:  # after the last step the job itself waits, to take the time
            context.__exit__(None, None, None)
            entered.clear()

    request = edit(bot_task="image", resolution="1:1", step_cache=step_cache)
    try:
        EditJob(engine.fast, request, 3, 8, True, watch, workspace=engine.workspace).run()
    finally:
        if entered:
            context.__exit__(None, None, None)
