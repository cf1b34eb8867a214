"""Whole edits: text, size, every step's latents, and the picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hunyuan.generation.denoise import Denoiser
from hunyuan.generation.job import EditJob
from hunyuan.generation.step_cache import StepCache, TaylorCache, TaylorSettings
from hunyuan.generation.text import TextPlan
from hunyuan.prompt.layout import Layout
from hunyuan.requests import EditRequest, EditResult
from scripts.goldens.folder import Golden, official_size
from scripts.goldens.report import Check, Tolerance

STATS_TOLERANCE = 5e-3  # of the decoder's output range
PNG_MEAN_DIFFERENCE = 1.5


@dataclass
class Trace:
    """What an edit computed on its way."""

    latents: list[Tensor] = field(default_factory=list)
    pred: list[Tensor] = field(default_factory=list)
    guided: list[Tensor] = field(default_factory=list)
    decoded: list[Tensor] = field(default_factory=list)
    vae_in: list[Tensor] = field(default_factory=list)
    denoiser: Denoiser | None = None
    prompt_ids: list[int] = field(default_factory=list)
    plan: TextPlan | None = None
    new_ids: list[int] = field(default_factory=list)


class TracedJob(EditJob):
    """An edit that keeps a trace, with the recorded step cache. Computes nothing by itself."""

    trace: Trace
    taylor: TaylorSettings | None = None

    def step_cache(self) -> StepCache | None:
        return None if self.taylor is None else TaylorCache(self.steps, self.taylor)

    def _prefill_prompt(self, *args: Any, **kwargs: Any) -> Tensor:
        logits = super()._prefill_prompt(*args, **kwargs)
        self.trace.prompt_ids = list(self._prefilled().ids)
        return logits

    def _decode(self, logits: Tensor, plan: TextPlan) -> list[int]:
        self.trace.plan = plan
        self.trace.new_ids = super()._decode(logits, plan)
        return self.trace.new_ids

    def _pick_ratio(self):
        bucket = super()._pick_ratio()
        self.trace.new_ids = [bucket.index]
        return bucket


@contextmanager
def traced(golden: Golden, trace: Trace) -> Iterator[None]:
    """Listens at the denoiser and the decoder while an edit runs."""
    predict, guided, decode = Denoiser.predict, Denoiser.guided, golden.model.vae.decode

    def keep_predict(self: Denoiser, latents: Tensor, index: int) -> Tensor:
        trace.denoiser = self
        trace.latents.append(latents.float())
        trace.pred.append(predict(self, latents, index))
        return trace.pred[-1]

    def keep_guided(self: Denoiser, predicted: Tensor) -> Tensor:
        trace.guided.append(guided(self, predicted))
        return trace.guided[-1]

    def keep_decode(z: Tensor) -> Tensor:
        trace.vae_in.append(z)
        trace.decoded.append(decode(z))
        return trace.decoded[-1]

    Denoiser.predict, Denoiser.guided = keep_predict, keep_guided  # type: ignore[method-assign]
    golden.model.vae.decode = keep_decode  # type: ignore[method-assign]
    try:
        yield
    finally:
        Denoiser.predict, Denoiser.guided = predict, guided  # type: ignore[method-assign]
        del golden.model.vae.decode


def request_of(golden: Golden, inputs: dict[str, Any]) -> EditRequest:
    size = inputs["image_size"]
    return EditRequest(
        inputs["prompt"],
        images=[golden.folder / path for path in inputs.get("image", [])],
        seed=inputs["seed"],
        steps=inputs["steps"],
        resolution=size if size == "auto" else str(official_size(size)),
        bot_task=inputs["bot_task"],
        use_system_prompt=inputs["use_system_prompt"],
        system_prompt=inputs.get("system_prompt"),
        infer_align_image_size=inputs.get("infer_align_image_size", False),
        max_new_tokens=inputs.get("max_new_tokens", 2048),
        cot_text=inputs.get("cot_text"),
        do_sample=inputs.get("do_sample"),
        drop_think=inputs.get("drop_think"),
        guidance_scale=inputs.get("guidance_scale", inputs.get("diff_guidance_scale")),
        flow_shift=inputs.get("flow_shift"),
    )


def taylor_settings(inputs: dict[str, Any]) -> TaylorSettings | None:
    """The official arguments of step caching in our terms."""
    if not inputs.get("use_taylor_cache"):
        return None
    value = {name.removeprefix("taylor_cache_"): v for name, v in inputs.items() if name.startswith("taylor_cache_")}
    return TaylorSettings(
        interval=value["interval"],
        first_steps=value["first_enhance_steps"] if value["enable_first_enhance"] else 0,
        last_steps=value["tailing_enhance_steps"] if value["enable_tailing_enhance"] else 0,
        low_order=value["low_freqs_order"],
        high_order=value["high_freqs_order"],
    )


def easy_edit(golden: Golden, section: str) -> Check:
    """An edit recorded without token dropping: everything must agree."""
    meta, recorded = golden.sections[section], golden.tensors(section)
    check = golden.check(section, [*recorded, *_facts(meta)])
    request, trace = request_of(golden, meta["inputs"]), Trace()
    job = TracedJob(golden.checkpoint, request, request.seed or 0, request.steps or 1, noise_on_cpu=True)
    job.trace, job.taylor = trace, taylor_settings(meta["inputs"])
    with traced(golden, trace):
        result = job.run()
    _check_text(check, golden, meta, trace, result)
    _check_steps(check, meta, recorded, trace)
    _check_picture(check, golden, meta, trace, result)
    for i, latents in enumerate(_rows(job.conditions.latents, len(trace.pred[0]))):
        check.close(f"cond_latents_{i}", latents[0], recorded.get(f"cond_latents_{i}"))
    if trace.denoiser is not None:
        _check_sequence(check, recorded, trace.denoiser.layout)
    return check.finish()


def _facts(meta: dict[str, Any]) -> list[str]:
    """The manifest's entries about an edit that are values, not words."""
    known = ("output_size_wh", "cot_text", "text_calls", "step_inputs", "vae_out_stats", "png")
    return [key for key in known if meta.get(key) is not None]


