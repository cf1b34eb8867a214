"""Layers over two GPUs, and a copy on each of two, against one GPU: the same text and the same picture."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from split_model import move_layers

from hunyuan import Editor, EditRequest, EditResult, Settings
from hunyuan.accel.prepare import HOPPER, capability, flashinfer_is_compiled
from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.load import copy_for_painting
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.compare.sample_photos import photo
from hunyuan.engines import native
from hunyuan.engines.native import NativeEngine
from hunyuan.errors import OutOfMemory
from hunyuan.generation.job import Checkpoint, EditJob
from hunyuan.generation.two_copies import TwoCopiesDenoiser
from hunyuan.placement import Placement
from hunyuan.plan.choice import Gpu
from hunyuan.plan.memory import Work, plan_copies
from hunyuan.requests import StepCacheName

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


def difference(first: EditResult, second: EditResult) -> np.ndarray:
    return np.abs(np.array(first.image).astype(int) - np.array(second.image).astype(int))


@pytest.mark.parametrize("step_cache", [None, "taylor", "spectrum"])
def test_two_copies_make_the_picture_of_both_rows_in_one_pass(
    engine: NativeEngine, folder: Path, step_cache: StepCacheName | None
) -> None:
    one = engine.checkpoint
    two = replace(one, second=copy_for_painting(one.model, read_config(folder), SECOND))
    request = EditRequest(
        "Make the sky orange", images=[photo(1000, 700)], do_sample=False, step_cache=step_cache, previews=1
    )
    shown: list[int] = []

    def run(checkpoint: Checkpoint) -> EditResult:
        return EditJob(
            checkpoint, request, 3, 8, noise_on_cpu=True, on_preview=lambda done, picture: shown.append(done)
        ).run()

    ours, theirs = run(two), run(one)
    assert ours.cot_text == theirs.cot_text
    assert shown == [4, 4]
    # Products of one row and of two add up in another order.
    apart = difference(ours, theirs)
    assert apart.max() <= 1 if one.model.dtype == torch.float32 else apart.mean() < 2
    assert difference(run(two), ours).max() == 0
    assert torch.cuda.current_device() == 0


@dataclass
class Fast:
    """A small checkpoint on the fast path, on as many GPUs of as many bytes as asked."""

    folder: Path
    settings: Settings
    patch: pytest.MonkeyPatch
    request = EditRequest("Make the sky orange", images=[photo(512, 512)], seed=3, steps=6, do_sample=False)

    def load(self, *memories: int) -> tuple[Editor, Checkpoint]:
        self.patch.setattr(native, "visible_gpus", lambda device: [Gpu("GPU", memory) for memory in memories])
        editor = Editor.load(self.settings)
        assert isinstance(editor.engine, NativeEngine)
        return editor, editor.engine.checkpoint


@pytest.fixture(params=["bf16", "fp8", "4bit"])
def fast(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fast:
    if capability(FIRST) != HOPPER or not flashinfer_is_compiled():
        pytest.skip("needs Hopper GPUs and FlashInfer's compiled kernels")
    # Behind a busy GPU a stream takes 1,000 launches, but not 1,030 before the host waits: a step must have far fewer.
    shape = TinyShape(hidden=512, heads=4, kv_heads=2, head_dim=128, experts=8, topk=4, expert_width=256, layers=12)
    folder = write_tiny_checkpoint(tmp_path / "tiny", shape)
    settings = Settings(
        model_id=folder,
        device="cuda",
        weights=request.param,
        moe_impl="flashinfer",
        noise_device="cpu",
        cache_dir=tmp_path,
    )
    return Fast(folder, settings, monkeypatch)


HUGE = 1 << 45


def test_a_model_too_big_for_one_gpu_is_spread_on_the_fast_path(fast: Fast) -> None:
    reference = fast.load(HUGE)[0].run(fast.request)
    config = native.choose_weights(read_config(fast.folder), fast.settings, [Gpu("huge", HUGE)], torch.bfloat16).config
    copies = plan_copies(config, [HUGE] * 2, Work.create(config))
    assert copies is not None
    spread, checkpoint = fast.load(*[copies.gpus[0].needed - 1] * 2)  # a byte too small, for two rows too
    assert checkpoint.second is None
    layers = checkpoint.model.model.layers
    assert [next(layer.parameters()).device for layer in (layers[0], layers[-1])] == [FIRST, SECOND]
    result = spread.run(fast.request)
    assert result.cot_text == reference.cot_text
    assert difference(result, reference).mean() < 2


def test_two_copies_on_the_fast_path(fast: Fast) -> None:
    reference = fast.load(HUGE)[0].run(fast.request)
    editor, checkpoint = fast.load(HUGE, HUGE)
    assert checkpoint.second is not None
    assert {p.device for p in checkpoint.second.model.layers.parameters()} == {SECOND}
    assert {p.device for p in checkpoint.model.parameters()} == {FIRST}
    result = editor.run(fast.request)
    assert result.cot_text == reference.cot_text
    assert difference(result, reference).mean() < 2
    assert difference(editor.run(fast.request), result).max() == 0  # the same bytes twice
    alone = replace(fast.request, guidance_scale=1.0)
    assert difference(editor.run(alone), fast.load(HUGE)[0].run(alone)).max() == 0  # the same work on the same GPU
    assert torch.cuda.current_device() == 0


def test_no_kernel_is_compiled_for_either_gpu_after_warm_up(fast: Fast, caplog: pytest.LogCaptureFixture) -> None:
    editor, _ = fast.load(HUGE, HUGE)
    caplog.set_level(logging.INFO, logger="hunyuan.accel.compile_report")
    editor.warm_up()
    caplog.clear()
    for words in (1, 40, 400):
        for size in ((512, 512), (800, 300)):
            editor.run(EditRequest("Make it" + " much" * words, images=[photo(*size)], seed=words, steps=2))
    assert [record.message for record in caplog.records] == []


def test_no_step_waits_for_the_second_gpu(fast: Fast) -> None:
    """A second GPU that is busy for a second does not keep the host from launching a whole step."""
    editor, _ = fast.load(HUGE, HUGE)
    editor.warm_up()
    predict, took, finished = TwoCopiesDenoiser.predict, [], []

    def behind_a_sleep(self: TwoCopiesDenoiser, latents: torch.Tensor, index: int) -> torch.Tensor:
        if index != 2:
            return predict(self, latents, index)
        torch.cuda.synchronize(SECOND)
        began = time.perf_counter()
        with torch.cuda.device(SECOND):
            torch.cuda._sleep(2_000_000_000)
            done = torch.cuda.Event()
            done.record()
        velocities = predict(self, latents, index)
        finished.append(done.query())
        took.append(time.perf_counter() - began)
        return velocities

    fast.patch.setattr(TwoCopiesDenoiser, "predict", behind_a_sleep)
    editor.run(fast.request)
    assert finished == [False], f"the host launched this step in {took} s, longer than the sleep of about 1 s"


def test_running_out_of_memory_on_the_second_gpu_is_survived(fast: Fast) -> None:
    editor, checkpoint = fast.load(HUGE, HUGE)
    assert checkpoint.second is not None
    expected, velocity = editor.run(fast.request), checkpoint.second.velocity

    def too_much(*args: Any) -> torch.Tensor:
        torch.empty(1 << 50, dtype=torch.uint8, device=SECOND)
        return velocity(*args)

    with fast.patch.context() as patch:
        patch.setattr(checkpoint.second, "velocity", too_much)
        with pytest.raises(OutOfMemory):
            editor.run(fast.request)
    assert torch.cuda.current_device() == 0
    assert difference(editor.run(fast.request), expected).max() == 0
