"""Runs the same edits through a reference and any number of candidates and measures how far apart they are.

Knows editors and requests; `hunyuan.cli.compare` knows the command line, `report.py` the tables, `comparable.py` what A
and B must have in common. A is the reference and runs once, B a candidate; only one is in memory at a time. Each thinks
for itself once, for the text; all pictures are painted with A's text, so that they differ by the painting alone.

- PSNR, SSIM, largest difference: of the two pictures.
- velocity: |B - A| / |A| of what the network predicts at each step, B being given A's latents.
- layers: the same of the residual stream behind each layer, at the step in the middle, on up to 256 of the picture's
  tokens; not where a step cache forecast that step.
- text, free: tokens that the greedy texts of A and B have in common before they part, of all tokens of A's.
- text, forced: share of positions with the same likeliest next token, both reading A's text.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor, nn

from hunyuan import Editor, EditRequest, EditResult
from hunyuan.compare import picture_metrics as metrics
from hunyuan.compare.caches import CountingCache
from hunyuan.compare.weight_error import weight_error
from hunyuan.engines.native import NativeEngine
from hunyuan.generation.denoise import Denoiser
from hunyuan.generation.job import EditJob
from hunyuan.generation.kv_cache import KVCache, layer_devices
from hunyuan.generation.prefill import embed_prompt, encode_conditions, run_tokens
from hunyuan.generation.random_numbers import RequestRandom
from hunyuan.generation.step_cache import StepCache
from hunyuan.pictures.reader import load_image
from hunyuan.prompt.images import prepare_cond_image
from hunyuan.prompt.layout import CondShape, text_task
from hunyuan.requests import ProgressCallback

_ROWS_AT_ONCE = 256  # of logits: a thousand of them take half a gigabyte
_TOKENS = 256  # of a layer's, whose residual stream is compared

Watch = Callable[[str], AbstractContextManager[ProgressCallback | None]]
Predict = Callable[[Denoiser, Tensor, int], Tensor]


@dataclass
class Reference:
    """What A did: its result, the latents it had before each step, the velocities it predicted there, and the residual
    stream behind each layer at the step in the middle, on the CPU."""

    result: EditResult
    latents: dict[int, Tensor] = field(default_factory=dict)
    velocities: dict[int, Tensor] = field(default_factory=dict)
    layers: list[Tensor] = field(default_factory=list)
    text: list[int] = field(default_factory=list)
    likeliest: list[int] = field(default_factory=list)


@dataclass
class Comparison:
    """One request's numbers with one candidate; `full_steps` are those that no step cache forecast. None: not defined
    (equal pictures have no PSNR, a request without thinking no text)."""

    candidate: str
    prompt: str
    size: tuple[int, int]
    full_steps: int
    psnr_db: float | None
    ssim: float
    largest_difference: int
    velocity_error: list[float]
    layer_error: list[float]
    text_tokens: int | None
    text_equal_before_parting: int | None
    text_forced_share: float | None


@contextmanager
def predicting(replacement: Callable[[Predict], Predict]) -> Iterator[None]:
    """Every denoiser's `predict` is wrapped inside the block."""
    original = Denoiser.predict
    Denoiser.predict = replacement(original)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Denoiser.predict = original  # type: ignore[method-assign]


@dataclass(frozen=True)
class Candidate:
    """One set of weights and a way to paint with them.

    Attributes:
        load: called when it is its turn.
        cache: makes the forecaster of a number of steps; None: every step runs in full.
    """

    name: str
    load: Callable[[], Editor]
    cache: Callable[[int], StepCache] | None = None


@contextmanager
def caching(make: Callable[[int], StepCache] | None) -> Iterator[None]:
    """Every request inside the block paints with this forecaster."""
    original = EditJob.step_cache
    if make is not None:
        EditJob.step_cache = lambda self: make(self.steps)  # type: ignore[method-assign]
    try:
        yield
    finally:
        EditJob.step_cache = original  # type: ignore[method-assign]


