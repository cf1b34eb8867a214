"""Where tokens stand and how they are turned, against the recorded tables and the plain formula."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from small_model import noise

from hunyuan.model.rope import Grid, apply_rope, positions_2d, rope_table

# (start, height, width) of each image of the recorded sequences.
RECORDED = {
    "edit1": (599, [Grid(16, 12, 20), Grid(257, 6, 10), Grid(355, 12, 20)]),
    "edit2": (909, [Grid(16, 12, 20), Grid(257, 6, 10), Grid(326, 20, 12), Grid(567, 10, 6), Grid(665, 12, 20)]),
}


def place(index: int, grids: list[Grid]) -> tuple[int, int]:
    """(y, x) of one token, by the formula: halves are cut off, the result is never negative here."""
    for g in grids:
        if g.start <= index < g.start + g.height * g.width:
            row, column = divmod(index - g.start, g.width)
            area = g.height * g.width
            return int(g.start + (area - g.height) / 2 + row), int(g.start + (area - g.width) / 2 + column)
    return index, index


# --- positions


@pytest.mark.parametrize("case", RECORDED)
def test_positions_are_the_recorded_ones(golden, case):
    length, grids = RECORDED[case]
    recorded = load_file(golden / "mask_rope.safetensors")[f"{case}.positions_yx"]
    assert positions_2d(0, length, grids).tolist() == recorded.tolist()


def test_text_stands_on_the_diagonal_at_its_own_index():
    positions = positions_2d(7, 11, [])
    assert positions.tolist() == [[7, 7], [8, 8], [9, 9], [10, 10]]
    assert positions.dtype == torch.int64


def test_text_goes_on_at_its_index_after_an_image():
    assert positions_2d(0, 10, [Grid(2, 2, 3)])[8:].tolist() == [[8, 8], [9, 9]]


def test_image_is_row_major_around_the_middle_of_its_stretch():
    # 2 x 4 tokens from 10: rows begin at 10 + (8 - 2) / 2, columns at 10 + (8 - 4) / 2.
    expected = [[y, x] for y in (13, 14) for x in (12, 13, 14, 15)]
    assert positions_2d(10, 18, [Grid(10, 2, 4)]).tolist() == expected


@pytest.mark.parametrize(
    ("grid", "first"),
    [
        (Grid(5, 3, 4), (9, 9)),  # 5 + 9 / 2 = 9.5 and 5 + 8 / 2
        (Grid(5, 4, 3), (9, 9)),  # 5 + 8 / 2 and 5 + 9 / 2 = 9.5
        (Grid(6, 3, 2), (7, 8)),  # 6 + 3 / 2 = 7.5 and 6 + 4 / 2
        (Grid(0, 1, 2), (0, 0)),  # 0.5 and 0
    ],
)
def test_odd_differences_round_down(grid, first):
    assert tuple(positions_2d(grid.start, grid.stop, [grid])[0].tolist()) == first


@pytest.mark.parametrize("grid", [Grid(3, h, w) for h in range(1, 6) for w in range(1, 6)], ids=str)
def test_positions_follow_the_formula(grid):
    ours = [tuple(p) for p in positions_2d(0, 40, [grid]).tolist()]
    assert ours == [place(i, [grid]) for i in range(40)]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 60), (5, 17), (13, 14), (20, 33), (14, 41), (59, 60)])
def test_window_is_a_slice_of_the_whole(start, stop):
    """Also where it begins or ends inside an image, or holds no image at all."""
    grids = [Grid(4, 3, 4), Grid(16, 2, 3), Grid(25, 5, 5)]
    assert torch.equal(positions_2d(start, stop, grids), positions_2d(0, 60, grids)[start:stop])


# --- tables


@pytest.mark.parametrize("case", RECORDED)
def test_tables_are_the_recorded_ones(golden, case):
    length, grids = RECORDED[case]
    recorded = load_file(golden / "mask_rope.safetensors")
    cos, sin = rope_table(positions_2d(0, length, grids), 16, 10000.0)
    torch.testing.assert_close(cos, recorded[f"{case}.cos"], rtol=0, atol=1e-5)
    torch.testing.assert_close(sin, recorded[f"{case}.sin"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dim", "theta"), [(4, 10000.0), (16, 10000.0), (12, 50.0)])
def test_tables_follow_the_formula(dim, theta):
    positions = [(0, 0), (3, 3), (2, 9), (150, 4)]
    cos, sin = rope_table(torch.tensor(positions), dim, theta)
    assert cos.dtype == sin.dtype == torch.float32
    half = dim // 2
    for token, (y, x) in enumerate(positions):
        for j in range(half):
            angle = theta ** (-2 * j / dim) * (y if j % 2 == 0 else x)
            for column in (j, j + half):
                assert cos[token, column] == pytest.approx(math.cos(angle), abs=2e-5)
                assert sin[token, column] == pytest.approx(math.sin(angle), abs=2e-5)


def test_even_frequencies_turn_with_y_and_odd_ones_with_x():
    base, lower, further = (rope_table(torch.tensor([p]), 16, 10000.0)[1][0] for p in ((5, 5), (6, 5), (5, 6)))
    even = [0, 2, 4, 6, 8, 10, 12, 14]
    odd = [1, 3, 5, 7, 9, 11, 13, 15]
    assert (lower != base).nonzero().flatten().tolist() == even
    assert (further != base).nonzero().flatten().tolist() == odd


# --- the rotation


def test_rotation_turns_pairs_half_a_head_apart():
    cos, sin = rope_table(torch.tensor([[2, 3], [4, 1]]), 8, 100.0)
    x = noise(2, 2, 3, 8)
    out = apply_rope(x, cos, sin)
    for row in range(2):
        for token in range(2):
            for head in range(3):
                for j in range(4):
                    a, b = x[row, token, head, j], x[row, token, head, j + 4]
                    c, s = cos[token, j], sin[token, j]
                    torch.testing.assert_close(out[row, token, head, j], a * c - b * s)
                    torch.testing.assert_close(out[row, token, head, j + 4], b * c + a * s)


def test_rotation_is_computed_and_returned_in_fp32():
    cos, sin = rope_table(torch.tensor([[200, 300]]), 8, 100.0)
    x = noise(1, 1, 2, 8).bfloat16()
    out = apply_rope(x, cos, sin)
    assert out.dtype == torch.float32
    assert torch.equal(out, apply_rope(x.float(), cos, sin))


def test_first_token_is_not_turned():
    x = noise(1, 1, 2, 8)
    assert torch.equal(apply_rope(x, *rope_table(torch.tensor([[0, 0]]), 8, 100.0)), x)
