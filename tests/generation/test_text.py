"""Rules of the text stage: forced tokens, stops, the ratio choice and how the text reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from text_reference import TextState, decode_text, filtered

from hunyuan import Editor
from hunyuan.generation.sampling import Sampling
from hunyuan.generation.text import TextPlan, TextStream, read_text
from hunyuan.prompt.tokenizer import Tokenizer

VOCAB = 2624


@pytest.fixture
def tk(golden_editor: Editor) -> Tokenizer:
    return golden_editor.engine.checkpoint.tokenizer


def run(plan: TextPlan, wishes: Callable[[int], int], last: int, limit: int = 50) -> list[int]:
    """Decodes with a stand-in for the model: after token t it wants `wishes(t)`."""

    def logits_after(token: int) -> torch.Tensor:
        logits = torch.zeros(VOCAB)
        logits[wishes(token)] = 9.0
        return logits

    unused = torch.empty(0)
    return decode_text(logits_after(last), last, plan, Sampling(False), unused, limit, logits_after, lambda done: None)


def test_think_recaption_auto_forces_its_way_to_a_ratio(tk: Tokenizer) -> None:
    plan = TextPlan.create(tk, "think_recaption", auto_size=True, instruct=True)
    script = {tk.think: 5, 5: tk.end_think, tk.recaption: 6, 6: tk.end_recaption, tk.size: tk.ratios[35]}
    tokens = run(plan, lambda t: script.get(t, 0), tk.think)
    forced = [tk.recaption, 6, tk.end_recaption, tk.answer, tk.boi, tk.size, tk.ratios[35]]
    assert tokens == [5, tk.end_think, *forced]
    assert tk.ratio_index(tokens[-1]) == 35
    assert read_text(tokens, plan, tk, "think_recaption") == "<think>" + tk.decode(tokens[:5])


def test_pretrain_template_has_no_answer_tag(tk: Tokenizer) -> None:
    plan = TextPlan.create(tk, "recaption", auto_size=True, instruct=False)
    assert plan.transitions == ((tk.end_recaption, (tk.boi, tk.size)),)


def test_a_ratio_step_is_restricted_and_greedy_even_when_sampling(tk: Tokenizer) -> None:
    plan = TextPlan.create(tk, "recaption", auto_size=True, instruct=True)
    logits = torch.zeros(VOCAB)
    logits[7] = 100.0  # not a ratio
    logits[tk.ratios[34]] = 2.0
    logits[tk.ratios[3]] = 1.99
    constrained = TextState(plan).constrain(logits, tk.size)
    probabilities = filtered(Sampling(True, 0.6, 1024, 0.95), constrained).softmax(-1)
    assert probabilities[tk.ratios[34]] == 1.0


def test_each_transition_acts_once(tk: Tokenizer) -> None:
    plan = TextPlan.create(tk, "think_recaption", auto_size=False, instruct=True)
    # The model says </think> twice; only the first one is answered with <recaption>.
    script = {tk.think: tk.end_think, tk.recaption: tk.end_think, tk.end_think: 8, 8: tk.end_recaption}
    assert run(plan, script.__getitem__, tk.think) == [tk.end_think, tk.recaption, tk.end_think, 8, tk.end_recaption]


@pytest.mark.parametrize(
    ("task", "stops"),
    [
        ("think", ("end_think", "end_recaption")),
        ("recaption", ("end_recaption",)),
        ("think_recaption", ("end_recaption",)),
    ],
)
def test_stops_at_a_fixed_size(tk: Tokenizer, task: str, stops: tuple[str, ...]) -> None:
    plan = TextPlan.create(tk, task, auto_size=False, instruct=True)
    assert plan.stop == {getattr(tk, name) for name in stops}
    assert plan.ratio_trigger is None


def test_auto_size_stops_at_every_ratio_the_late_ones_too(tk: Tokenizer) -> None:
    plan = TextPlan.create(tk, "think", auto_size=True, instruct=True)
    assert plan.stop == set(tk.ratios)
    assert plan.transitions == ((tk.end_think, (tk.answer, tk.boi, tk.size)),)


def test_running_out_keeps_the_unfinished_text(tk: Tokenizer) -> None:
    plan = TextPlan.create(tk, "think_recaption", auto_size=True, instruct=True)
    tokens = run(plan, lambda t: 70, tk.think, limit=4)
    assert tokens == [70] * 4
    assert read_text(tokens, plan, tk, "think_recaption") == "<think>" + tk.decode(tokens)


def test_the_callback_sees_every_token_and_can_stop(tk: Tokenizer) -> None:
    plan, seen = TextPlan.create(tk, "recaption", auto_size=False, instruct=True), []

    def on_token(tokens: list[int]) -> None:
        seen.append(len(tokens))
        if len(tokens) == 3:
            raise InterruptedError

    logits = torch.zeros(VOCAB)
    logits[70] = 1
    with pytest.raises(InterruptedError):
        decode_text(logits, 1, plan, Sampling(False), torch.empty(0), 9, lambda t: logits, on_token)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("step", [1, 3, 8])
def test_the_stream_s_pieces_are_the_text_that_is_read(tk: Tokenizer, step: int) -> None:
    """A character of several tokens, and blanks that go before punctuation, are never shown wrongly."""
    plan, pieces = TextPlan.create(tk, "think_recaption", auto_size=False, instruct=True), []
    words = "A crane \u9e64 \U0001f426 , it is n't blue . Yes !"
    tokens = [*tk.encode(words), tk.end_think, tk.recaption, *tk.encode("again"), tk.end_recaption, 70, 70]
    assert len(tk.encode("\U0001f426")) > 1
    stream = TextStream(plan, tk, "think_recaption", pieces.append)
    for end in range(0, len(tokens), step):
        stream.show(tokens[:end])
    shown = len(pieces)
    stream.show(tokens, ended=True)
    assert "".join(pieces) == read_text(tokens, plan, tk, "think_recaption")
    assert shown > 2
    stream.show(tokens, ended=True)
    assert len(pieces) == shown + 1, "nothing is shown twice"
