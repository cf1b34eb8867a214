"""One edit from request to picture: the stages in order, and all of a request's state.

Knows what each stage hands to the next. The network stays untouched by a request: keys, values, random numbers
and timings live in the `EditJob`, which is thrown away afterwards; buffers that the engine lends go back to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from hunyuan.errors import SequenceTooLong
from hunyuan.generation.config import GenerationConfig, Options
from hunyuan.generation.decoding import TextRun
from hunyuan.generation.denoise import Denoiser, preview_steps
from hunyuan.generation.kv_cache import KVCache, buffers
from hunyuan.generation.prefill import Conditions, encode_conditions, prefill
from hunyuan.generation.prefix import PrefilledPrompt, fill_fixed
from hunyuan.generation.random_numbers import RequestRandom
from hunyuan.generation.sampling import uniforms
from hunyuan.generation.scheduler import Schedule
from hunyuan.generation.spectrum import SpectrumCache
from hunyuan.generation.step_cache import StepCache, TaylorCache
from hunyuan.generation.text import TextPlan, read_text, text_listener
from hunyuan.generation.two_copies import on_two_copies
from hunyuan.generation.workspace import Workspace, decoder_for
from hunyuan.model.network import HunyuanImage3
from hunyuan.pictures.reader import load_image
from hunyuan.prompt.images import CondImage, prepare_cond_image, resize, to_pil
from hunyuan.prompt.layout import CondShape, LayoutBuilder, TextTask, keep_recaption, text_task
from hunyuan.prompt.resolution import Bucket, Size, aligned_output_size, parse_resolution, resolution_group
from hunyuan.prompt.system_prompt import SystemPrompts
from hunyuan.prompt.tokenizer import Tokenizer
from hunyuan.requests import (
    STAGES,
    CancelToken,
    EditRequest,
    EditResult,
    PreviewCallback,
    ProgressCallback,
    Stage,
    StepCacheName,
    TextCallback,
    TokenUsage,
)

STEP_CACHES: dict[StepCacheName, Callable[[int], StepCache]] = {"taylor": TaylorCache, "spectrum": SpectrumCache}


@dataclass(frozen=True)
class Checkpoint:
    """Everything of a checkpoint that requests share; read-only.

    Attributes:
        second: a copy of the model on another device, which runs the unguided row of guidance; None: the model does.
    """

    model: HunyuanImage3
    tokenizer: Tokenizer
    layouts: LayoutBuilder
    prompts: SystemPrompts
    generation: GenerationConfig
    second: HunyuanImage3 | None = None


@dataclass
class EditJob:
    """One request on its way. Call `run` once.

    Attributes:
        workspace: the engine's buffers; None, or too small ones: the request allocates its own.
    """

    checkpoint: Checkpoint
    request: EditRequest
    seed: int
    steps: int
    noise_on_cpu: bool
    on_progress: ProgressCallback | None = None
    cancel: CancelToken | None = None
    workspace: Workspace | None = None
    on_text: TextCallback | None = None
    on_preview: PreviewCallback | None = None
    timings: dict[str, float] = field(default_factory=dict)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.model = self.checkpoint.model
        self.config = self.model.config
        self.group = resolution_group(self.config.image_base_size, self.config.has_extra_ratios)
        self.options = Options.resolve(self.request, self.checkpoint.generation)
        self.random = RequestRandom(self.seed, self.model.device, self.noise_on_cpu)
        self.images: list[CondImage] = []
        self.conditions = Conditions((), torch.empty(0))
        self.system = ""
        self.cot = self.request.cot_text
        self.prefilled: PrefilledPrompt | None = None
        self.lent: KVCache | None = None
        self.read: tuple[int, int] | None = None  # tokens of text and of images
        self.image_tokens = 0

    @torch.inference_mode()
    def run(self) -> EditResult:
        """Raises the errors of `hunyuan.errors` for what the request got wrong, `Cancelled`, `DeadlineExceeded`.

        RuntimeError: the workspace serves another request at the moment.
        """
        with nullcontext() if self.workspace is None else self.workspace.pool.lend() as self.lent:
            return self._run()

    def _run(self) -> EditResult:
        began = time.perf_counter()
        self._start()
        output = self._text_stage()
        latents = self._image_stage(output)
        self._report("vae", 0, 1)
        with self._timed("vae"):
            picture = self._picture(latents, output)
        self._report("vae", 1, 1)
        self.timings["total"] = time.perf_counter() - began
        usage = TokenUsage(*(self.read or (0, 0)), self.tokens, self.image_tokens)
        return EditResult(
            picture, self.cot or None, self.seed, picture.size, self.steps, self.tokens, self.timings, usage
        )

    # -- before the network ------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.timings = dict.fromkeys(STAGES, 0.0)
        self.look_up()
        with self._timed("prepare"):
            self.prepare()

    def look_up(self) -> None:
        """Reads the size that was asked for and the system prompt: what costs nothing and can be wrong comes first."""
        r = self.request
        self.requested_size = parse_resolution(r.resolution)
        self.system = self.checkpoint.prompts.resolve(r.use_system_prompt, r.bot_task, r.system_prompt)

    def prepare(self) -> None:
        """Decodes the condition images and runs them through the autoencoder and the vision tower."""
        self._check()
        self.open_images()
        self.conditions = encode_conditions(self.model, self.images, self.random)

    def open_images(self) -> None:
        sources, align = self.request.images, self.request.infer_align_image_size
        self.images = self.images or [prepare_cond_image(load_image(each), self.config, align) for each in sources]

    @property
    def shapes(self) -> list[CondShape]:
        return [CondShape(image.bucket, image.vision.grid) for image in self.images]

    # -- text --------------------------------------------------------------------------------------------------

    def _text_stage(self) -> Bucket:
        """Thinks and rewrites as asked; returns the bucket to paint."""
        auto = self.requested_size is None
        fixed = self.group.square if self.requested_size is None else self.group.nearest(self.requested_size)
        if self.cot is None and self.request.bot_task != "image":
            return self._think(auto, fixed)
        return self._pick_ratio() if auto else fixed

    def _think(self, auto: bool, fixed: Bucket) -> Bucket:
        request, tk, plan = self.request, self.checkpoint.tokenizer, self._plan(auto)
        logits = self._prefill_text()
        with self._timed("think"):
            new = self._decode(logits, plan)
        self.tokens = len(new)
        self.cot = read_text(new, plan, tk, request.bot_task)
        if self.options.drop_think and "<think>" in self.cot:
            self.cot = keep_recaption(self.cot)
            if self.system:
                self.system = self.checkpoint.prompts.request_preset("en_recaption")
        if not auto:
            return fixed
        index = tk.ratio_index(new[-1])
        # Ran out before a ratio: the first source's own shape is the best guess at what was wanted.
        fallback = self.images[0].bucket if self.images else self.group.square
        return fallback if index is None else self.group.buckets[index]

    def _plan(self, auto: bool) -> TextPlan:
        instruct = self.checkpoint.generation.sequence_template == "instruct"
        return TextPlan.create(self.checkpoint.tokenizer, self.request.bot_task, auto, instruct)

    def _prefill_text(self) -> Tensor:
        return self._prefill_prompt(text_task(self.request.bot_task), self.request.max_new_tokens)

    def _decode(self, logits: Tensor, plan: TextPlan) -> list[int]:
        run, show = self._text_run(plan), self._show_text(plan)
        decoder = decoder_for(self.model, self._prefilled().kv, run, self.workspace)
        return self._read(decoder.decode(logits, run, self._check, partial(self._on_token, show)), run, show)

    def _show_text(self, plan: TextPlan) -> Callable[..., None]:
        return text_listener(plan, self.checkpoint.tokenizer, self.request.bot_task, self.on_text)

    def _text_run(self, plan: TextPlan) -> TextRun:
        ids = self._prefilled().ids
        # The last token is not fed: one more than there are positions can be decoded.
        most = min(self.request.max_new_tokens, self.config.max_position_embeddings - len(ids) + 1)
        uniform = uniforms(self.random.text, most).to(self.model.device)
        return TextRun(plan, self.options.sampling, uniform, ids[-1], len(ids))

    def _on_token(self, show: Callable[..., None], tokens: list[int]) -> None:
        self._report("think", len(tokens), self.request.max_new_tokens)
        show(tokens)
        self._check()

    def _read(self, new: list[int], run: TextRun, show: Callable[..., None]) -> list[int]:
        """Takes over the whole text."""
        self._prefilled().ids += new[:-1]
        show(new, ended=True)
        if len(new) < self.request.max_new_tokens and new[-1] not in run.plan.stop:
            self._check_length(run.position + len(new), "text stage")
        return new

    def _pick_ratio(self) -> Bucket:
        """One greedy step over the ratio tokens."""
        logits = self._prefill_prompt("img_ratio", 0, self.cot)
        ratios = torch.tensor(self.checkpoint.tokenizer.ratios, device=logits.device)
        return self.group.buckets[int(logits[ratios].argmax())]

    def _prefill_prompt(self, task: TextTask, new_tokens: int, cot: str | None = None) -> Tensor:
        """Runs the text stage's prompt; returns the logits after it, `[vocab]`."""
        layout = self.checkpoint.layouts.text_layout(
            self.system, self.request.prompt, self.shapes, task, cot, self.options.drop_think
        )
        length, self.read = len(layout), layout.read_tokens
        self._check_length(length, "text stage's prompt")
        self._report("prefill", 0, length)
        self._check()
        kv = self._buffers(1, min(length + new_tokens, self.config.max_position_embeddings))
        with self._timed("prefill"):
            hidden = prefill(self.model, layout, layout.ids, self.conditions, (0, length), kv)
            logits = self.model.logits(hidden)
        self.prefilled = PrefilledPrompt(kv, list(layout.ids), layout)
        self._report("prefill", length, length)
        return logits

    # -- image -------------------------------------------------------------------------------------------------

    def _image_stage(self, output: Bucket) -> Tensor:
        """Noise to latents, fp32 `[1, channels, h, w]`."""
        layouts, options = self.checkpoint.layouts, self.options
        layout = layouts.image_layout(
            self.system, self.request.prompt, self.shapes, output, self.cot, options.drop_think
        )
        block, self.read = layout.generated, self.read or layout.read_tokens
        self.image_tokens = block.image.height * block.image.width
        self._check_length(len(layout), "image stage")
        self._check()
        marks = [time.perf_counter()]
        guided = options.guidance_scale > 1 and not self.config.cfg_distilled
        second = self.checkpoint.second if guided else None
        kv = self._buffers(2 if guided and second is None else 1, block.image.stop)
        fill_fixed(self.model, layout, self.conditions, block.timestep, kv, self.prefilled)
        self.prefilled = None
        schedule = Schedule.create(self.steps, options.flow_shift)
        shown = frozenset() if self.on_preview is None else preview_steps(self.steps, self.request.previews)
        scale, cache = options.guidance_scale, self.step_cache()

        def on_clean(done: int, clean: Tensor) -> None:
            self._show(done, clean, output)

        denoiser = Denoiser(self.model, layout, block, kv, schedule, scale, cache, shown, on_clean)
        if second is not None:
            lent = None if self.workspace is None else self.workspace.second
            denoiser = on_two_copies(denoiser, second, self.conditions, lent, self.step_cache())
        shape = (1, self.config.vae.latent_channels, block.image.height, block.image.width)
        noise = self.random.normal(shape, torch.bfloat16, self.model.device)

        def on_step(done: int) -> None:
            if done in (1, self.steps):
                self._synchronize()
                marks.append(time.perf_counter())
            self._report("denoise", done, self.steps)
            if done < self.steps:
                self._check()

        latents = denoiser.run(noise, on_step)
        spent = self.timings.get("previews", 0.0)
        self.timings["first_step"], self.timings["denoise"] = marks[1] - marks[0], marks[-1] - marks[1] - spent
        return latents

    def _show(self, done: int, clean: Tensor, output: Bucket) -> None:
        """Hands on a preview; called behind the first step's mark, so its time is the other steps' until taken off."""
        assert self.on_preview is not None
        self._synchronize()  # the steps before it are not its own time
        with self._timed("previews"):
            picture = self._picture(clean, output)
        self.on_preview(done, picture)
        self._check()

    def step_cache(self) -> StepCache | None:
        """The forecaster that the request asks for."""
        name = self.request.step_cache
        return None if name is None else STEP_CACHES[name](self.steps)

    def _picture(self, latents: Tensor, output: Bucket) -> Image.Image:
        """Latents to the picture in its final size."""
        picture, size = to_pil(self.model.decode_image(latents)[0]), self._output_size(output)
        return picture if picture.size == (size.width, size.height) else resize(picture, size)

    def _output_size(self, output: Bucket) -> Size:
        if not self.request.infer_align_image_size:
            return output.size
        sources = [(image.source, image.bucket.index) for image in self.images]
        return aligned_output_size(sources, output, self.config.image_base_size)

    # -- small things ------------------------------------------------------------------------------------------

    def _prefilled(self) -> PrefilledPrompt:
        if self.prefilled is None:
            raise RuntimeError("the prompt has not been run yet")
        return self.prefilled

    def _buffers(self, rows: int, capacity: int) -> KVCache:
        """The lent buffers where they are large enough, else the request's own."""
        return buffers(self.model, rows, capacity, self.lent)

    def _check_length(self, length: int, stage: str) -> None:
        if length > self.config.max_position_embeddings:
            raise SequenceTooLong(length, self.config.max_position_embeddings, stage)

    def _check(self) -> None:
        if self.cancel is not None:
            self.cancel.check()

    def _report(self, stage: Stage, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(stage, done, total)

    def _synchronize(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._synchronize()
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - began
