"""Edits that were recorded with token dropping: what does not pass the router must agree all the same.

Our code drops no tokens, so what the recorded network predicted is not ours. Everything between those predictions is
computed here from recorded values: the sequence before them, the guidance and the step after them, the picture at the
end.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hunyuan.generation.job import EditJob
from hunyuan.generation.scheduler import Schedule, classifier_free_guidance
from hunyuan.generation.text import TextPlan, read_text
from hunyuan.prompt.images import resize, to_pil
from hunyuan.prompt.layout import TextTask
from hunyuan.prompt.resolution import Bucket, Size
from hunyuan.requests import EditResult
from scripts.goldens import edits
from scripts.goldens.folder import Golden
from scripts.goldens.network import DROPPING
from scripts.goldens.report import Check, Tolerance

NEW_IDS = "text_calls: the ids after the prompt"


def dropped_edit(golden: Golden, section: str) -> Check:
    meta, recorded = golden.sections[section], golden.tensors(section)
    check = golden.check(section, [*recorded, *edits._facts(meta)])
    request = edits.request_of(golden, meta["inputs"])
    job = EditJob(golden.checkpoint, request, request.seed or 0, request.steps or 1, noise_on_cpu=True)
    job.look_up()
    job.prepare()
    _check_text(check, golden, meta, job)
    pictures = [v for k, v in recorded.items() if k.startswith(("latents_", "pred_", "guided_", "vae_in"))]
    if not pictures:
        check.leave_out(check.present, DROPPING)
        return check.finish()
    noise = pictures[0]
    down_h, down_w = golden.config.vae_downsample_factor
    bucket = golden.group.nearest(Size(noise.shape[-1] * down_w, noise.shape[-2] * down_h))
    _check_sequence(check, golden, meta, job, bucket, recorded)
    shape = (1, golden.config.vae.latent_channels, *noise.shape[-2:])
    drawn = job.random.normal(shape, torch.bfloat16, noise.device).float()
    check.close("latents_0", drawn, recorded.get("latents_0"))
    _check_steps(check, job, meta, recorded)
    _check_picture(check, golden, job, meta, recorded, bucket)
    check.leave_out(check.present, DROPPING)
    return check.finish()


def _check_text(check: Check, golden: Golden, meta: dict[str, Any], job: EditJob) -> None:
    """The text stage's prompt and stops; the finished text is read from the recorded ids, which the router chose."""
    calls = meta.get("text_calls")
    if calls is None:
        return
    trace, request = edits.Trace(), job.request
    layouts, instruct = golden.checkpoint.layouts, golden.checkpoint.generation.sequence_template == "instruct"
    if calls:
        task: TextTask = "recaption" if request.bot_task == "recaption" else "think"
        if request.bot_task == "image":
            task = "img_ratio"
        else:
            trace.plan = TextPlan.create(
                golden.checkpoint.tokenizer, request.bot_task, job.requested_size is None, instruct
            )
        layout = layouts.text_layout(job.system, request.prompt, job.shapes, task, None, job.options.drop_think)
        trace.prompt_ids, trace.new_ids = layout.ids, calls[0]["ids"][calls[0]["prompt_len"] :]
        check.left_out[NEW_IDS] = DROPPING
    edits._check_calls(check, golden, meta, trace)
    if trace.plan is not None:
        job.cot = read_text(trace.new_ids, trace.plan, golden.checkpoint.tokenizer, request.bot_task)
    if meta.get("cot_text") is not None:
        check.exact("cot_text", [job.cot], meta["cot_text"])


def _check_sequence(
    check: Check, golden: Golden, meta: dict[str, Any], job: EditJob, bucket: Bucket, recorded: dict[str, Tensor]
) -> None:
    request, drop = job.request, job.options.drop_think
    if drop and request.bot_task in ("think", "think_recaption") and job.system:
        job.system = golden.checkpoint.prompts.preset("en_recaption")
    layout = golden.checkpoint.layouts.image_layout(job.system, request.prompt, job.shapes, bucket, job.cot, drop)
    rows = 1 if golden.config.cfg_distilled else 2
    for i, latents in enumerate(edits._rows(job.conditions.latents, rows)):
        check.close(f"cond_latents_{i}", latents[0], recorded.get(f"cond_latents_{i}"))
    edits._check_sequence(check, recorded, layout)
    if meta.get("step_inputs") is not None:
        schedule = Schedule.create(job.steps, job.options.flow_shift)
        guided = job.options.guidance_scale > 1 and not golden.config.cfg_distilled
        denoiser: Any = SimpleNamespace(
            kv=SimpleNamespace(rows=2 if guided else 1),
            layout=layout,
            block=layout.generated,
            schedule=schedule,
            guidance_scale=job.options.guidance_scale,
        )
        check.exact("step_inputs", edits._step_inputs(denoiser, meta["step_inputs"]), meta["step_inputs"])


def _check_steps(check: Check, job: EditJob, meta: dict[str, Any], recorded: dict[str, Tensor]) -> None:
    """Guidance and the step, each from the recorded values before it."""
    tolerances = meta["tolerance"] if isinstance(meta.get("tolerance"), dict) else {}
    tolerance = Tolerance.parse(tolerances.get("latents"), check.tolerance)
    schedule = Schedule.create(job.steps, job.options.flow_shift)
    check.close("sigmas", schedule.sigmas, recorded.get("sigmas"), Tolerance(1e-6, 1e-6))
    for i in range(job.steps):
        predicted, guided, latents = (recorded.get(f"{name}_{i}") for name in ("pred", "guided", "latents"))
        if predicted is not None:
            ours = predicted
            if len(predicted) == 2:
                ours = classifier_free_guidance(predicted[:1], predicted[1:], job.options.guidance_scale)
            check.close(f"guided_{i}", ours, guided, tolerance)
        if guided is not None and latents is not None:
            check.close(
                f"latents_{i + 1}", schedule.step(latents, guided, i), recorded.get(f"latents_{i + 1}"), tolerance
            )


def _check_picture(
    check: Check, golden: Golden, job: EditJob, meta: dict[str, Any], recorded: dict[str, Tensor], bucket: Bucket
) -> None:
    """From the recorded latents after the last step to the picture."""
    size = job._output_size(bucket)
    check.exact("output_size_wh", [size.width, size.height], meta["output_size_wh"])
    latents = recorded.get(f"latents_{job.steps}")
    if latents is None:
        return
    model = golden.model
    unscaled = model.vae.unscale(latents.to(model.device))
    check.close("vae_in", unscaled[:, :, None], recorded.get("vae_in"))
    trace = edits.Trace(decoded=[model.decode_image(latents.to(model.device))])
    picture = to_pil(trace.decoded[0][0])
    picture = picture if picture.size == (size.width, size.height) else resize(picture, size)
    edits._check_picture(check, golden, meta, trace, EditResult(picture, None, 0, picture.size, job.steps, 0))
