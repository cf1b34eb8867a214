"""From logits to the next token (spec section 15). Order of the filters: temperature, top-k, top-p."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How to draw a token; `do_sample=False` takes the best one."""

    do_sample: bool
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def pick(self, logits: Tensor, generator: torch.Generator) -> int:
        """`logits` fp32 `[vocab]` -> a token id."""
        if not self.do_sample:
            return int(logits.argmax())
        probabilities = self.filter(logits).softmax(dim=-1)
        return int(torch.multinomial(probabilities, 1, generator=generator))

    def filter(self, logits: Tensor) -> Tensor:
        """Scaled logits, minus infinity where a token is ruled out."""
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[-1], float("-inf"))
        if self.top_p < 1:
            ordered, index = logits.sort()  # ascending
            tail = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
            tail[-1] = False  # the best token always stays
            logits = logits.masked_fill(tail.scatter(0, index, tail), float("-inf"))
        return logits
