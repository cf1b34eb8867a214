"""Measures FlashInfer's tiles on the GPU at warm-up: every candidate's result is checked before its time counts.

The time of a pair is taken as separable: first the first product's tile is chosen, then the second's. Knows the
FlashInfer backend and `tactics.py`; not the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from hunyuan.accel.experts.flashinfer import FlashInferExperts
from hunyuan.accel.experts.tactics import ProfileIds, candidates, usual_buckets
from hunyuan.errors import SettingsError
from hunyuan.model.moe import experts_loop

CHECKED = 4  # tokens compared with fp32 arithmetic on the weights' values
EXACT = {"bf16": 2e-2, "fp8": 1e-1, "humming": 1e-1}  # relative error allowed there; activations are fp8 in two modes
AGREE = 2e-2  # relative difference between two right tiles: they add in another order and round to bf16
REPEATS = 5

log = logging.getLogger(__name__)


class NoTileWorks(SettingsError):
    """Every candidate tile failed: FlashInfer's package here lacks the tiles for these weights."""


@dataclass
class Trial:
    """Synthetic inputs for one number of tokens, and the result that all tiles must agree on.

    Attributes:
        exact: fp32, for the first `CHECKED` tokens.
        expected: the whole result of the first tile that was right on those.
        failed: how many candidates threw or disagreed.
    """

    backend: FlashInferExperts
    x: Tensor
    weights: Tensor
    index: Tensor
    out: Tensor
    exact: Tensor
    expected: Tensor | None = None
    failed: int = 0

    def time(self, ids: ProfileIds) -> float | None:
        """Median ms of the tiles `ids`; None where they throw or compute something else."""
        self.out.fill_(float("nan"))  # a tile that silently does nothing must not look right

        def call() -> None:
            self.backend.run(self.x, self.weights, self.index, self.out, ids)

        try:
            call()
            torch.cuda.synchronize()
        except Exception as error:  # which class a missing tile raises is not part of FlashInfer's interface
            log.debug("tactic %s: %s", ids, str(error)[:200])
            self.failed += 1
            return None
        if not self._right():
            self.failed += 1
            return None
        return milliseconds(call)

    def _right(self) -> bool:
        if not _difference(self.out[:CHECKED], self.exact) <= EXACT[self.backend.mode]:  # also where it is not a number
            return False
        if self.expected is None:
            self.expected = self.out.clone()
        return _difference(self.out, self.expected) <= AGREE


def trial(backend: FlashInferExperts, tokens: int, seed: int = 0) -> Trial:
    """Gaussian tokens with uniform routing."""
    experts, topk, hidden, _ = backend.shared.key.shape
    device = backend.down.device
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(tokens, hidden, device=device, dtype=torch.bfloat16, generator=generator)
    scores = torch.randn(tokens, experts, device=device, generator=generator)
    weights, index = scores.softmax(-1).topk(topk)
    weights = (weights / weights.sum(-1, keepdim=True)).contiguous()
    exact = experts_loop(x[:CHECKED].float(), weights[:CHECKED], index[:CHECKED], backend.stacks.dequantized)
    return Trial(backend, x, weights, index.int(), torch.empty_like(x), exact)


def search(t: Trial, everything: bool = False) -> dict[ProfileIds, float]:
    """Times of all pairs that were tried, ms. Raises `NoTileWorks`."""
    first, second = candidates(t.backend.mode, everything)
    times: dict[ProfileIds, float] = {}

    def try_all(pairs: list[ProfileIds]) -> ProfileIds | None:
        measured = [(ms, ids) for ids in pairs if (ms := t.time(ids)) is not None]
        times.update({ids: ms for ms, ids in measured})
        return min(measured)[1] if measured else None

    start = next((pair for g in second if (pair := try_all([(f, g) for f in first[:1]]))), None)
    start = start or next((pair for g in second if (pair := try_all([(f, g) for f in first]))), None)
    if start is None:
        raise NoTileWorks(f"no FlashInfer tile works for {t.backend.shared.key.text()}, {len(t.x)} tokens")
    best = try_all([(f, start[1]) for f in first]) or start
    best = try_all([(best[0], g) for g in second]) or best
    return times


def tune(backend: FlashInferExperts, buckets: tuple[int, ...] | None = None) -> list[str]:
    """Fills in what the tactics lack for `backend`, and drops table entries that do not run here.

    Returns one line per measured entry. Raises `NoTileWorks`.
    """
    shared, lines = backend.shared, []
    for tokens in buckets or usual_buckets(shared.max_tokens):
        t = trial(backend, tokens)
        if shared.tactics.has(shared.key, tokens):
            ids = shared.tactics.find(shared.key, tokens)
            if t.time(ids) is not None:
                continue
            shared.tactics.forget(shared.key, tokens)
        times = search(t)
        best = min(times, key=lambda ids: times[ids])
        shared.tactics.remember(shared.key, tokens, best)
        lines.append(
            f"MoE tactic for {shared.key.text()}, {tokens} tokens: {list(best)}, {times[best]:.3f} ms "
            f"(of {len(times)} pairs; {t.failed} failed)"
        )
    return lines


def milliseconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median GPU time of `call`, one warm-up before."""
    call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times)


def _difference(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()
