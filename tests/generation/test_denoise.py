"""After which steps a picture is shown while it is painted."""

from __future__ import annotations

import pytest

from hunyuan.generation.denoise import preview_steps


@pytest.mark.parametrize(
    ("steps", "number", "after"),
    [(28, 0, []), (28, 1, [14]), (28, 3, [7, 14, 21]), (8, 2, [3, 5]), (2, 3, [1]), (1, 3, [])],
)
def test_previews_are_spread_over_the_steps_and_never_the_last_one(steps: int, number: int, after: list[int]) -> None:
    assert sorted(preview_steps(steps, number)) == after