def _rows(latents: tuple[Tensor, ...], rows: int) -> list[Tensor]:
    return [latent for _ in range(rows) for latent in latents]


def _check_text(check: Check, golden: Golden, meta: dict[str, Any], trace: Trace, result: EditResult) -> None:
    check.exact("output_size_wh", list(result.size), meta["output_size_wh"])
    if meta.get("cot_text") is not None:
        check.exact("cot_text", [result.cot_text], meta["cot_text"])
    _check_calls(check, golden, meta, trace)


def _check_calls(check: Check, golden: Golden, meta: dict[str, Any], trace: Trace) -> None:
    calls = []
    if trace.prompt_ids:
        call: dict[str, Any] = {"prompt_len": len(trace.prompt_ids), "ids": trace.prompt_ids + trace.new_ids}
        plan = trace.plan
        transitions = [[trigger, list(forced)] for trigger, forced in plan.transitions] if plan else []
        call["stage_transitions"] = transitions or None
        call["final_stop_tokens"] = sorted(plan.stop) if transitions and plan else None
        call["eos_token_id"] = _eos(golden, plan, meta["inputs"])
        calls.append(call)
    if meta.get("text_calls") is not None:
        known = [{key: value for key, value in call.items() if key in call_} for call, call_ in _pairs(meta, calls)]
        ours = [{key: call_[key] for key in call if key in call_} for call, call_ in _pairs(meta, calls)]
        check.exact("text_calls", [len(calls), ours], [len(meta["text_calls"]), known])


