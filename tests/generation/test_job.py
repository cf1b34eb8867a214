"""Whole edits on the golden checkpoint: what runs how often, what comes out, what stays behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from quick_edits import quick_decode
from torch import Tensor

from hunyuan import CancelToken, Editor, EditRequest, Settings
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.errors import Cancelled, DeadlineExceeded, InvalidRequest, OutOfMemory, SequenceTooLong
from hunyuan.generation.denoise import Denoiser
from hunyuan.generation.job import EditJob
from hunyuan.generation.text import TextPlan
from hunyuan.requests import StepCacheName

SYSTEM = "You are a careful painter."


@pytest.fixture(autouse=True)
def _quick_decoder(golden_editor: Editor, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The autoencoder's decoder is most of a tiny edit's time; tests marked `whole` keep it."""
    if "whole" in request.keywords:
        return
    model = golden_editor.engine.checkpoint.model

    monkeypatch.setattr(model, "decode_image", quick_decode)


def edit(**changes: Any) -> EditRequest:
    base: dict[str, Any] = {
        "prompt": "Make the sky orange",
        "seed": 42,
        "steps": 2,
        "use_system_prompt": "custom",
        "system_prompt": SYSTEM,
        "do_sample": False,
        "max_new_tokens": 64,
        "infer_align_image_size": False,
    }
    return EditRequest(**{**base, **changes})


@contextmanager
def counted(editor: Editor) -> Iterator[list[tuple[int, int, int]]]:
    """Every pass through the backbone: (rows, tokens, first position)."""
    passes: list[tuple[int, int, int]] = []
    backbone = editor.engine.checkpoint.model.model

    run = backbone._run

    def noted(x: Tensor, rope: Any, kv: Any, where: Any) -> Tensor:
        start = int(where) if isinstance(where, Tensor) else where[0].start
        passes.append((x.shape[0], x.shape[1], start))
        return run(x, rope, kv, where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "_run", noted)
        yield passes


def tokens_of(passes: list[tuple[int, int, int]]) -> int:
    return sum(rows * tokens for rows, tokens, _ in passes)


@pytest.mark.slow
def test_text_image_and_both_rows_share_one_prefill(golden_editor: Editor, golden: Path) -> None:
    """The tokens through the backbone are the prompt once, each new token once, and what differs, once."""
    request = edit(images=[golden / "images/src0.png"])
    with counted(golden_editor) as passes:
        result = golden_editor.run(request)
    prompt, new = 333, result.tokens
    assert new == 21
    assert passes[0] == (1, prompt, 0)
    assert passes[1:new] == [(1, 1, prompt + i) for i in range(new - 1)]  # the last token is not fed
    rest = passes[new:]
    # 606 tokens: 354 up to the ratio token, then <timestep>, 247 image tokens and 4 behind the image.
    conditional, unconditional, *steps = rest
    assert conditional == (1, 1, 353)  # all but the ratio token came from the text stage
    first_prompt_token = 322
    assert unconditional == (1, 354 - first_prompt_token, first_prompt_token)
    assert steps == [(2, 248, 354)] * 2


def test_without_guidance_there_is_no_second_row(golden_editor: Editor) -> None:
    with counted(golden_editor) as passes:
        golden_editor.run(edit(bot_task="image", resolution="256x256", guidance_scale=1.0))
    assert [rows for rows, _, _ in passes] == [1, 1, 1]


@pytest.mark.slow
def test_swapped_system_prompt_shares_little(golden_editor: Editor, golden: Path) -> None:
    """`drop_think` changes the system prompt, so the text stage's keys do not fit any more."""
    request = edit(images=[golden / "images/src0.png"], use_system_prompt="en_unified", drop_think=True)
    with counted(golden_editor) as passes:
        result = golden_editor.run(request)
    conditional = passes[result.tokens]
    assert conditional[2] < 10
    assert conditional[1] > 300


