"""The text stage: thinking, rewriting and picking the picture's ratio, token by token (docs/model.md, section 15).

Knows which tokens are forced after which, where text ends, and how the result reads. How they are decoded is in
`decoding.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


def read_text(tokens: Sequence[int], plan: TextPlan, tokenizer: Tokenizer, bot_task: BotTask) -> str:
    """The text proper, its opening tag (which the prompt held) in front; all of it when it never ended."""
    stop = tokens.index(plan.end) + 1 if plan.end in tokens else len(tokens)
    opening = "<recaption>" if bot_task == "recaption" else "<think>"
    return opening + tokenizer.decode(tokens[:stop])


def text_listener(
    plan: TextPlan, tokenizer: Tokenizer, bot_task: BotTask, on_text: TextCallback | None
) -> Callable[..., None]:
    """`TextStream.show` where somebody listens, otherwise nothing that takes time."""
    if on_text is None:
        return lambda tokens, ended=False: None
    return TextStream(plan, tokenizer, bot_task, on_text).show


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