def _pairs(meta: dict[str, Any], calls: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return list(zip(meta["text_calls"], calls, strict=False))


def _eos(golden: Golden, plan: TextPlan | None, inputs: dict[str, Any]) -> list[int]:
    """What the official code hands to its generate call: the first task's own stops."""
    tk = golden.checkpoint.tokenizer
    if plan is None:
        return list(tk.ratios)
    return [tk.end_recaption] if inputs["bot_task"] == "recaption" else [tk.end_think, tk.end_recaption]


def _check_steps(check: Check, meta: dict[str, Any], recorded: dict[str, Tensor], trace: Trace) -> None:
    tolerances = meta["tolerance"] if isinstance(meta.get("tolerance"), dict) else {}
    latents = Tolerance.parse(tolerances.get("latents"), check.tolerance)
    pred = Tolerance.parse(tolerances.get("pred"), check.tolerance)
    denoiser = trace.denoiser
    if denoiser is None:
        check.failures.append("no step ran")
        return
    last = denoiser.schedule.step(trace.latents[-1], trace.guided[-1], len(trace.pred) - 1)
    series = {"latents": [*trace.latents, last], "pred": trace.pred, "guided": trace.guided}
    for name, values in series.items():
        for i, value in enumerate(values):
            check.close(f"{name}_{i}", value, recorded.get(f"{name}_{i}"), latents if name == "latents" else pred)
    check.close("sigmas", denoiser.schedule.sigmas, recorded.get("sigmas"), Tolerance(1e-6, 1e-6))
    check.close("vae_in", trace.vae_in[0][:, :, None], recorded.get("vae_in"), latents)
    if meta.get("step_inputs") is not None:
        check.exact("step_inputs", _step_inputs(denoiser, meta["step_inputs"]), meta["step_inputs"])


def _step_inputs(denoiser: Denoiser, recorded: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each step's scalars and lengths, the official way: step 0 runs the whole sequence."""
    rows, length = denoiser.kv.rows, len(denoiser.layout)
    block, times = denoiser.block, denoiser.schedule.timesteps.tolist()
    short = block.image.stop - block.timestep
    entries = []
    for i, entry in enumerate(recorded):
        tokens = short if i else length
        ours: dict[str, Any] = {"timesteps": [times[i]] * rows, "n_positions": tokens}
        ours["timesteps_r"] = None if block.timestep_r is None else [times[i + 1]] * rows
        value = torch.tensor([1000 * denoiser.guidance_scale], dtype=torch.bfloat16).tolist()
        ours["guidance"] = None if block.guidance is None else value
        ours["attention_mask_shape"] = [rows, 1, tokens, length]
        entries.append({key: ours[key] for key in entry})
    return entries


def _check_picture(check: Check, golden: Golden, meta: dict[str, Any], trace: Trace, result: EditResult) -> None:
    stats = meta.get("vae_out_stats")
    if stats is not None:
        decoded = trace.decoded[0][:, :, None]
        ours = torch.stack([decoded.mean(), decoded.std(), decoded.min(), decoded.max()])
        theirs = torch.tensor([stats[k] for k in ("mean", "std", "min", "max")])
        check.close("vae_out_stats", ours, theirs, Tolerance(atol=STATS_TOLERANCE))
        check.exact("vae_out_stats", list(decoded.shape), stats["shape"])
    if meta.get("png") is not None:
        picture = result.image.crop(meta["png_crop_box_ltrb"]) if meta.get("png_crop_box_ltrb") else result.image
        ours = torch.from_numpy(np.array(picture)).float()
        theirs = torch.from_numpy(np.array(Image.open(golden.folder / meta["png"]).convert("RGB"))).float()
        if ours.shape != theirs.shape:
            check.exact("png", list(ours.shape), list(theirs.shape))
            return
        check.close("png", (ours - theirs).abs().mean(), torch.tensor(0.0), Tolerance(atol=PNG_MEAN_DIFFERENCE))


def _check_sequence(check: Check, recorded: dict[str, Tensor], layout: Layout) -> None:
    rows, ids = torch.tensor([layout.ids, layout.uncond_ids]), recorded.get("gen_input_ids")
    check.exact("gen_input_ids", rows if ids is None else rows[: len(ids)], ids)
    block = layout.gen
    if block is not None and "position_ids_step1" in recorded:
        theirs = recorded["position_ids_step1"]
        ours = torch.arange(block.timestep, block.image.stop).expand(len(theirs), -1)
        check.exact("position_ids_step1", ours, theirs)
