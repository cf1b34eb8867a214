"""Guidance on two copies of the network against both rows in one pass: the same picture, and who does what when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quick_edits import quick_decode
from torch import Tensor

from hunyuan import CancelToken, Editor, EditRequest
from hunyuan.checkpoint.load import copy_for_painting
from hunyuan.errors import Cancelled
from hunyuan.generation import two_copies
from hunyuan.generation.denoise import Denoiser
from hunyuan.generation.job import Checkpoint, EditJob
from hunyuan.generation.kv_cache import KVCache
from hunyuan.generation.two_copies import TwoCopiesDenoiser
from hunyuan.generation.workspace import Workspace
from hunyuan.model.moe import Experts
from hunyuan.model.network import HunyuanImage3
from hunyuan.requests import EditResult

CPU, META = torch.device("cpu"), torch.device("meta")
CAPACITY = 1200


@pytest.fixture(autouse=True)
def _quick_decoder(golden_editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The autoencoder's decoder is most of a tiny edit's time."""
    monkeypatch.setattr(golden_editor.engine.checkpoint.model, "decode_image", quick_decode)


@pytest.fixture(scope="module")
def one(golden_editor: Editor) -> Checkpoint:
    return golden_editor.engine.checkpoint


@pytest.fixture
def two(one: Checkpoint) -> Checkpoint:
    return replace(one, second=copy_for_painting(one.model, one.model.config, CPU))


def edit(**changes: Any) -> EditRequest:
    base: dict[str, Any] = {"prompt": "Make the sky orange", "do_sample": False, "max_new_tokens": 24}
    return EditRequest(**{**base, **changes})


def run(checkpoint: Checkpoint, request: EditRequest, steps: int = 3, **more: Any) -> EditResult:
    return EditJob(checkpoint, request, 42, steps, noise_on_cpu=True, **more).run()


def same(first: EditResult, second: EditResult) -> bool:
    # A product of one row may add up in another order than that of two: a pixel may round the other way.
    pictures = [np.array(result.image).astype(int) for result in (first, second)]
    return first.cot_text == second.cot_text and int(np.abs(pictures[0] - pictures[1]).max()) <= 1


