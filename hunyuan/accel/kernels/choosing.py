"""What follows the logits of a decode step in one Triton kernel behind the search for the best candidates.

The plain form, `DecodeStep.choose`, is some forty launches on a GPU for a few thousand numbers. The same filters, draw
and tables; probabilities are added up in fp64 here as there, so that a token differs only where the uniform number
falls within the last bits of an fp32 probability. Importing this file needs Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hunyuan.accel.kernels.launch import on_device_of
from hunyuan.generation.decoding import DecodeStep


@triton.jit
def _draw(best, index, temperature, first, ruled_out, uniform, count: tl.constexpr, block: tl.constexpr):
    """One of the candidates `[count]`, best first: `hunyuan.generation.sampling.draw`."""
    j = tl.arange(0, block)  # in ascending order
    inside, before_last = j < count, j < count - 1
    by = tl.load(temperature)
    ordered = tl.div_rn(tl.load(best + count - 1 - j, mask=inside, other=float("-inf")), by)
    least = tl.div_rn(tl.load(best + count - 1 - tl.load(first)), by)
    ordered = tl.where(inside & (ordered >= least), ordered, float("-inf"))
    probs = tl.exp(ordered - tl.max(ordered, axis=0))
    probs = tl.div_rn(probs, tl.sum(probs, axis=0))
    cumulated = tl.cumsum(probs.to(tl.float64), axis=0)
    gone = before_last & (cumulated <= tl.load(ruled_out))
    lost = tl.max(tl.where(gone, cumulated, 0.0), axis=0)
    target = lost + uniform * (tl.max(tl.where(inside, cumulated, 0.0), axis=0) - lost)
    place = tl.sum((before_last & (cumulated <= target)).to(tl.int32), axis=0)
    return tl.load(index + count - 1 - place)


@triton.jit
def _best_ratio(logits, ratios, bias, places: tl.constexpr):
    """The likeliest ratio token, of equals the first."""
    i = tl.arange(0, places)
    value = tl.load(logits + tl.load(ratios + i)) + tl.load(bias + i)
    return tl.load(ratios + tl.min(tl.where(value == tl.max(value, axis=0), i, places - 1), axis=0))


@triton.jit
def _choose_kernel(
    logits, best, index, temperature, first, ruled_out, uniforms, sample, ratio_trigger, ratios, ratio_bias, forced,
    at, run_after, token, tokens, count, candidates: tl.constexpr, block: tl.constexpr, places: tl.constexpr,
):  # fmt: skip
    now, last = tl.load(count), tl.load(token)
    drawn = _draw(best, index, temperature, first, ruled_out, tl.load(uniforms + now), candidates, block)
    if tl.load(sample) == 0:
        j = tl.arange(0, block)
        value = tl.load(best + j, mask=j < candidates, other=float("-inf"))
        where = tl.load(index + j, mask=j < candidates, other=0)
        drawn = tl.min(tl.where(value == tl.load(best), where, 2147483647), axis=0)  # of equals the first
    if last == tl.load(ratio_trigger):
        drawn = _best_ratio(logits, ratios, ratio_bias, places)
    begins = tl.load(run_after + last)
    here = tl.where(begins > 0, begins, tl.load(at))
    must = tl.load(forced + here)
    chosen = tl.where(must >= 0, must, drawn)
    tl.debug_barrier()  # all threads have read what is written now
    tl.store(run_after + last, 0)  # each trigger acts once
    tl.store(at, here + (must >= 0).to(tl.int64))
    tl.store(token, chosen)
    tl.store(tokens + now, chosen)
    tl.store(count, now + 1)


class FusedStep(DecodeStep):
    """`DecodeStep` with that kernel."""

    def choose(self, logits: Tensor) -> None:
        best, index = logits.topk(self.candidates)  # both [candidates], descending
        p = self.parameters
        with on_device_of(logits):
            _choose_kernel[(1,)](
                logits, best, index, p.temperature, p.first, p.ruled_out, self.uniform, self.sample, self.ratio_trigger,
                self.ratios, self.ratio_bias, self.forced, self.at, self.run_after, self.token, self.tokens, self.count,
                candidates=self.candidates, block=triton.next_power_of_2(self.candidates), places=len(self.ratios),
                num_warps=8,
            )  # fmt: skip