@pytest.mark.trap(7)
def test_drop_think_keeps_the_recaption_and_swaps_the_system_prompt(golden_editor: Editor) -> None:
    job = EditJob(golden_editor.engine.checkpoint, edit(use_system_prompt="en_unified", drop_think=True), 42, 1, True)
    result = job.run()
    assert result.cot_text == "<recaption> small red boat near window with soft light</recaption>"
    assert job.system == golden_editor.engine.checkpoint.prompts.preset("en_recaption")
    assert job.system != job.system.strip()  # unlike every other use of a preset


def test_drop_think_without_a_system_prompt_adds_none(golden_editor: Editor) -> None:
    job = EditJob(golden_editor.engine.checkpoint, edit(use_system_prompt="None", drop_think=True), 42, 1, True)
    job.run()
    assert job.system == ""


@pytest.mark.trap(3)
@pytest.mark.parametrize(("source", "size"), [("src1.png", (192, 320)), (None, (256, 256))])
@pytest.mark.slow
def test_running_out_of_tokens_falls_back_to_the_sources_bucket(
    golden_editor: Editor, golden: Path, source: str | None, size: tuple[int, int]
) -> None:
    images = [golden / "images" / source] if source else []
    result = golden_editor.run(edit(images=images, max_new_tokens=3))
    assert result.tokens == 3
    assert result.size == size
    assert result.cot_text is not None
    assert "</recaption>" not in result.cot_text


