"""The text stage: thinking, rewriting and picking the picture's ratio, token by token (spec section 15).

Knows which tokens are forced after which, where text ends, and how the result reads. Does not know how logits
are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hunyuan.generation.sampling import Sampling
from hunyuan.prompt.tokenizer import Tokenizer
from hunyuan.requests import BotTask, TextCallback


@dataclass(frozen=True)
class TextPlan:
    """The rules of one text stage.

    Attributes:
        transitions: after a trigger token, these tokens are forced; each trigger acts once.
        stop: tokens that end the stage.
        ratio_trigger: after this token only ratio tokens may come, the best one, even when sampling.
        end: the token that ends the text proper.
    """

    transitions: tuple[tuple[int, tuple[int, ...]], ...]
    stop: frozenset[int]
    ratio_trigger: int | None
    ratios: tuple[int, ...]
    end: int

    @classmethod
    def create(cls, tokenizer: Tokenizer, bot_task: BotTask, auto_size: bool, instruct: bool) -> TextPlan:
        recaptions = bot_task in ("recaption", "think_recaption")
        end = tokenizer.end_recaption if recaptions else tokenizer.end_think
        transitions: list[tuple[int, tuple[int, ...]]] = []
        if bot_task == "think_recaption":
            transitions.append((tokenizer.end_think, (tokenizer.recaption,)))
        if auto_size:
            answer = (tokenizer.answer,) if instruct else ()
            transitions.append((end, (*answer, tokenizer.boi, tokenizer.size)))
            stop = frozenset(tokenizer.ratios)
        else:
            stop = frozenset([end] if recaptions else [tokenizer.end_think, tokenizer.end_recaption])
        return cls(tuple(transitions), stop, tokenizer.size if auto_size else None, tokenizer.ratios, end)


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
        last = sampling.pick(state.constrain(logits, last), uniform[done : done + 1])
        tokens.append(last)
        if last in plan.stop or len(tokens) >= max_new_tokens:
            on_token(tokens)
            return tokens
        logits = feed(last)


def read_text(tokens: Sequence[int], plan: TextPlan, tokenizer: Tokenizer, bot_task: BotTask) -> str:
    """The text proper, its opening tag (which the prompt held) in front; all of it when it never ended."""
    stop = tokens.index(plan.end) + 1 if plan.end in tokens else len(tokens)
    opening = "<recaption>" if bot_task == "recaption" else "<think>"
    return opening + tokenizer.decode(tokens[:stop])


class TextStream:
    """Hands the text on while it is decoded; the pieces together are what `read_text` reads at the end.

    The last letters are held back: a character may be half there, and a blank before punctuation goes when it comes.
    """

    HELD_BACK = 8

    def __init__(self, plan: TextPlan, tokenizer: Tokenizer, bot_task: BotTask, on_text: TextCallback) -> None:
        self.plan, self.tokenizer, self.bot_task, self.on_text = plan, tokenizer, bot_task, on_text
        self.shown = 0  # letters

    def show(self, tokens: Sequence[int], ended: bool = False) -> None:
        """`tokens`: all so far. `ended`: there will be no more."""
        text = read_text(tokens, self.plan, self.tokenizer, self.bot_task)
        end = len(text) if ended else len(text) - self.HELD_BACK
        if end > self.shown:
            self.on_text(text[self.shown : end])
            self.shown = end
