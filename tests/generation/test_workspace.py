"""Edits on the engine's own buffers: the same results, nothing allocated, usable after whatever went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_safe import make_graph_safe
from quick_edits import edit, quick_checkpoint, quick_decode

from hunyuan import CancelToken, Editor, EditRequest, Settings
from hunyuan.accel.captured_decoding import CapturedDecoder
from hunyuan.errors import Cancelled, SequenceTooLong
from hunyuan.generation import prefill
from hunyuan.generation.decoding import DecodeStep
from hunyuan.generation.job import Checkpoint, EditJob
from hunyuan.generation.kv_cache import KVCache, KVPool, layer_devices
from hunyuan.generation.workspace import Workspace, plain_step
from hunyuan.requests import EditResult

CAPACITY = 1200
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(golden: Path) -> Iterator[Checkpoint]:
    with quick_checkpoint(golden) as checkpoint:
        yield checkpoint


@pytest.fixture(scope="module")
def workspace(checkpoint: Checkpoint) -> Workspace:
    return Workspace.create(checkpoint.model, CAPACITY, CapturedDecoder)


def job(checkpoint: Checkpoint, request: EditRequest, workspace: Workspace | None, **more: Any) -> EditJob:
    return EditJob(checkpoint, request, 42, 2, noise_on_cpu=True, workspace=workspace, **more)


def same(first: EditResult, second: EditResult) -> bool:
    # Attention may add up in another order over a longer buffer: a pixel may round the other way.
    pictures = [np.array(result.image).astype(int) for result in (first, second)]
    facts = [(result.cot_text, result.tokens, result.size) for result in (first, second)]
    return facts[0] == facts[1] and int(np.abs(pictures[0] - pictures[1]).max()) <= 1


EDITS = {
    "greedy with an image": {"images": ["src0.png"]},
    "sampled": {"do_sample": True, "temperature": 4.0, "max_new_tokens": 20},
    "sampled without top-k": {"do_sample": True, "temperature": 4.0, "top_k": 0, "max_new_tokens": 20},
    "another system prompt": {"use_system_prompt": "en_unified", "drop_think": True},
    "given text": {"cot_text": "<recaption>a red boat</recaption>"},
    "no text": {"bot_task": "image", "resolution": "320x192"},
    "one row": {"bot_task": "recaption", "resolution": "1:1", "guidance_scale": 1.0},
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.slow
def test_results_equal_those_on_own_buffers(
    checkpoint: Checkpoint, workspace: Workspace, golden: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The workspace serves one edit after another; none of them allocates keys or values."""
    changes = dict(EDITS[name])
    changes["images"] = [golden / "images" / image for image in changes.get("images", [])]
    own = job(checkpoint, edit(**changes), None).run()
    monkeypatch.setattr(KVCache, "allocate", lambda *_: pytest.fail("allocated"))
    assert same(job(checkpoint, edit(**changes), workspace).run(), own)


