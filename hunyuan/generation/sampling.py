"""From logits to the next token (docs/model.md, section 15). Order of the filters: temperature, top-k, top-p.

One draw is one uniform number and a search in the cumulated probabilities of the candidates, all of it tensor
operations of fixed shapes. Every decode step runs the same `draw`, captured or not, so that equal logits give equal
tokens. Does not know which tokens are forced or end the text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_TOP_K = 1024
# Beyond top-k, for tokens that tie with the last one of it: bf16 logits tie by the dozen.
TIES = 1024
_UNIFORM_BLOCK = 1024


@dataclass(frozen=True)
class Sampling:
    """How to draw a token; `do_sample=False` takes the best one."""

    do_sample: bool
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def candidates(self, vocab: int) -> int:
        """How many of the best tokens a draw has to look at."""
        few = not self.do_sample or 0 < self.top_k <= MAX_TOP_K
        return min(MAX_TOP_K + TIES, vocab) if few else vocab


@dataclass(frozen=True)
class SamplingTensors:
    """A request's sampling parameters on the device, each `[1]`, so that a captured step reads the current ones.

    Attributes:
        temperature: fp32.
        first: int64, place of the top-k's last token among the candidates in ascending order; 0 without top-k.
        ruled_out: fp64, `1 - top_p`: so much probability is cut off at the lower end.
    """

    temperature: Tensor
    first: Tensor
    ruled_out: Tensor

    @classmethod
    def empty(cls, device: torch.device) -> SamplingTensors:
        return cls(*(torch.zeros(1, dtype=kind, device=device) for kind in (torch.float32, torch.int64, torch.float64)))

    def fill(self, sampling: Sampling, candidates: int) -> None:
        """Takes a request's values over, for draws among `candidates` tokens."""
        self.temperature.fill_(sampling.temperature)
        self.first.fill_(candidates - sampling.top_k if 0 < sampling.top_k < candidates else 0)
        self.ruled_out.fill_(1 - sampling.top_p if sampling.top_p < 1 else 0.0)


def draw(logits: Tensor, candidates: int, parameters: SamplingTensors, uniform: Tensor) -> Tensor:
    """Draws one token; nothing here waits for the device.

    Args:
        logits: fp32 `[vocab]`.
        candidates: only so many of the best tokens are looked at; see `Sampling.candidates`.
        uniform: fp64 `[1]` in [0, 1).

    Returns:
        int64 `[1]`.
    """
    best, index = logits.topk(candidates)  # both [candidates], descending
    # Division before the comparison, as the definition has it: it may make two logits equal.
    ordered = best.flip(0) / parameters.temperature  # ascending
    ordered = ordered.masked_fill(ordered < ordered.index_select(0, parameters.first), float("-inf"))
    # In fp64 the order in which a GPU adds the terms does not matter.
    cumulated = ordered.softmax(dim=0).cumsum(dim=0, dtype=torch.float64)
    gone = cumulated <= parameters.ruled_out
    gone = gone[:-1]  # the best token always stays
    lost = (cumulated[:-1] * gone).amax(dim=0, keepdim=True) if len(gone) else torch.zeros_like(uniform)  # [1]
    target = lost + uniform * (cumulated[-1:] - lost)
    place = (cumulated[:-1] <= target).sum(dim=0, keepdim=True)  # [1]
    return index.index_select(0, candidates - 1 - place)


def uniforms(generator: torch.Generator, count: int) -> Tensor:
    """fp64 `[count]` in [0, 1) on the generator's device, one for each token to come.

    Drawn in blocks of one size: what the first tokens get does not depend on how many may follow.
    """
    blocks = [
        torch.rand(_UNIFORM_BLOCK, generator=generator, device=generator.device, dtype=torch.float64)
        for _ in range(-(-count // _UNIFORM_BLOCK))
    ]
    return torch.cat(blocks)[:count]
