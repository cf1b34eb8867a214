"""FlexAttention's tiles and the router's choice in training, beside the rule token by token and `topk`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scripts.demo.operations import BLOCK, TILES, Rule, top

STRETCH = 257
KINDS = {
    "none": (127, [], 256),
    "one": (383, [(9, 283)], 256),
    "one, not square": (383, [(9, 280)], 15 * 17),
    "two": (767, [(9, 283), (286, 560)], 256),
    "two, beside each other": (767, [(9, 283), (286, 560)], 11 * 22),
}


def rule_of(room: int, conds: list[tuple[int, int]], area: int, lengths: list[int], copies: int = 1) -> Rule:
    """The rule for a batch of such texts, its tiles in use."""
    rule = Rule.create(len(lengths), room, STRETCH, copies, torch.device("cpu"))
    bounds = torch.tensor([*conds, *[(0, 0)] * (2 - len(conds))])
    rule.set(torch.tensor(lengths), bounds, area, rule.tiles(bounds, area))
    return rule


def tables(rule: Rule) -> tuple[Tensor, Tensor]:
    """The tiles to compute and those to compute without asking, bool `[rows, columns]`, as the mask's lists say."""
    mask = rule.blocks
    assert mask is not None
    found = []
    for numbers, indices in ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)):
        assert numbers is not None
        assert indices is not None
        table = torch.zeros(indices.shape[2:], dtype=torch.bool)
        for row, count in enumerate(numbers[0, 0].tolist()):
            table[row, indices[0, 0, row, :count].long()] = True
        found.append(table)
    part, full = found
    assert not (part & full).any()
    return part | full, full


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_tiles_say_what_the_rule_says_for_every_length(
    kind: tuple[int, list[tuple[int, int]], int], copies: int
) -> None:
    room, conds, _ = kind
    least = conds[-1][1] if conds else 0
    rule = rule_of(*kind, [least, least + 1, (least + room) // 2, room - 1, room], copies)
    seen = rule.dense()[:, 0]  # [n, tokens, tokens]
    needed, full = (t.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1) for t in tables(rule))
    size = rule.tokens
    assert not (seen & ~needed[:size, :size]).any()
    assert seen[:, full[:size, :size]].all()


def test_most_of_a_square_edits_tiles_are_whole_and_none_is_idle() -> None:
    needed, full = tables(rule_of(*KINDS["one"], [300]))
    assert needed.shape == (5, 5)
    assert full.sum() == 12
    assert needed.sum() == 19


def test_the_mask_stays_one_object_and_follows_the_kind() -> None:
    room, conds, area = KINDS["one"]
    rule = rule_of(room, conds, area, [300])
    mask, whole = rule.blocks, tables(rule)[1]
    bounds, narrow = torch.tensor([(9, 283), (0, 0)]), torch.tensor([(9, 200), (0, 0)])
    other = rule.tiles(narrow, 11 * 22)
    rule.set(torch.tensor([300]), narrow, 11 * 22, other)
    assert rule.blocks is mask
    assert (tables(rule)[1] != whole).any()
    assert all(torch.equal(getattr(mask, name), getattr(other, name)) for name in TILES)  # the backward pass's as well
    rule.set(torch.tensor([300]), bounds, area, rule.tiles(bounds, area))
    assert (tables(rule)[1] == whole).all()


def test_top_is_topk() -> None:
    share = torch.rand(50, 8, generator=torch.Generator().manual_seed(1)).softmax(dim=-1).requires_grad_()
    weights, index = top(share, 3)
    expected = share.topk(3, dim=-1)
    assert torch.equal(weights, expected.values)
    assert torch.equal(index, expected.indices)
    (grad,) = torch.autograd.grad(weights.square().sum(), share)
    (wanted,) = torch.autograd.grad(expected.values.square().sum(), share)
    assert torch.equal(grad, wanted)