@pytest.mark.trap(4)
@pytest.mark.parametrize("index", [0, 32, 33, 36])
def test_both_ways_to_a_ratio_agree(golden_editor: Editor, monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """A ratio token out of the text and one picked by itself lead to the same bucket, past the gap in ids too."""
    checkpoint = golden_editor.engine.checkpoint
    wanted, sizes = checkpoint.tokenizer.ratios[index], []

    def run_steps(self: Denoiser, noise: torch.Tensor, on_step: Any) -> torch.Tensor:
        sizes.append((self.block.image.width * 16, self.block.image.height * 16))
        on_step(self.schedule.steps)
        return noise.float()

    def decode(self: EditJob, logits: torch.Tensor, plan: TextPlan) -> list[int]:
        return [checkpoint.tokenizer.end_recaption, wanted]

    monkeypatch.setattr(Denoiser, "run", run_steps)
    monkeypatch.setattr(EditJob, "_decode", decode)
    real = type(checkpoint.model).logits
    monkeypatch.setattr(
        type(checkpoint.model),
        "logits",
        lambda self, hidden: real(self, hidden).index_fill(-1, torch.tensor([wanted]), 1e4),
    )
    golden_editor.run(edit(steps=1))
    golden_editor.run(edit(steps=1, bot_task="image"))
    bucket = EditJob(checkpoint, edit(), 0, 1, True).group.buckets[index].size
    assert sizes == [(bucket.width, bucket.height)] * 2


@pytest.mark.parametrize(("name", "skipped"), [("taylor", 5), ("spectrum", 3)])
def test_step_cache_skips_the_backbone_at_some_steps(golden_editor: Editor, name: StepCacheName, skipped: int) -> None:
    request = edit(bot_task="image", resolution="256x256", steps=10)
    with counted(golden_editor) as passes:
        plain = golden_editor.run(request)
    with counted(golden_editor) as cached_passes:
        cached = golden_editor.run(replace(request, step_cache=name))
    # Of 10 steps, 0, 1, 2, 7 and 9 run in full; or 0 to 4, 6 and 8.
    assert len(passes) - len(cached_passes) == skipped
    difference = np.abs(np.array(plain.image).astype(int) - np.array(cached.image).astype(int)).mean()
    assert 0 < difference < 20


def test_given_text_skips_the_text_stage(golden_editor: Editor) -> None:
    text = "<recaption>a red boat</recaption>"
    with counted(golden_editor) as passes:
        result = golden_editor.run(edit(cot_text=text, resolution="1:1"))
    assert result.cot_text == text
    assert result.tokens == 0
    assert len(passes) == 4  # both rows once, then two steps


def test_given_text_and_automatic_size_pick_a_ratio(golden_editor: Editor) -> None:
    with counted(golden_editor) as passes:
        golden_editor.run(edit(cot_text="<recaption>a red boat</recaption>"))
    assert len(passes) == 5  # and the prompt of the ratio step, shared with the image stage


@pytest.mark.trap(13)
@pytest.mark.parametrize(("scale", "token"), [(2.5, 2496.0), (4.0, 4000.0)])
@pytest.mark.slow
def test_distilled_checkpoints_take_guidance_as_a_token(distil_editor: Editor, scale: float, token: float) -> None:
    model, seen = distil_editor.engine.checkpoint.model, {}
    handles = [
        module.register_forward_pre_hook(lambda _m, args, name=name: seen.setdefault(name, []).append(args[0].item()))
        for name, module in (("guidance", model.guidance_emb), ("r", model.timestep_r_emb))
    ]
    with counted(distil_editor) as passes:
        distil_editor.run(edit(bot_task="image", resolution="1:1", steps=2, guidance_scale=scale, flow_shift=3.0))
    for handle in handles:
        handle.remove()
    assert seen == {"guidance": [token, token], "r": [750.0, 0.0]}
    assert {rows for rows, _, _ in passes} == {1}
    assert passes[-1][1] == 3 + 256


@pytest.mark.trap(13)
def test_guidance_defaults_come_from_the_checkpoint(golden_editor: Editor, distil_editor: Editor) -> None:
    assert golden_editor.engine.checkpoint.generation.guidance_scale == 2.5
    assert (golden_editor.default_steps, distil_editor.default_steps) == (28, 8)


@pytest.fixture(scope="module")
def distil_editor(tmp_path_factory: pytest.TempPathFactory) -> Editor:
    folder = tmp_path_factory.mktemp("distil") / "tiny"
    write_tiny_checkpoint(folder, TinyShape(distil=True))
    return Editor.load(Settings(model_id=folder, device="cpu"))


@pytest.mark.trap(2)
@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.slow
def test_one_seed_reproduces_bit_for_bit(golden_editor: Editor, golden: Path, do_sample: bool) -> None:
    request = edit(images=[golden / "images/src0.png"], do_sample=do_sample, temperature=5.0, max_new_tokens=12)
    torch.manual_seed(1)
    first = golden_editor.run(request)
    torch.manual_seed(2)
    second = golden_editor.run(request)
    other = golden_editor.run(replace(request, seed=43))
    assert np.array_equal(np.array(first.image), np.array(second.image))
    assert first.cot_text == second.cot_text
    assert not np.array_equal(np.array(first.image), np.array(other.image))


def test_global_random_numbers_are_left_alone(golden_editor: Editor) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    golden_editor.run(edit(bot_task="recaption", do_sample=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.trap(1)
@pytest.mark.parametrize(("field", "value"), [("steps", 3), ("guidance_scale", 5.0), ("flow_shift", 1.0)])
def test_every_knob_takes_effect(golden_editor: Editor, field: str, value: float) -> None:
    request = edit(bot_task="image", resolution="256x256")
    plain, changed = golden_editor.run(request), golden_editor.run(replace(request, **{field: value}))
    assert not np.array_equal(np.array(plain.image), np.array(changed.image))


@pytest.mark.trap(16)
@pytest.mark.slow
def test_no_request_state_stays(golden_editor: Editor, golden: Path) -> None:
    """Nothing on the model changes, and an edit does not depend on the ones before it."""
    checkpoint = golden_editor.engine.checkpoint

    def everything() -> dict[str, Any]:
        return {
            f"{name}.{key}": id(value)
            for name, module in checkpoint.model.named_modules()
            for key, value in vars(module).items()
        }

    alone = golden_editor.run(edit(seed=1))
    before = everything()
    golden_editor.run(edit(images=[golden / "images/src1.png"], bot_task="recaption", steps=3, drop_think=True))
    assert everything() == before
    assert np.array_equal(np.array(golden_editor.run(edit(seed=1)).image), np.array(alone.image))


@pytest.mark.trap(6)
@pytest.mark.slow
def test_align_stretches_the_source_and_resizes_the_output(golden_editor: Editor, golden: Path) -> None:
    request = edit(images=[golden / "images/src0.png"], bot_task="image", resolution="320x192")
    assert golden_editor.run(request).size == (320, 192)
    assert golden_editor.run(replace(request, infer_align_image_size=True)).size == (322, 204)


@pytest.mark.slow
def test_an_extra_ratio_is_painted_at_its_own_size(golden_editor: Editor) -> None:
    """The base size is 256."""
    with counted(golden_editor) as passes:
        result = golden_editor.run(edit(bot_task="image", resolution="4:3", steps=1))
    assert result.size == (1024, 768)
    assert passes[-1][1] == 1 + 64 * 48


def test_progress_covers_every_stage(golden_editor: Editor) -> None:
    seen: list[tuple[str, int, int]] = []
    golden_editor.run(edit(steps=3), on_progress=lambda *args: seen.append(args))
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == ["prefill", "think", "denoise", "vae"]
    assert {total for stage, _, total in seen if stage == "think"} == {64}  # max_new_tokens, not a forecast
    assert [done for stage, done, _ in seen if stage == "denoise"] == [0, 1, 2, 3]
    assert [(done, total) for stage, done, total in seen if stage == "vae"] == [(0, 1), (1, 1)]


def test_the_text_is_shown_while_it_is_thought(golden_editor: Editor) -> None:
    pieces: list[str] = []
    result = golden_editor.run(edit(steps=1, drop_think=False), on_text=pieces.append)
    assert "".join(pieces) == result.cot_text
    assert len(pieces) > 3


def test_previews_are_what_the_steps_predict_and_change_nothing(golden_editor: Editor) -> None:
    plain, seen = golden_editor.run(edit(steps=3)), list[tuple[int, Image.Image]]()
    result = golden_editor.run(edit(steps=3, previews=2), on_preview=lambda *shown: seen.append(shown))
    assert [done for done, _ in seen] == [1, 2]
    assert np.array_equal(np.array(result.image), np.array(plain.image))
    # One step from the noise is what an edit of a single step ends with.
    assert np.array_equal(np.array(seen[0][1]), np.array(golden_editor.run(edit(steps=1)).image))
    assert not np.array_equal(np.array(seen[1][1]), np.array(seen[0][1]))
    assert 0 < result.timings["previews"] < result.timings["total"]


def test_without_a_listener_no_preview_is_decoded(golden_editor: Editor) -> None:
    assert "previews" not in golden_editor.run(edit(steps=3, previews=2)).timings


def test_a_preview_is_as_large_as_the_result(golden_editor: Editor, golden: Path) -> None:
    seen: list[Image.Image] = []
    request = edit(
        images=[golden / "images/src0.png"],
        bot_task="image",
        resolution="320x192",
        infer_align_image_size=True,
        previews=1,
    )
    result = golden_editor.run(request, on_preview=lambda _, picture: seen.append(picture))
    assert [picture.size for picture in seen] == [result.size] == [(322, 204)]


def test_a_cancel_during_a_preview_stops_before_the_next_step(golden_editor: Editor) -> None:
    token, steps = CancelToken(), list[int]()

    def watch(stage: str, done: int, total: int) -> None:
        steps.extend([done] * (stage == "denoise"))

    with pytest.raises(Cancelled):
        golden_editor.run(edit(steps=6, previews=1), watch, token, on_preview=lambda *shown: token.cancel())
    assert steps[-1] == 3


@pytest.mark.parametrize(("task", "thought"), [("think_recaption", True), ("image", False)])
def test_what_was_read_and_written_is_counted(golden_editor: Editor, golden: Path, task: str, thought: bool) -> None:
    words = golden_editor.run(edit(bot_task=task, resolution="1:1"))
    with_picture = golden_editor.run(edit(bot_task=task, resolution="1:1", images=[golden / "images/src1.png"]))
    longer = golden_editor.run(edit(bot_task=task, resolution="1:1", prompt="Make the sky orange, orange"))
    assert words.usage is not None
    assert with_picture.usage is not None
    assert longer.usage is not None
    assert (words.usage.images, words.usage.picture) == (0, 16 * 16)
    assert with_picture.usage.images > 16 * 16
    assert with_picture.usage.text == words.usage.text < longer.usage.text
    assert words.usage.thought == words.tokens
    assert (words.tokens > 0) is thought


@pytest.mark.parametrize("stage", ["prefill", "think", "denoise"])
def test_cancel_stops_before_the_next_token_or_step(golden_editor: Editor, stage: str) -> None:
    token, after = CancelToken(), []

    def watch(now: str, done: int, total: int) -> None:
        after.extend([now] * token.cancelled)
        if now == stage and (done == 2 or stage == "prefill"):
            token.cancel()

    with pytest.raises(Cancelled), counted(golden_editor) as passes:
        golden_editor.run(edit(steps=6), on_progress=watch, cancel=token)
    assert after == []
    steps = sum(rows == 2 for rows, _, _ in passes)
    # Cancelled after two tokens: the prompt and the first of them have run. Or after two steps. Nothing more.
    assert (len(passes) - steps, steps) == {"prefill": (0, 0), "think": (2, 0), "denoise": (23, 2)}[stage]


def test_a_passed_deadline_stops_at_once(golden_editor: Editor) -> None:
    with pytest.raises(DeadlineExceeded), counted(golden_editor) as passes:
        golden_editor.run(edit(), cancel=CancelToken(deadline=0.0))
    assert passes == []


def test_timings_name_every_stage(golden_editor: Editor) -> None:
    timings = golden_editor.run(edit()).timings
    assert set(timings) == {"prepare", "prefill", "think", "first_step", "denoise", "vae", "total"}
    assert all(seconds >= 0 for seconds in timings.values())
    assert sum(timings.values()) - timings["total"] <= timings["total"] + 1e-3


def test_a_sequence_too_long_names_both_numbers(golden_editor: Editor) -> None:
    with pytest.raises(SequenceTooLong, match=r"needs \d+ tokens.* is 4096; .*or cot_text") as caught:
        golden_editor.run(edit(prompt="boat " * 790, system_prompt="boat " * 3000))
    assert caught.value.length > caught.value.limit == 4096


def test_an_image_stage_too_long_is_named(golden_editor: Editor) -> None:
    with pytest.raises(SequenceTooLong, match="image stage"):  # 3072 tokens of 1024x768 behind more than a thousand
        golden_editor.run(edit(prompt="boat " * 700, system_prompt="boat " * 700, bot_task="image", resolution="4:3"))


def test_out_of_memory_is_told_apart(golden_editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(self: EditJob) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(EditJob, "run", explode)
    with pytest.raises(OutOfMemory, match="smaller resolution"):
        golden_editor.run(edit())


def test_a_missing_preset_is_the_requests_fault(golden_editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_editor.engine.checkpoint.prompts, "_presets", {})
    with pytest.raises(InvalidRequest, match=r"system_prompt.py .* unified_system_prompt_en"):
        golden_editor.run(edit(use_system_prompt="en_unified"))


@pytest.mark.whole
@pytest.mark.slow
def test_the_picture_equals_the_recorded_one(golden_editor: Editor, golden: Path) -> None:
    """The defaults of an edit, but greedy text and few steps; the decoder included."""
    meta = json.loads((golden / "manifest.json").read_text())["sections"]["e2e_edit_unified_align_easymoe"]
    request = EditRequest(
        meta["inputs"]["prompt"], images=[golden / "images/src0.png"], seed=13, steps=3, do_sample=False,
        max_new_tokens=64,
    )  # fmt: skip
    result = golden_editor.run(request)
    recorded = np.array(Image.open(golden / meta["png"]).convert("RGB")).astype(int)
    assert [result.cot_text] == meta["cot_text"]
    assert result.image.mode == "RGB"
    assert np.abs(np.array(result.image).astype(int) - recorded).mean() < 0.1
