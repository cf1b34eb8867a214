"""The decode step on tables, token by token beside the loop that asks after every token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from text_tables import (
    ANSWER,
    AUTO,
    BOI,
    CAPACITY,
    CPU,
    END_RECAPTION,
    END_THINK,
    FIXED,
    GREEDY,
    RATIOS,
    RECAPTION,
    SIZE,
    THINK,
    USUAL,
    VOCAB,
    draws,
    plain,
    scripted,
    table,
)
from torch import Tensor

from hunyuan.errors import Cancelled
from hunyuan.generation.decoding import DecodeStep, TextDecoder, TextRun
from hunyuan.generation.sampling import MAX_TOP_K, Sampling
from hunyuan.generation.text import TextPlan


class Recorder:
    """A stand-in for the network: looks the logits up and notes where each token was put."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.fed = logits, list[tuple[int, int]]()

    def __call__(self, token: Tensor, position: Tensor) -> Tensor:
        assert position.dtype == torch.int32
        assert token.shape == position.shape == (1,)
        self.fed.append((int(token), int(position)))
        return self.logits[token[0]]


def never() -> None:
    pass


def quiet(done: int) -> None:
    pass


def fast(
    decoder: TextDecoder, logits: Tensor, plan: TextPlan, sampling: Sampling, uniform: Tensor, last: int = 1
) -> list[int]:
    return decoder.decode(logits[last], TextRun(plan, sampling, uniform, last, 50), never, quiet)


def decoder_of(forward: Callable[[Tensor, Tensor], Tensor], look_every: int = 8) -> TextDecoder:
    return TextDecoder(DecodeStep(forward, VOCAB, CAPACITY, CPU), look_every)


SAMPLINGS = [GREEDY, USUAL, Sampling(True, 3.0, 50, 0.8), Sampling(True, 1.0, 1, 1.0), Sampling(True, 50.0, 900, 1.0)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "usual", "narrow", "one", "hot"])
@pytest.mark.slow
def test_tokens_equal_the_eager_loops(sampling: Sampling) -> None:
    """One decoder serves all requests: nothing of the one before may show."""
    logits = table(0)
    recorder = Recorder(logits)
    decoder, seen = decoder_of(recorder), set()
    for seed, plan in enumerate([AUTO, FIXED, THINK] * 6):
        uniform = draws(seed)
        recorder.fed.clear()
        tokens = fast(decoder, logits, plan, sampling, uniform, last=20 + seed)
        assert tokens == plain(logits, plan, sampling, uniform, last=20 + seed)
        # Every token but the last has been fed, in its place; what was fed behind it does not matter.
        fed = recorder.fed[: len(tokens) - 1]
        assert fed == [(token, 50 + i) for i, token in enumerate(tokens[:-1])]
        seen |= set(tokens)
        assert len(recorder.fed) <= len(tokens) - 1 + decoder.look_every
    if sampling is USUAL:
        assert {END_THINK, RECAPTION, END_RECAPTION, ANSWER, BOI, SIZE} < seen
        assert seen & set(RATIOS)


@pytest.mark.parametrize("sampling", [GREEDY, USUAL])
def test_forced_tokens_come_once_and_the_ratio_is_the_best_one(sampling: Sampling) -> None:
    script = {1: 5, 5: END_THINK, RECAPTION: 6, 6: END_THINK, END_THINK: 7, 7: END_RECAPTION, SIZE: 9}
    logits = scripted(script)
    logits[SIZE, RATIOS[35]], logits[SIZE, RATIOS[3]] = 2.0, 1.99
    tokens = fast(decoder_of(Recorder(logits)), logits, AUTO, sampling, draws(0))
    # The second </think> is answered by the model's own wish.
    assert tokens == [5, END_THINK, RECAPTION, 6, END_THINK, 7, END_RECAPTION, ANSWER, BOI, SIZE, RATIOS[35]]
    assert tokens == plain(logits, AUTO, sampling, draws(0))