def test_the_prompt_is_not_copied_for_the_image_stage(
    checkpoint: Checkpoint, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, copy = [], KVCache.copy_prefix
    monkeypatch.setattr(KVCache, "copy_prefix", lambda self, *args: (copies.append(args[1]), copy(self, *args)))
    one = job(checkpoint, edit(), workspace)
    one.run()
    prompt = len(one.checkpoint.layouts.text_layout(one.system, "Make the sky orange", [], "think", None, False).ids)
    assert len(copies) == 1  # into the unguided row, up to the request's own words
    assert copies[0] < prompt


def test_a_request_too_large_uses_its_own_buffers(checkpoint: Checkpoint) -> None:
    small = Workspace.create(checkpoint.model, 64, CapturedDecoder)
    assert same(job(checkpoint, edit(), small).run(), job(checkpoint, edit(), None).run())


@pytest.mark.parametrize("capacity", [150, 340])
def test_buffers_too_small_for_one_stage_only(checkpoint: Checkpoint, capacity: int) -> None:
    """The text fits and the image does not: the text's keys are copied into the request's own buffers."""
    middle = Workspace.create(checkpoint.model, capacity, CapturedDecoder)
    request = edit(bot_task="recaption", max_new_tokens=24)
    assert same(job(checkpoint, request, middle).run(), job(checkpoint, request, None).run())


def test_without_a_decoder_the_buffers_serve_the_eager_loop(checkpoint: Checkpoint) -> None:
    plain = Workspace.create(checkpoint.model, CAPACITY, None)
    assert plain.decoder is None
    assert same(job(checkpoint, edit(), plain).run(), job(checkpoint, edit(), None).run())


def test_the_decoder_works_with_the_step_that_is_asked_for(checkpoint: Checkpoint) -> None:
    made = []

    def noted(kv: KVCache) -> DecodeStep:
        made.append(kv)
        return plain_step(checkpoint.model, kv)

    own = Workspace.create(checkpoint.model, CAPACITY, CapturedDecoder, step=noted)
    assert [(kv.rows, kv.capacity) for kv in made] == [(1, CAPACITY)]
    assert made[0].shares(own.pool.cache)
    assert same(job(checkpoint, edit(), own).run(), job(checkpoint, edit(), None).run())


def test_cancel_in_the_text_gives_the_buffers_back(checkpoint: Checkpoint, workspace: Workspace) -> None:
    before, token = job(checkpoint, edit(), workspace).run(), CancelToken()
    seen: list[int] = []

    def watch(stage: str, done: int, total: int) -> None:
        if stage == "think":
            seen.append(done)
            if done == 9:
                token.cancel()

    with pytest.raises(Cancelled):
        job(checkpoint, edit(), workspace, on_progress=watch, cancel=token).run()
    assert seen == [0, 1, 9]
    assert same(job(checkpoint, edit(), workspace).run(), before)


def test_an_error_gives_the_buffers_back(
    checkpoint: Checkpoint, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(EditJob, "_image_stage", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
        with pytest.raises(RuntimeError, match="broken"):
            job(checkpoint, edit(), workspace).run()
    with workspace.pool.lend():
        pass


def test_buffers_are_lent_once_at_a_time(checkpoint: Checkpoint, workspace: Workspace) -> None:
    with workspace.pool.lend(), pytest.raises(RuntimeError, match="lent to another request"):
        job(checkpoint, edit(), workspace).run()


@pytest.mark.parametrize("fast", [False, True])
def test_text_past_the_last_position_is_named(checkpoint: Checkpoint, workspace: Workspace, fast: bool) -> None:
    one = job(checkpoint, edit(), workspace if fast else None)
    one.look_up()
    prompt = len(checkpoint.layouts.text_layout(one.system, "Make the sky orange", [], "think", None, False).ids)
    one.config = replace(one.config, max_position_embeddings=prompt + 5)
    with pytest.raises(SequenceTooLong, match="text stage") as caught:
        one.run()
    assert (caught.value.length, caught.value.limit) == (prompt + 6, prompt + 5)


def test_what_every_step_needs_is_computed_once(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, table = [], prefill.rope_table
    monkeypatch.setattr(prefill, "rope_table", lambda *args: (calls.append(len(args[0])), table(*args))[1])
    request = edit(bot_task="image", resolution="1:1")
    EditJob(checkpoint, request, 42, 5, noise_on_cpu=True).run()
    assert calls.count(1 + 256) == 1


def test_the_stand_ins_for_fast_backends_agree(golden: Path, checkpoint: Checkpoint) -> None:
    """What the GPU's tests capture, on the CPU."""
    editor = Editor.load(Settings(model_id=golden / "checkpoint", device="cpu", dtype="float32", moe_impl="eager"))
    own = editor.engine.checkpoint
    make_graph_safe(own.model)
    own.model.decode_image = quick_decode
    fast = job(own, edit(), Workspace.create(own.model, CAPACITY, CapturedDecoder)).run()
    assert same(fast, job(checkpoint, edit(), None).run())


# --- sizes and places


def test_each_layer_may_have_its_own_device(checkpoint: Checkpoint) -> None:
    config = checkpoint.model.config
    devices = [CPU, torch.device("meta")] * (config.num_hidden_layers // 2)
    cache = KVCache.allocate(config, 1, 8, torch.float32, devices)
    assert [cache.buffers(i)[1].device for i in range(len(devices))] == devices
    with pytest.raises(ValueError, match="1 devices for"):
        KVCache.allocate(config, 1, 8, torch.float32, [CPU])
    assert list(layer_devices(checkpoint.model)) == [CPU] * config.num_hidden_layers


def test_lent_buffers_are_the_pools_own(checkpoint: Checkpoint) -> None:
    pool = KVPool(KVCache.allocate(checkpoint.model.config, 2, 8, torch.float32, CPU))
    with pool.lend() as kv:
        assert kv.first(2) is kv
        assert kv.first(1).rows == 1
        assert kv.first(1).shares(pool.cache)
        assert not kv.select(1).shares(pool.cache)
