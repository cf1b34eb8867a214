"""Runs the same edits through two sets of weights and reports how far apart they are.

Knows editors and requests; `hunyuan.cli.compare` knows the command line. A is the reference; only one is in memory at a
time. Each thinks for itself once, for the text; both pictures are painted with A's text, so that they differ by the
painting alone.

- PSNR, SSIM, largest difference: of the two pictures.
- velocity: |B - A| / |A| of what the network predicts at each step, B being given A's latents.
- text, free: tokens that the greedy texts of A and B have in common before they part, of all tokens of A's.
- text, forced: share of positions with the same likeliest next token, both reading A's text.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor

from hunyuan import Editor, EditRequest, EditResult
from hunyuan.compare import picture_metrics as metrics
from hunyuan.engines.native import NativeEngine
from hunyuan.generation.denoise import Denoiser
from hunyuan.generation.kv_cache import KVCache, layer_devices
from hunyuan.generation.prefill import embed_prompt, encode_conditions, run_tokens
from hunyuan.generation.random_numbers import RequestRandom
from hunyuan.pictures.reader import load_image
from hunyuan.prompt.images import prepare_cond_image
from hunyuan.prompt.layout import CondShape, TextTask
from hunyuan.requests import ProgressCallback

_ROWS_AT_ONCE = 256  # of logits: a thousand of them take half a gigabyte

Watch = Callable[[str], AbstractContextManager[ProgressCallback | None]]
Predict = Callable[[Denoiser, Tensor, int], Tensor]


@dataclass
class Reference:
    """What A did: its result, the latents it had before each step and the velocities it predicted there, on the CPU."""

    result: EditResult
    latents: dict[int, Tensor] = field(default_factory=dict)
    velocities: dict[int, Tensor] = field(default_factory=dict)
    text: list[int] = field(default_factory=list)
    likeliest: list[int] = field(default_factory=list)


@dataclass
class Comparison:
    """One request's numbers. None: not defined (equal pictures have no PSNR, a request without thinking no text)."""

    prompt: str
    size: tuple[int, int]
    psnr_db: float | None
    ssim: float
    largest_difference: int
    velocity_error: list[float]
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


def run_reference(editor: Editor, case: EditRequest, on_progress: ProgressCallback | None = None) -> Reference:
    latents: dict[int, Tensor] = {}
    velocities: dict[int, Tensor] = {}

    def recorded(original: Predict) -> Predict:
        def predict(self: Denoiser, x: Tensor, index: int) -> Tensor:
            velocity = original(self, x, index)
            latents[index], velocities[index] = x.cpu(), velocity.cpu()
            return velocity

        return predict

    # Painted from the finished text, as B will: keys left behind by decoding differ from a prompt's in their rounding.
    cot = own_text(editor, case, on_progress)
    with predicting(recorded):
        result = editor.run(replace(case, cot_text=cot), on_progress)
    reference = Reference(result, latents, velocities)
    if cot:
        reference.text, reference.likeliest = likeliest_tokens(editor, case, cot)
    return reference


def own_text(editor: Editor, case: EditRequest, on_progress: ProgressCallback | None = None) -> str | None:
    """What the model thinks by itself; None where the task has no thinking."""
    return None if case.bot_task == "image" else editor.run(replace(case, steps=1), on_progress).cot_text