def test_a_trigger_at_the_prompts_end_and_one_among_the_forced() -> None:
    plan = TextPlan(((1, (2, 3)), (3, (4,)), (1, (5,))), frozenset([9]), None, (), 9)
    logits = scripted({4: 9})
    assert fast(decoder_of(Recorder(logits)), logits, plan, GREEDY, draws(0)) == [2, 3, 4, 9]
    assert plain(logits, plan, GREEDY, draws(0)) == [2, 3, 4, 9]


def test_a_ratio_trigger_at_the_prompts_end() -> None:
    logits = scripted({})
    plan = replace(AUTO, ratio_trigger=1)
    assert fast(decoder_of(Recorder(logits)), logits, plan, USUAL, draws(0)) == [RATIOS[0]]
    assert plain(logits, plan, USUAL, draws(0)) == [RATIOS[0]]


@pytest.mark.parametrize("most", [1, 2, 8, 9, 10, 17])
@pytest.mark.parametrize("look_every", [1, 8])
def test_running_out_feeds_no_token_too_many(most: int, look_every: int) -> None:
    logits = scripted({})
    recorder = Recorder(logits)
    tokens = fast(decoder_of(recorder, look_every), logits, FIXED, GREEDY, draws(0, most))
    assert tokens == [70] * most
    assert [position for _, position in recorder.fed] == list(range(50, 50 + most - 1))


def test_the_host_looks_every_few_tokens_and_can_stop() -> None:
    logits, seen = scripted({}), []
    recorder = Recorder(logits)
    decoder = decoder_of(recorder)

    def on_token(tokens: list[int]) -> None:
        seen.append(len(tokens))
        if len(tokens) > 10:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        decoder.decode(logits[1], TextRun(FIXED, GREEDY, draws(0), 1, 0), never, on_token)
    assert seen == [0, 1, 9, 17]
    assert fast(decoder, logits, FIXED, GREEDY, draws(0, 5)) == [70] * 5  # usable afterwards


def test_a_cancel_is_seen_before_each_token() -> None:
    logits = scripted({})
    recorder = Recorder(logits)

    def check() -> None:
        if len(recorder.fed) == 3:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        decoder_of(recorder).decode(logits[1], TextRun(FIXED, GREEDY, draws(0), 1, 0), check, quiet)
    assert len(recorder.fed) == 3


@pytest.mark.parametrize(
    ("sampling", "supported"),
    [
        (GREEDY, True),
        (USUAL, True),
        (Sampling(True, 1.0, MAX_TOP_K + 1), False),
        (Sampling(True, 1.0, 0), False),
        (Sampling(False, 1.0, 0), True),
    ],
)
def test_what_is_supported(sampling: Sampling, supported: bool) -> None:
    decoder = decoder_of(Recorder(torch.zeros(VOCAB, VOCAB)))
    assert decoder.supports(sampling) is supported
    if not supported:
        with pytest.raises(ValueError, match="candidates"):
            decoder.decode(torch.zeros(VOCAB), TextRun(FIXED, sampling, draws(0), 1, 0), never, quiet)


def test_a_small_vocabulary_supports_all() -> None:
    step = DecodeStep(lambda token, position: torch.zeros(40), 40, 10, CPU)
    assert step.supports(Sampling(True, 1.0, 0, 1.0))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (replace(FIXED, ratios=tuple(range(65))), "65 ratio tokens; there is room for 64"),
        (replace(FIXED, transitions=((1, (2,) * 31),)), "33 entries for forced tokens; there is room for 32"),
    ],
)
def test_tables_too_large_are_named(plan: TextPlan, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fast(decoder_of(Recorder(torch.zeros(VOCAB, VOCAB))), torch.zeros(VOCAB, VOCAB), plan, GREEDY, draws(0))


def test_no_token_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="no token"):
        fast(decoder_of(Recorder(torch.zeros(2, VOCAB))), torch.zeros(2, VOCAB), FIXED, GREEDY, torch.empty(0))
