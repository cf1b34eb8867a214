"""scripts/demo/shapes.py: an answer in another shape than its source is found and counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hunyuan.prompt.resolution import resolution_group
from scripts.demo import shapes
from scripts.demo.judge import BASE, Answer

SIZES = [bucket.size for bucket in resolution_group(BASE, False).buckets]


class Turning:
    """Gives back a picture of the source's size; of the last, tallest source on its side."""

    def __init__(self, turns: bool) -> None:
        self.turns = turns

    def answer(self, prompt: str, sources: list[Tensor], steps: int) -> Answer:
        assert (prompt, steps) == (shapes.PROMPT, 2)
        (source,) = sources
        last = source.shape[2:] == (SIZES[-1].height, SIZES[-1].width)
        return Answer(torch.zeros_like(source.transpose(2, 3) if self.turns and last else source), "")


@pytest.mark.parametrize("turns", [False, True])
def test_every_shape_is_asked_for_and_a_turned_answer_is_named(
    turns: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shapes.Product, "load", lambda folder, device: Turning(turns))
    assert shapes.main(["demo"]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    width, height = SIZES[-1].width, SIZES[-1].height
    assert width != height
    expected = [f"{size}: right" for size in SIZES]
    if turns:
        expected[-1] = f"{SIZES[-1]}: WRONG, {height}x{width}"
    assert lines == expected
    assert total == f"{len(SIZES) - turns} of {len(SIZES)} shapes right"
