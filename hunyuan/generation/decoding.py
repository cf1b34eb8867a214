"""Decoding text without asking the device after each token (docs/model.md, section 15).

`DecodeStep` is one token: run the last one through the network, apply the text stage's rules, draw, write the result
down. Everything it reads and writes lies in buffers that keep their place, so that the step can be captured once and
replayed for every token of every request; the host looks at the tokens now and then. Knows the rules of `text.TextPlan`
as tables; does not know how logits are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hunyuan.generation.sampling import MAX_TOP_K, TIES, Sampling, SamplingTensors, draw
from hunyuan.generation.text import TextPlan

Forward = Callable[[Tensor, Tensor], Tensor]  # token int64 [1], its position int32 [1] -> logits fp32 [vocab]

_FORCED = 32
_RATIOS = 64


@dataclass(frozen=True)
class TextRun:
    """One request's text.

    Attributes:
        uniform: fp64 `[most new tokens]` on the model's device, of `sampling.uniforms`.
        last: the prompt's last token.
        position: where the first new token will stand; its keys and values go there.
    """

    plan: TextPlan
    sampling: Sampling
    uniform: Tensor
    last: int
    position: int


class DecodeStep:
    """One token of one request at a time, on buffers that are filled anew for each request.

    Args:
        forward: runs a token at a position and returns the logits after it; must not wait for the device.
        vocab: how many logits there are.
        capacity: most tokens a request may decode.
        candidates: how many of the best tokens a draw looks at; None: as many as the usual sampling needs.
    """

    def __init__(
        self, forward: Forward, vocab: int, capacity: int, device: torch.device, candidates: int | None = None
    ) -> None:
        def zeros(size: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.forward, self.capacity, self.device = forward, capacity, device
        self.candidates = min(MAX_TOP_K + TIES, vocab) if candidates is None else candidates
        self.token, self.count, self.position = zeros(1), zeros(1), zeros(1, torch.int32)
        self.tokens, self.uniform = zeros(capacity), zeros(capacity, torch.float64)
        # All forced tokens one after the other, -1 behind each run of them and in the first place.
        self.forced, self.at = zeros(_FORCED).fill_(-1), zeros(1)
        self.run_after = zeros(vocab)  # by token: where the run that it triggers begins, 0 for none
        self.ratio_trigger = zeros(1).fill_(-1)
        self.ratios, self.ratio_bias = zeros(_RATIOS), zeros(_RATIOS, torch.float32)
        self.sample, self.parameters = zeros(1, torch.bool), SamplingTensors.empty(device)

    def supports(self, sampling: Sampling) -> bool:
        """Whether it looks at enough candidates."""
        return sampling.candidates(len(self.run_after)) <= self.candidates

    def fill(self, run: TextRun) -> None:
        """Begins a request that decodes at most `capacity` tokens.

        Raises:
            ValueError: the plan's tables are larger than the buffers, or the sampling is not supported.
        """
        plan, sampling = run.plan, run.sampling
        if not self.supports(sampling):
            raise ValueError(f"top_k={sampling.top_k} looks at more than {self.candidates} candidates")
        self._fill_forced(plan)
        count = len(plan.ratios)
        if count > _RATIOS:
            raise ValueError(f"{count} ratio tokens; there is room for {_RATIOS}")
        self.ratio_bias.fill_(float("-inf"))
        if count:
            self.ratios[:count] = torch.tensor(plan.ratios)
            self.ratio_bias[:count] = 0
        self.ratio_trigger.fill_(-1 if plan.ratio_trigger is None else plan.ratio_trigger)
        self.sample.fill_(sampling.do_sample)
        self.parameters.fill(sampling, self.candidates)
        self.uniform[: len(run.uniform)] = run.uniform
        self.token.fill_(run.last)
        self.position.fill_(run.position)
        self.count.zero_()

    def _fill_forced(self, plan: TextPlan) -> None:
        runs = [-1]
        self.run_after.zero_()
        self.at.zero_()
        for trigger, forced in reversed(plan.transitions):  # of two runs for one token the first counts
            self.run_after[trigger] = len(runs)
            runs += [*forced, -1]
        if len(runs) > _FORCED:
            raise ValueError(f"{len(runs)} entries for forced tokens; there is room for {_FORCED}")
        self.forced[: len(runs)] = torch.tensor(runs)

    def advance(self) -> None:
        """Feeds the last token and chooses the next one."""
        logits = self.forward(self.token, self.position)
        self.position.add_(1)
        self.choose(logits)

    def choose(self, logits: Tensor) -> None:
        """Chooses the token that follows, from fp32 `[vocab]`, and writes it down."""
        drawn = draw(logits, self.candidates, self.parameters, self.uniform.index_select(0, self.count))
        token = torch.where(self.sample, drawn, logits.argmax(dim=0, keepdim=True))  # [1]
        place = (logits.index_select(0, self.ratios) + self.ratio_bias).argmax(dim=0, keepdim=True)
        token = torch.where(self.token == self.ratio_trigger, self.ratios.index_select(0, place), token)
        forced = self._next_forced()
        token = torch.where(forced >= 0, forced, token)
        self.token.copy_(token)
        self.tokens.index_copy_(0, self.count, token)
        self.count.add_(1)

    def _next_forced(self) -> Tensor:
        """The token that must come next, or -1; int64 `[1]`."""
        begins = self.run_after.index_select(0, self.token)
        self.run_after.index_fill_(0, self.token, 0)  # each trigger acts once
        at = torch.where(begins > 0, begins, self.at)
        forced = self.forced.index_select(0, at)
        self.at.copy_(at + (forced >= 0))
        return forced

    def take_over(self, other: DecodeStep) -> None:
        """Goes on where `other`, of the same size, stands."""
        for ours, theirs in zip(self._buffers(), other._buffers(), strict=True):
            ours.copy_(theirs)

    def _buffers(self) -> list[Tensor]:
        every = (*vars(self).values(), *vars(self.parameters).values())
        return [value for value in every if isinstance(value, Tensor)]

    def read(self, start: int, stop: int) -> list[int]:
        """The chosen tokens [start, stop); waits for them."""
        return self.tokens[start:stop].tolist()


class TextDecoder:
    """Decodes whole texts with a `DecodeStep`.

    Args:
        look_every: the host reads the new tokens after so many.
    """

    def __init__(self, step: DecodeStep, look_every: int = 1) -> None:
        self.step, self.look_every = step, look_every

    def supports(self, sampling: Sampling) -> bool:
        return self.step.supports(sampling)

    @torch.inference_mode()
    def decode(
        self, logits: Tensor, run: TextRun, check: Callable[[], None], on_token: Callable[[list[int]], None]
    ) -> list[int]:
        """Decodes until a stop token, at most `len(run.uniform)` tokens.

        Up to `look_every - 1` tokens behind a stop token are computed in vain; their keys and values stand behind
        the text's end, where nobody looks.

        Args:
            logits: fp32 `[vocab]` after the prompt.
            check: called before each token is launched; may raise to stop.
            on_token: called with the tokens so far at each look and at the end; may raise to stop.

        Returns:
            The new tokens, the stop token included.

        Raises:
            ValueError: see `DecodeStep.fill`; or `run.uniform` is empty.
        """
        most, tokens = len(run.uniform), list[int]()
        if not most:
            raise ValueError("no token may be decoded")
        on_token(tokens)
        self.step.fill(run)
        self.step.choose(logits)
        launched = 1
        while True:
            for token in self.step.read(len(tokens), launched):
                tokens.append(token)
                if token in run.plan.stop or len(tokens) == most:
                    on_token(tokens)
                    return tokens
            on_token(tokens)
            for _ in range(min(self.look_every, most - launched)):
                check()
                self.launch()
                launched += 1

    def launch(self) -> None:
        """Computes one more token."""
        self.step.advance()
