"""Decoding text in its plainest form: what `DecodeStep` and `draw` are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hunyuan.generation.sampling import Sampling, SamplingTensors, draw
from hunyuan.generation.text import TextPlan


def filtered(sampling: Sampling, logits: Tensor) -> Tensor:
    """Scaled logits, minus infinity where a token is ruled out."""
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], float("-inf"))
    if sampling.top_p < 1:
        ordered, index = logits.sort()  # ascending
        tail = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - sampling.top_p
        tail[-1] = False  # the best token always stays
        logits = logits.masked_fill(tail.scatter(0, index, tail), float("-inf"))
    return logits


def pick(sampling: Sampling, logits: Tensor, uniform: Tensor) -> int:
    """`logits` fp32 `[vocab]` and one number of `uniforms`, `[1]` -> a token id."""
    if not sampling.do_sample:
        return int(logits.argmax())
    parameters, count = SamplingTensors.empty(logits.device), sampling.candidates(len(logits))
    parameters.fill(sampling, count)
    return int(draw(logits, count, parameters, uniform))


@dataclass
class TextState:
    """Applies a plan's rules; one request's progress through the forced tokens."""

    plan: TextPlan
    used: set[int] = field(default_factory=set)
    pending: list[int] = field(default_factory=list)

    def constrain(self, logits: Tensor, last: int) -> Tensor:
        """Rules out what may not follow `last`: `[vocab]` -> `[vocab]`."""
        if last == self.plan.ratio_trigger:
            allowed = torch.tensor(self.plan.ratios, device=logits.device)
            logits = only(logits, allowed[logits[allowed].argmax()])
        for trigger, forced in self.plan.transitions:
            if last == trigger and trigger not in self.used:
                self.used.add(trigger)
                self.pending = list(forced)
        if self.pending:
            logits = only(logits, torch.tensor(self.pending.pop(0), device=logits.device))
        return logits


def only(logits: Tensor, token: Tensor) -> Tensor:
    """Logit 0 for one token and the smallest number for all others."""
    return torch.full_like(logits, torch.finfo(logits.dtype).min).index_fill_(0, token.reshape(1), 0.0)


def decode_text(
    logits: Tensor,
    last: int,
    plan: TextPlan,
    sampling: Sampling,
    uniform: Tensor,
    max_new_tokens: int,
    feed: Callable[[int], Tensor],
    on_token: Callable[[list[int]], None],
) -> list[int]:
    """Decodes until a stop token or `max_new_tokens`.

    Args:
        logits: fp32 `[vocab]` after the prompt.
        last: the prompt's last token.
        uniform: fp64 `[max_new_tokens]` of `sampling.uniforms`; not read unless the text is sampled.
        feed: runs one token through the model and returns the logits after it.
        on_token: called with the tokens so far, before each further one and at the end; may raise to stop.

    Returns:
        The new tokens, the stop token included. The last one has not been fed.
    """
    state = TextState(plan)
    tokens: list[int] = []
    while True:
        on_token(tokens)
        done = len(tokens)
        last = pick(sampling, state.constrain(logits, last), uniform[done : done + 1])
        tokens.append(last)
        if last in plan.stop or len(tokens) >= max_new_tokens:
            on_token(tokens)
            return tokens
        logits = feed(last)
