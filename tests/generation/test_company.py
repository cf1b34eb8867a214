"""Several texts decoded together: each the one that it is alone, and nobody's business is another's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_model import model_config
from text_tables import AUTO, CAPACITY, CPU, FIXED, GREEDY, THINK, USUAL, VOCAB, draws, plain, scripted, table
from torch import Tensor

from hunyuan import Editor
from hunyuan.accel.captured_decoding import CapturedCompany
from hunyuan.errors import Cancelled
from hunyuan.generation.company import Lane, LaneSteps, TextCompany
from hunyuan.generation.decoding import TextRun
from hunyuan.generation.kv_cache import KVCache
from hunyuan.generation.sampling import Sampling
from hunyuan.generation.workspace import lanes_forward, text_company, text_forward, zeros


class Rows:
    """A stand-in for the network: looks the logits up and notes which token was put where."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.fed = logits, dict[int, list[tuple[int, int]]]()
        self.counts: list[int] = []

    def __call__(self, tokens: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        assert (tokens.dtype, positions.dtype, rows.dtype) == (torch.int64, torch.int32, torch.int32)
        assert len(set(rows.tolist())) == len(rows)
        for row, token, position in zip(rows.tolist(), tokens.tolist(), positions.tolist(), strict=True):
            self.fed.setdefault(row, []).append((token, position))
        self.counts.append(len(rows))
        return self.logits[tokens]


def company_of(forward: Rows, lanes: int = 4, look_every: int = 8) -> TextCompany:
    rows = KVCache.allocate(model_config(), lanes, 1, torch.float32, CPU)
    return TextCompany(LaneSteps(forward, VOCAB, lanes, CAPACITY, CPU), rows, look_every)


def nothing() -> None:
    pass


def quiet(tokens: list[int]) -> None:
    pass


def begin(
    company: TextCompany,
    logits: Tensor,
    run: TextRun,
    check: Callable[[], None] = nothing,
    on_token: Callable[[list[int]], None] = quiet,
) -> Lane:
    lane = company.open()
    company.begin(lane, logits[run.last], run, check, on_token)
    return lane


@pytest.mark.parametrize("look_every", [1, 8])
@pytest.mark.slow
def test_each_text_is_the_one_that_it_is_alone(look_every: int) -> None:
    """Twelve texts in four rows, with rules, draws and lengths of their own, that come as others go."""
    logits, forward = table(0), Rows(table(0))
    company = company_of(forward, look_every=look_every)
    samplings = [GREEDY, USUAL, Sampling(True, 3.0, 50, 0.8), Sampling(True, 50.0, 900, 1.0)]
    runs = [
        TextRun([AUTO, FIXED, THINK][i % 3], samplings[i % 4], draws(i, 30 + 17 * (i % 5)), 20 + i, 50 + i)
        for i in range(12)
    ]
    waiting, lanes, texts = list(runs), list[tuple[TextRun, Lane]](), list[list[int]]()
    while waiting or lanes:
        while waiting and company.places:
            run = waiting.pop(0)
            lanes.append((run, begin(company, logits, run)))
        run, lane = lanes.pop(0)
        forward.fed.setdefault(lane.row, [])
        texts.append(company.decode(lane))
        fed = forward.fed.pop(lane.row)
        assert fed[: len(texts[-1]) - 1] == [(token, run.position + i) for i, token in enumerate(texts[-1][:-1])]
        company.close(lane)
    assert texts == [plain(logits, run.plan, run.sampling, run.uniform, run.last) for run in runs]
    assert max(forward.counts) == 4
    assert company.places == 4


def text(most: int, last: int = 1) -> TextRun:
    return TextRun(FIXED, GREEDY, draws(0, most), last, 50)


def test_a_text_that_ends_leaves_the_step_to_the_others() -> None:
    logits, forward = scripted({}), Rows(scripted({}))
    company = company_of(forward, look_every=4)
    short, long = begin(company, logits, text(3)), begin(company, logits, text(20))
    assert company.decode(long) == [70] * 20
    assert short.outcome == [70] * 3
    assert forward.counts == [2] * 2 + [1] * 17
    assert company.places == 2  # a row is kept until its picture is painted
    company.close(short)
    assert company.places == 3


def test_only_the_wanted_text_is_waited_for_and_the_others_go_on_later() -> None:
    logits, forward = scripted({}), Rows(scripted({}))
    company = company_of(forward, look_every=4)
    short, long = begin(company, logits, text(3)), begin(company, logits, text(20))
    assert company.decode(short) == [70] * 3
    assert long.outcome is None
    assert long.seconds > 0
    company.close(short)
    late = begin(company, logits, text(5))
    assert company.decode(late) == [70] * 5
    assert company.decode(long) == [70] * 20


@pytest.mark.parametrize("where", ["check", "on_token"])
def test_what_stops_one_text_stops_no_other(where: str) -> None:
    logits, seen = scripted({}), list[int]()
    company = company_of(Rows(logits), look_every=4)

    def stop(*_: object) -> None:
        seen.append(1)
        if len(seen) > 3:
            raise Cancelled("gone")

    first = begin(company, logits, text(30))
    stopped = begin(company, logits, text(30), **{where: stop})
    third = begin(company, logits, text(30))
    assert company.decode(third) == [70] * 30
    assert company.decode(first) == [70] * 30
    with pytest.raises(Cancelled, match="gone"):
        company.decode(stopped)
    assert len(seen) == 4  # nobody asks again
    for lane in (first, stopped, third):
        company.close(lane)
    assert company.places == 4


def test_closing_a_running_text_ends_it() -> None:
    logits, forward = scripted({}), Rows(scripted({}))
    company = company_of(forward)
    first, second = begin(company, logits, text(30)), begin(company, logits, text(30))
    company.close(first)
    company.close(first)
    assert company.places == 3
    assert company.decode(second) == [70] * 30
    assert set(forward.counts) == {1}


def test_there_are_so_many_rows_and_no_more() -> None:
    company = company_of(Rows(scripted({})), lanes=2)
    rows = [company.open().row for _ in range(2)]
    assert sorted(rows) == [0, 1]
    with pytest.raises(RuntimeError, match="all 2 rows"):
        company.open()
    with pytest.raises(ValueError, match="no token"):
        company.begin(Lane(0, company.rows), torch.zeros(VOCAB), replace(text(1), uniform=draws(0)[:0]), nothing, quiet)


def test_a_text_hears_of_its_own_tokens_only() -> None:
    script = {1: 5, 5: 6, 6: 7, 7: 5, 2: 8, 8: 9, 9: 8}
    logits, heard = scripted(script), {1: list[list[int]](), 2: list[list[int]]()}
    company = company_of(Rows(logits), look_every=2)
    lanes = [
        begin(company, logits, text(6, last), on_token=lambda tokens, last=last: heard[last].append(list(tokens)))
        for last in (1, 2)
    ]
    assert [company.decode(lane) for lane in lanes] == [[5, 6, 7, 5, 6, 7], [8, 9, 8, 9, 8, 9]]
    for last, lane in zip((1, 2), lanes, strict=True):
        assert heard[last][0] == []
        assert heard[last][-1] == lane.outcome
        assert all(tokens == lane.outcome[: len(tokens)] for tokens in heard[last])


@torch.inference_mode()
def test_the_network_s_step_of_several_rows_is_that_of_each(golden_editor: Editor, golden: Path) -> None:
    """Plain operations, one call for three of four rows; alone they are the same up to rounding."""
    model = golden_editor.engine.checkpoint.model
    together, alone = zeros(model, 4, 24), zeros(model, 4, 24)
    forward, each = lanes_forward(model, together), [text_forward(model, alone.select(row)) for row in range(4)]
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        rows = torch.tensor([[2, 0, 3], [3, 1, 0], [1]][step % 3], dtype=torch.int32)
        tokens = torch.randint(200, (len(rows),), generator=generator)
        places = rows * 2 + step
        expected = torch.stack([each[row](tokens[i : i + 1], places[i : i + 1]) for i, row in enumerate(rows.tolist())])
        torch.testing.assert_close(forward(tokens, places, rows), expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(together.keys + together.values, alone.keys + alone.values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_captured_steps_are_run_where_there_is_no_gpu(golden_editor: Editor) -> None:
    """One call for all rows; its greedy texts are those of each row by itself."""
    model = golden_editor.engine.checkpoint.model
    texts = []
    for captured in (CapturedCompany, None):
        company = text_company(model, 3, 60, captured)
        run = TextRun(THINK, GREEDY, draws(0, 40), 5, 0)
        lanes = [company.open() for _ in range(3)]
        for i, lane in enumerate(lanes):
            logits = torch.randn(model.config.vocab_size, generator=torch.Generator().manual_seed(i))
            company.begin(lane, logits, replace(run, uniform=run.uniform[: 40 - 9 * i]), nothing, quiet)
        texts.append([company.decode(lane) for lane in lanes])
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts[0]}) == 3


def test_without_fast_kernels_rows_are_decoded_one_after_the_other(golden_editor: Editor) -> None:
    model = golden_editor.engine.checkpoint.model
    company = text_company(model, 2, 16, None)
    assert (company.places, company.capacity) == (2, 16)
    tokens, places, rows = torch.tensor([5, 9]), torch.tensor([0, 0]).int(), torch.tensor([1, 0]).int()
    with torch.inference_mode():
        logits = company.steps.forward(tokens, places, rows)
        expected = text_forward(model, zeros(model, 1, 16))(tokens[1:], places[1:])
    assert torch.equal(logits[1], expected)


def test_who_begins_tells_no_other_of_its_tokens_again() -> None:
    logits, heard = scripted({}), list[int]()
    company = company_of(Rows(logits))
    first = begin(company, logits, text(5), on_token=lambda tokens: heard.append(len(tokens)))
    before = list(heard)
    begin(company, logits, text(5))
    assert heard == before
    company.decode(first)
    assert heard[len(before) :] == [5]