EDITS: dict[str, dict[str, Any]] = {
    "thinking": {"bot_task": "recaption"},
    "a source": {"images": ["src0.png"], "bot_task": "image", "resolution": "256x256"},
    "another system prompt": {"use_system_prompt": "en_unified", "drop_think": True},
    "strong guidance": {"bot_task": "image", "resolution": "320x192", "guidance_scale": 7.0},
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("lent", [True, False])
@pytest.mark.slow
def test_the_picture_is_the_one_of_both_rows_in_one_pass(
    one: Checkpoint, two: Checkpoint, golden: Path, name: str, lent: bool
) -> None:
    changes = dict(EDITS[name])
    changes["images"] = [golden / "images" / image for image in changes.get("images", [])]
    workspace = Workspace.create(two.model, CAPACITY, None, two.second) if lent else None
    assert same(run(two, edit(**changes), workspace=workspace), run(one, edit(**changes)))


@pytest.mark.parametrize("name", ["taylor", "spectrum"])
@pytest.mark.slow
def test_each_row_has_a_step_cache_of_its_own(one: Checkpoint, two: Checkpoint, name: Any) -> None:
    request = edit(bot_task="image", resolution="256x256", step_cache=name)
    with passes_of(two.model) as first, passes_of(two.second) as second:
        ours = run(two, request, steps=10)
    assert same(ours, run(one, request, steps=10))
    assert 0 < len(first) == len(second) < 10


def test_previews_are_shown_as_ever(one: Checkpoint, two: Checkpoint) -> None:
    request, seen = edit(bot_task="image", resolution="256x256", previews=1), []
    for checkpoint in (two, one):
        run(checkpoint, request, on_preview=lambda done, picture: seen.append((done, np.array(picture).astype(int))))
    (ours, first), (theirs, second) = seen
    assert ours == theirs == 2
    assert np.abs(first - second).max() <= 1


def test_buffers_are_one_row_on_each_device_and_nothing_else_is_allocated(
    two: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace.create(two.model, CAPACITY, None, two.second)
    assert workspace.second is not None
    assert (workspace.pool.cache.rows, workspace.second.rows) == (1, 1)
    assert not any(buffer.any() for buffer in workspace.second.keys)
    monkeypatch.setattr(KVCache, "allocate", lambda *_: pytest.fail("allocated"))
    run(two, edit(bot_task="image", resolution="256x256"), workspace=workspace)
    assert all(buffer.any() for buffer in workspace.second.keys)


# --- who does what, when


class passes_of:  # noqa: N801 - reads like a function
    """Every pass through a model's backbone while inside: (rows, tokens, first position)."""

    def __init__(self, model: HunyuanImage3 | None) -> None:
        assert model is not None
        self.backbone, self.seen = model.model, list[tuple[int, int, int]]()

    def __enter__(self) -> list[tuple[int, int, int]]:
        run = self.backbone._run

        def noted(x: Tensor, rope: Any, kv: Any, where: Any) -> Tensor:
            self.seen.append((x.shape[0], x.shape[1], where[0].start))
            return run(x, rope, kv, where)

        object.__setattr__(self.backbone, "_run", noted)
        return self.seen

    def __exit__(self, *_: object) -> None:
        object.__delattr__(self.backbone, "_run")


def test_each_copy_runs_its_own_row(two: Checkpoint) -> None:
    with passes_of(two.model) as first, passes_of(two.second) as second:
        run(two, edit(bot_task="image", resolution="256x256"))
    start = first[-1][2]
    assert first == [(1, start, 0), *[(1, 257, start)] * 3]
    begin = second[0][2]  # what both rows have in common is computed by the first copy alone
    assert begin > 0
    assert second == [(1, start - begin, begin), *[(1, 257, start)] * 3]


@pytest.mark.parametrize("request_", [{"guidance_scale": 1.0}, {"guidance_scale": 0.5}], ids=str)
def test_without_guidance_the_second_copy_does_nothing(one: Checkpoint, two: Checkpoint, request_: Any) -> None:
    request = edit(bot_task="image", resolution="256x256", **request_)
    with passes_of(two.second) as second:
        ours = run(two, request)
    assert second == []
    assert same(ours, run(one, request))


@pytest.fixture
def events(two: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens between the devices, in the order in which the host asks for it."""
    seen: list[str] = []
    fill, predict = two_copies.fill_unguided, Denoiser.predict

    def filled(*args: Any) -> None:
        seen.append("fill")
        fill(*args)

    def predicted(self: Denoiser, latents: Tensor, index: int) -> Tensor:
        seen.append("unguided" if self.model is two.second else "guided")
        return predict(self, latents, index)

    def transfer(tensor: Tensor, device: torch.device) -> Tensor:
        seen.append(f"copy {len(tensor)}")
        return tensor

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        seen.append(f"on {device.type}")
        yield
        seen.append("back")

    monkeypatch.setattr(two_copies, "current", current)
    monkeypatch.setattr(two_copies, "fill_unguided", filled)
    monkeypatch.setattr(two_copies, "transfer", transfer)
    monkeypatch.setattr(Denoiser, "predict", predicted)
    return seen


def test_latents_go_once_a_step_and_velocities_come_back_behind_both_rows(two: Checkpoint, events: list[str]) -> None:
    """Any other order would make one device wait: a copy waits for all that both were given before it."""
    run(two, edit(bot_task="image", resolution="256x256"))
    step = ["copy 1", "on cpu", "unguided", "back", "guided", "copy 1"]
    assert events == [*step[:2], "fill", *step[2:], *step, *step]


def test_what_the_host_would_wait_for_is_on_the_second_device_before_its_tokens(
    two: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[set[str]] = []

    def stop(self: TwoCopiesDenoiser, *_: Any) -> Tensor:
        there.append({*vars(self.unguided)})
        raise Cancelled("before the first step")

    monkeypatch.setattr(TwoCopiesDenoiser, "run", stop)
    with pytest.raises(Cancelled):
        run(two, edit(bot_task="image", resolution="256x256"))
    assert {"span", "times"} <= there[0]


def test_cancelling_stops_both_rows_before_the_next_step(two: Checkpoint, events: list[str]) -> None:
    cancel = CancelToken()

    def on_progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("denoise", 1):
            cancel.cancel()

    with pytest.raises(Cancelled):
        run(two, edit(bot_task="image", resolution="256x256"), on_progress=on_progress, cancel=cancel)
    assert (events.count("unguided"), events.count("guided")) == (1, 1)


def test_a_failure_of_the_second_copy_is_the_edits_and_the_next_one_is_right(
    one: Checkpoint, two: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert two.second is not None
    workspace = Workspace.create(two.model, CAPACITY, None, two.second)
    request = edit(bot_task="image", resolution="256x256")

    def fail(*_: Any) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(two.second, "velocity", fail)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            run(two, request, workspace=workspace)
    assert same(run(two, request, workspace=workspace), run(one, request))


def on_meta(one: Checkpoint) -> Checkpoint:
    """The second copy on another kind of device, where an operation with a CPU's tensor raises."""
    second = copy_for_painting(one.model, one.model.config, META)
    for module in second.modules():
        if isinstance(module, Experts):  # the loop over experts reads its indices, of which there are none
            object.__setattr__(module, "forward", lambda x, weights, index: torch.zeros_like(x))
    return replace(one, second=second)


def bring(tensor: Tensor, device: torch.device) -> Tensor:
    """A meta tensor has no contents to bring."""
    return torch.zeros(tensor.shape) if tensor.is_meta and device == CPU else tensor.to(device)


def test_nothing_of_one_device_meets_a_tensor_of_the_other(
    one: Checkpoint, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_copies, "transfer", bring)
    request = edit(images=[golden / "images/src0.png"], bot_task="image", resolution="256x256", step_cache="taylor")
    run(on_meta(one), request, steps=5)


def test_the_test_above_would_notice(one: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_copies, "transfer", lambda tensor, device: tensor)
    with pytest.raises((RuntimeError, NotImplementedError)):
        run(on_meta(one), edit(bot_task="image", resolution="256x256"))