@contextmanager
def watching_layers(denoiser: Denoiser, found: list[Tensor]) -> Iterator[None]:
    """The residual stream behind each layer, of some of the picture's tokens in the guided row `[tokens, hidden]`, is
    put into `found`."""
    tokens = denoiser.block.image.height * denoiser.block.image.width

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        found.append(output[0, -tokens :: -(-tokens // _TOKENS)].float().cpu())

    handles = [layer.register_forward_hook(keep) for layer in denoiser.model.model.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_reference(editor: Editor, case: EditRequest, on_progress: ProgressCallback | None = None) -> Reference:
    latents: dict[int, Tensor] = {}
    velocities: dict[int, Tensor] = {}
    layers: list[Tensor] = []

    def recorded(original: Predict) -> Predict:
        def predict(self: Denoiser, x: Tensor, index: int) -> Tensor:
            seen = watching_layers(self, layers) if index == self.schedule.steps // 2 else nullcontext()
            with seen:
                velocity = original(self, x, index)
            latents[index], velocities[index] = x.cpu(), velocity.cpu()
            return velocity

        return predict

    # Painted from the finished text, as B will: keys left behind by decoding differ from a prompt's in their rounding.
    cot = own_text(editor, case, on_progress)
    with predicting(recorded):
        result = editor.run(replace(case, cot_text=cot), on_progress)
    reference = Reference(result, latents, velocities, layers)
    if cot:
        reference.text, reference.likeliest = likeliest_tokens(editor, case, cot)
    return reference


def own_text(editor: Editor, case: EditRequest, on_progress: ProgressCallback | None = None) -> str | None:
    """What the model thinks by itself; None where the task has no thinking."""
    return None if case.bot_task == "image" else editor.run(replace(case, steps=1), on_progress).cot_text


def run_compared(
    editor: Editor,
    case: EditRequest,
    reference: Reference,
    on_progress: ProgressCallback | None = None,
    candidate: Candidate | None = None,
) -> tuple[Comparison, EditResult]:
    """As many steps as A took, whatever B's own default is."""
    cot, cache = reference.result.cot_text, None if candidate is None else candidate.cache
    painted, full, errors, layers = _paint(
        editor, replace(case, steps=reference.result.steps, cot_text=cot), reference, cache, on_progress
    )
    tokens = parting = share = None
    if reference.text and cot:
        own = encode(editor, own_text(editor, case, on_progress) or "")
        tokens, parting = len(reference.text), equal_before_parting(reference.text, own)
        _, likeliest = likeliest_tokens(editor, case, cot)
        share = sum(a == b for a, b in zip(likeliest, reference.likeliest, strict=True)) / tokens
    a, b = reference.result.image, painted.image
    noise = metrics.psnr(a, b)
    comparison = Comparison(
        candidate="B" if candidate is None else candidate.name,
        prompt=case.prompt,
        size=a.size,
        full_steps=full,
        psnr_db=None if math.isinf(noise) else noise,
        ssim=metrics.ssim(a, b),
        largest_difference=metrics.largest_difference(a, b),
        velocity_error=errors,
        layer_error=layers,
        text_tokens=tokens,
        text_equal_before_parting=parting,
        text_forced_share=share,
    )
    return comparison, painted


def _paint(
    editor: Editor,
    case: EditRequest,
    reference: Reference,
    cache: Callable[[int], StepCache] | None,
    on_progress: ProgressCallback | None,
) -> tuple[EditResult, int, list[float], list[float]]:
    """B's picture and how many of its steps ran in full; the errors of its velocities at A's latents, and of its
    residual stream behind each layer."""
    errors: dict[int, float] = {}
    layers: list[Tensor] = []

    def forced(original: Predict) -> Predict:
        def predict(self: Denoiser, x: Tensor, index: int) -> Tensor:
            # At A's latents: a step leaves nothing behind that the next pass over it does not overwrite.
            seen = watching_layers(self, layers) if index == self.schedule.steps // 2 else nullcontext()
            with seen:
                velocity = original(self, reference.latents[index].to(x.device), index)
            errors[index] = relative_error(velocity.cpu(), reference.velocities[index])
            # A forecaster would take the second pass for a step of its own: it gets a whole run instead.
            return original(self, x, index) if cache is None else velocity

        return predict

    made: list[CountingCache] = []

    def counted(steps: int) -> StepCache:
        made.append(CountingCache(cache(steps)))  # type: ignore[misc]
        return made[-1]

    with caching(None if cache is None else counted):
        with predicting(forced):
            painted = editor.run(case, on_progress)
        if cache is not None:
            painted = editor.run(case, on_progress)
    full = made[-1].full_steps if made else painted.steps
    # A step that was forecast ran no layer.
    pairs = zip(layers, reference.layers, strict=True) if len(layers) == len(reference.layers) else ()
    return painted, full, [errors[i] for i in sorted(errors)], [relative_error(a, b) for a, b in pairs]


def relative_error(value: Tensor, reference: Tensor) -> float:
    """`|value - reference| / |reference|`, Euclidean norms over all entries."""
    return float((value.double() - reference.double()).norm() / reference.double().norm().clamp(min=1e-30))


def equal_before_parting(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def encode(editor: Editor, cot: str) -> list[int]:
    """The tokens of a text stage's result, without the opening tag, which stands in the prompt."""
    return list(engine_of(editor).checkpoint.tokenizer.encode(cot.removeprefix("<think>").removeprefix("<recaption>")))


@torch.inference_mode()
def likeliest_tokens(editor: Editor, case: EditRequest, cot: str) -> tuple[list[int], list[int]]:
    """The tokens of `cot`, and for the place of each the one that the model finds likeliest after all before it."""
    engine = engine_of(editor)
    parts, model = engine.checkpoint, engine.checkpoint.model
    system = parts.prompts.resolve(case.use_system_prompt, case.bot_task, None)
    pictures = [
        prepare_cond_image(load_image(image), model.config, case.infer_align_image_size) for image in case.images
    ]
    random = RequestRandom(case.seed or 0, model.device, engine.noise_on_cpu)
    conditions = encode_conditions(model, pictures, random)
    shapes = [CondShape(picture.bucket, picture.vision.grid) for picture in pictures]
    layout = parts.layouts.text_layout(system, case.prompt, shapes, text_task(case.bot_task))
    text, first = encode(editor, cot), len(layout) - 1
    ids = [*layout.ids, *text]
    kv = KVCache.allocate(model.config, 1, len(ids), model.dtype, layer_devices(model))
    x = embed_prompt(model, layout, ids, conditions, 0, len(ids))
    hidden = run_tokens(model, layout, x[None], 0, kv)[0, first:-1]  # [tokens of the text, hidden]
    return text, [token for rows in hidden.split(_ROWS_AT_ONCE) for token in model.logits(rows).argmax(-1).tolist()]


def engine_of(editor: Editor) -> NativeEngine:
    if not isinstance(editor.engine, NativeEngine):
        raise TypeError("only our own engine can be looked into; unset HUNYUAN_ENGINE")
    return editor.engine


@contextmanager
def _unwatched(_: str) -> Iterator[ProgressCallback | None]:
    yield None


@dataclass
class Outcome:
    """What a candidate did, request by request. `weight_error` is None where the reference is quantized itself."""

    name: str
    weight_error: float | None
    comparisons: list[Comparison]
    pictures: list[Image.Image]


def compare(
    load_a: Callable[[], Editor],
    candidates: Sequence[Candidate],
    cases: Sequence[EditRequest],
    watch: Watch = _unwatched,
    on_outcome: Callable[[Outcome], object] = lambda outcome: None,
) -> tuple[list[Reference], list[Outcome]]:
    """A once, then each candidate.

    Args:
        cases: of fixed sizes and seeds, so that all paint the same; greedy texts with their thoughts kept, so that what
            A read is what B reads.
        watch: entered with a word on what is done next; gives what is told how far it is.
        on_outcome: called with each candidate's as soon as it is there: what comes later takes as long again.
    """
    with watch("loading A"):
        editor: Editor | None = load_a()
    assert editor is not None
    folder = editor.settings.model_id
    references, outcomes = [], []
    for i, case in enumerate(cases, 1):
        with watch(f"A, request {i} of {len(cases)}") as on_progress:
            references.append(run_reference(editor, case, on_progress))
    for candidate in candidates:
        editor = None
        release()
        with watch(f"loading {candidate.name}"):
            editor = candidate.load()
            error = weight_error(folder, editor.settings.model_id, engine_of(editor).checkpoint.model.config)
        outcome = Outcome(candidate.name, error, [], [])
        for i, (case, reference) in enumerate(zip(cases, references, strict=True), 1):
            with watch(f"{candidate.name}, request {i} of {len(cases)}") as on_progress:
                comparison, painted = run_compared(editor, case, reference, on_progress, candidate)
            outcome.comparisons.append(comparison)
            outcome.pictures.append(painted.image)
        outcomes.append(outcome)
        on_outcome(outcome)
    return references, outcomes


def release() -> None:
    """One side's weights must be gone before the next one's come."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
