"""The judge: the exact edit passes everywhere, the unchanged picture only where it should be kept."""

from __future__ import annotations

import pytest
from torch import Tensor

from scripts.demo import edits
from scripts.demo.findings import Finding, table
from scripts.demo.judge import Answer, Case, cases, judge, recaption_of, sheet
from scripts.demo.speech import recaption

pytestmark = pytest.mark.slow  # to draw the hundred


@pytest.fixture(scope="module")
def hundred() -> list[Case]:
    return cases()


@pytest.fixture(scope="module")
def every(hundred: list[Case]) -> list[Case]:
    return hundred[::7]


def copy(picture: Tensor) -> Tensor:
    """An autoencoder that loses a little."""
    return (picture * 0.97 + 0.01).clamp(0, 1)


def said(case: Case) -> str:
    return f"<think>x</think><recaption>{recaption(case.task, 'en', len(case.sources))}</recaption>"


def finding(case: Case, picture: Tensor) -> Finding:
    return judge(case, Answer(picture, said(case)), copy)


def test_there_are_a_hundred_cases(hundred: list[Case]) -> None:
    assert len(hundred) == 100


def test_the_exact_edit_is_right(every: list[Case]) -> None:
    for case in every:
        if case.exact is not None:
            found = finding(case, copy(case.exact))
            assert found.said, case.prompt
            assert found.nearest, case.prompt
            assert found.psnr == found.ceiling


def test_the_unchanged_picture_is_right_only_where_it_is_to_be_kept(every: list[Case]) -> None:
    for case in every:
        if len(case.sources) == 1:
            assert finding(case, copy(case.sources[0])).nearest == (case.task.kind == "unknown"), case.prompt


def test_a_picture_that_should_be_kept_may_not_be_edited(every: list[Case]) -> None:
    for case in every:
        if case.task.kind == "unknown" and case.sources:
            assert not finding(case, edits.apply(edits.Step("brighter"), case.sources[0])).nearest


def test_another_edits_recaption_is_not_said(every: list[Case]) -> None:
    case = next(case for case in every if case.task.kind == "edit")
    assert case.exact is not None
    assert not judge(case, Answer(case.exact, "<recaption>The same picture in pink.</recaption>"), copy).said
    assert recaption_of("<recaption>cut off") == "cut off"
    assert recaption_of("") == ""


def test_table_and_sheet_name_what_is_wrong(every: list[Case]) -> None:
    shown = [(c, Answer(c.exact, said(c)), finding(c, copy(c.exact))) for c in every if c.exact is not None]
    shown[0][2].nearest = False
    text = table([found for *_, found in shown])
    assert f"| all | {len(shown)} | {len(shown)} | {len(shown) - 1} |" in text
    assert repr(shown[0][0].prompt) in text.partition("what the model said:")[2]
    assert sheet(shown).width > 1000