def run_compared(
    editor: Editor, case: EditRequest, reference: Reference, on_progress: ProgressCallback | None = None
) -> tuple[Comparison, EditResult]:
    """As many steps as A took, whatever B's own default is."""
    errors: dict[int, float] = {}

    def forced(original: Predict) -> Predict:
        def predict(self: Denoiser, x: Tensor, index: int) -> Tensor:
            # First at A's latents: a step leaves nothing behind that the next pass over it does not overwrite.
            velocity = original(self, reference.latents[index].to(x.device), index)
            errors[index] = relative_error(velocity.cpu(), reference.velocities[index])
            return original(self, x, index)

        return predict

    cot = reference.result.cot_text
    with predicting(forced):
        painted = editor.run(replace(case, steps=reference.result.steps, cot_text=cot), on_progress)
    tokens = parting = share = None
    if reference.text and cot:
        own = encode(editor, own_text(editor, case, on_progress) or "")
        tokens, parting = len(reference.text), equal_before_parting(reference.text, own)
        _, likeliest = likeliest_tokens(editor, case, cot)
        share = sum(a == b for a, b in zip(likeliest, reference.likeliest, strict=True)) / tokens
    a, b = reference.result.image, painted.image
    noise = metrics.psnr(a, b)
    comparison = Comparison(
        prompt=case.prompt,
        size=a.size,
        psnr_db=None if math.isinf(noise) else noise,
        ssim=metrics.ssim(a, b),
        largest_difference=metrics.largest_difference(a, b),
        velocity_error=[errors[i] for i in sorted(errors)],
        text_tokens=tokens,
        text_equal_before_parting=parting,
        text_forced_share=share,
    )
    return comparison, painted


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
    task: TextTask = "recaption" if case.bot_task == "recaption" else "think"
    layout = parts.layouts.text_layout(system, case.prompt, shapes, task)
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


def compare(
    load_a: Callable[[], Editor], load_b: Callable[[], Editor], cases: Sequence[EditRequest], watch: Watch = _unwatched
) -> tuple[list[Comparison], Image.Image]:
    """Both sides one after the other; the numbers and the contact sheet.

    Args:
        cases: of fixed sizes and seeds, so that both sides paint the same; greedy texts with their thoughts kept, so
            that what A read is what B reads.
        watch: entered with a word on what is done next; gives what is told how far it is.
    """
    with watch("loading A"):
        editor = load_a()
    references = []
    for i, case in enumerate(cases, 1):
        with watch(f"A, request {i} of {len(cases)}") as on_progress:
            references.append(run_reference(editor, case, on_progress))
    del editor
    release()
    with watch("loading B"):
        editor = load_b()
    results = []
    for i, (case, reference) in enumerate(zip(cases, references, strict=True), 1):
        with watch(f"B, request {i} of {len(cases)}") as on_progress:
            results.append(run_compared(editor, case, reference, on_progress))
    rows = []
    for case, reference, (comparison, painted) in zip(cases, references, results, strict=True):
        a, b = reference.result.image, painted.image
        noise = "equal" if comparison.psnr_db is None else f"{comparison.psnr_db:.1f} dB"
        source = load_image(case.images[0]) if case.images else None
        apart = (f"difference x{metrics.AMPLIFIED}, {noise}", metrics.difference(a, b))
        rows.append([(case.prompt, source), ("A", a), ("B", b), apart])
    return [comparison for comparison, _ in results], metrics.contact_sheet(rows)


def release() -> None:
    """A's weights must be gone before B's come."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def table(comparisons: Sequence[Comparison]) -> str:
    """One line per request, then the velocity error of each step."""
    form = "{:<40} {:>9} {:>8} {:>7} {:>7} {:>9} {:>9} {:>11} {:>8}"
    lines = [
        form.format("request", "size", "PSNR dB", "SSIM", "max/255", "velocity", "last step", "text free", "forced")
    ]
    for c in comparisons:
        lines.append(
            form.format(
                c.prompt[:40],
                "x".join(map(str, c.size)),
                "equal" if c.psnr_db is None else f"{c.psnr_db:.2f}",
                f"{c.ssim:.4f}",
                c.largest_difference,
                f"{sum(c.velocity_error) / len(c.velocity_error):.2e}",
                f"{c.velocity_error[-1]:.2e}",
                "-" if c.text_tokens is None else f"{c.text_equal_before_parting}/{c.text_tokens}",
                "-" if c.text_forced_share is None else f"{c.text_forced_share:.4f}",
            )
        )
    steps = range(max(len(c.velocity_error) for c in comparisons))
    lines += ["", "velocity error of each step (mean over requests, largest)"]
    for step in steps:
        errors = [c.velocity_error[step] for c in comparisons if step < len(c.velocity_error)]
        lines.append(f"{step:>4} {sum(errors) / len(errors):>10.2e} {max(errors):>10.2e}")
    return "\n".join(lines)
