"""Attention by segments: the same result as a dense mask, without ever making one for an image block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_model import noise
from torch import Tensor
from torch.nn.attention.bias import CausalBias
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from hunyuan.model.attention import Segment, attend, split_segments
from scripts.support.dense_attention import attend_masked, dense_mask

Blocks = list[tuple[int, int]]

LENGTH = 24
LAYOUTS: dict[str, Blocks] = {
    "text only": [],
    "at the start": [(0, 5)],
    "at the end": [(17, 24)],
    "adjacent": [(3, 7), (7, 8), (8, 15)],
    "one token each": [(0, 1), (4, 5), (23, 24)],
    "everything": [(0, 24)],
    "images between text": [(2, 9), (10, 14), (18, 23)],
}


def random_blocks(seed: int, length: int = LENGTH) -> Blocks:
    """Disjoint blocks from random cuts; about every other stretch between two cuts is a block."""
    random = torch.Generator().manual_seed(seed)
    cuts = sorted({0, length, *torch.randint(1, length, (7,), generator=random).tolist()})
    chosen = torch.rand(len(cuts), generator=random) < 0.5
    return [(a, b) for a, b, keep in zip(cuts, cuts[1:], chosen, strict=False) if keep]


ALL_LAYOUTS = [*LAYOUTS.values(), *map(random_blocks, range(20))]


def may_see(query: int, key: int, blocks: Blocks) -> bool:
    """The rule itself: everything before, and all of the query's own image block."""
    return key <= query or any(first <= query < last and first <= key < last for first, last in blocks)


def rule(length: int, blocks: Blocks) -> Tensor:
    return torch.tensor([[may_see(q, k, blocks) for k in range(length)] for q in range(length)])


def seen(segments: list[Segment], length: int) -> Tensor:
    """What the queries of `segments`, in order, may see of `length` keys."""
    rows = []
    for s in segments:
        rows += [torch.arange(length) < (query + 1 if s.causal else s.stop) for query in range(s.start, s.stop)]
    return torch.stack(rows)


def whole_starts(blocks: Blocks, length: int = LENGTH) -> list[int]:
    """Places where a stretch may begin or end without cutting a block."""
    return [i for i in range(length) if not any(first < i < last for first, last in blocks)]


class SdpaCalls(TorchFunctionMode):
    """Keeps the arguments of every call of scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[torch.Size, torch.Size]] = []
        self.masks: list[object] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            self.shapes.append((args[0].shape, args[1].shape))
            self.masks.append(args[3] if len(args) > 3 else kwargs.get("attn_mask"))
            assert not kwargs.get("is_causal"), "aligned to the first key, not to the last"
        return func(*args, **kwargs)


def qkv(rows: int = 1, heads: int = 4, kv_heads: int = 2, dim: int = 8, length: int = LENGTH) -> list[Tensor]:
    return [noise(rows, length, h, dim, seed=i) for i, h in enumerate((heads, kv_heads, kv_heads))]


# --- which keys a query sees


@pytest.mark.parametrize("blocks", ALL_LAYOUTS, ids=str)
def test_mask_follows_the_rule(blocks):
    assert torch.equal(dense_mask(LENGTH, blocks), rule(LENGTH, blocks))


@pytest.mark.parametrize("blocks", ALL_LAYOUTS, ids=str)
def test_segments_cover_every_token_once_and_see_what_the_mask_shows(blocks):
    segments = split_segments(0, LENGTH, blocks)
    assert [i for s in segments for i in range(s.start, s.stop)] == list(range(LENGTH))
    assert torch.equal(seen(segments, LENGTH), rule(LENGTH, blocks))
    assert [(s.start, s.stop) for s in segments if not s.causal] == blocks


@pytest.mark.parametrize("blocks", ALL_LAYOUTS[:12], ids=str)
def test_segments_of_any_stretch_are_rows_of_the_mask(blocks):
    ends = [*whole_starts(blocks), LENGTH]
    whole = rule(LENGTH, blocks)
    for start in ends[:-1]:
        for stop in (e for e in ends if e > start):
            segments = split_segments(start, stop, blocks)
            assert torch.equal(seen(segments, LENGTH), whole[start:stop]), (start, stop)


@pytest.mark.parametrize(("start", "stop"), [(6, 20), (0, 6), (9, 12), (6, 9), (5, 9), (6, 10)], ids=str)
def test_cutting_a_block_is_refused(start, stop):
    with pytest.raises(ValueError, match=r"cut the image block \[5, 10\) in two"):
        split_segments(start, stop, [(5, 10)])


def test_blocks_outside_the_stretch_do_not_matter():
    assert split_segments(10, 14, [(5, 10), (14, 20)]) == [Segment(10, 14, causal=True)]
    assert split_segments(5, 10, [(0, 5), (5, 10), (10, 12)]) == [Segment(5, 10, causal=False)]


@pytest.mark.parametrize(
    ("case", "length", "blocks"),
    [
        ("edit1", 599, [(16, 321), (355, 595)]),
        ("edit2", 909, [(16, 321), (326, 631), (665, 905)]),
        ("edit1_text", 333, [(16, 321)]),
    ],
)
def test_mask_is_the_recorded_one(golden, case, length, blocks):
    packed = load_file(golden / "mask_rope.safetensors")[f"{case}.attention_mask_packed"].numpy()
    recorded = torch.from_numpy(np.unpackbits(packed, axis=-1, count=length)).bool()
    assert recorded.shape[1:] == (length, length)
    for row in recorded:
        assert torch.equal(dense_mask(length, blocks), row)


# --- the result


def test_reference_is_softmax_over_the_visible_keys():
    (q, k, v), blocks = qkv(rows=2), [(3, 9)]
    out = attend_masked(q, k, v, dense_mask(LENGTH, blocks))
    for row, query, head in [(0, 0, 0), (0, 4, 1), (1, 8, 2), (1, 20, 3)]:
        kv = head // 2  # two query heads share one key-value head
        keys = [key for key in range(LENGTH) if may_see(query, key, blocks)]
        scores = torch.stack([q[row, query, head] @ k[row, key, kv] for key in keys]) / 8**0.5
        expected = sum(weight * v[row, key, kv] for weight, key in zip(scores.softmax(0), keys, strict=True))
        torch.testing.assert_close(out[row, query, head], expected)


@pytest.mark.parametrize("blocks", ALL_LAYOUTS, ids=str)
def test_full_sequence_equals_the_masked_form(blocks):
    q, k, v = qkv()
    out = attend(q, k, v, split_segments(0, LENGTH, blocks))
    torch.testing.assert_close(out, attend_masked(q, k, v, rule(LENGTH, blocks)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", ALL_LAYOUTS[:12], ids=str)
def test_later_stretch_equals_its_rows_of_the_whole(blocks):
    """Also where the buffers hold more than the stretch: what lies behind it must not count."""
    q, k, v = qkv()
    whole = attend_masked(q, k, v, rule(LENGTH, blocks))
    ends = [*whole_starts(blocks), LENGTH]
    for start, stop in zip(ends[1::3], ends[3::3], strict=False):
        keys, values = k.clone(), v.clone()
        keys[:, stop:] = values[:, stop:] = torch.nan
        out = attend(q[:, start:stop], keys, values, split_segments(start, stop, blocks))
        torch.testing.assert_close(out, whole[:, start:stop], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (4, 1), (6, 2), (8, 4)])
@pytest.mark.parametrize("rows", [1, 3])
def test_heads_and_rows(rows, heads, kv_heads):
    q, k, v = qkv(rows, heads, kv_heads)
    blocks = LAYOUTS["images between text"]
    out = attend(q, k, v, split_segments(0, LENGTH, blocks))
    assert out.shape == q.shape
    torch.testing.assert_close(out, attend_masked(q, k, v, rule(LENGTH, blocks)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", [0, 1, 12, 23])
def test_single_token_sees_all_keys_up_to_itself(place):
    q, k, v = qkv(rows=2)
    out = attend(q[:, place : place + 1], k, v, split_segments(place, place + 1, []))
    expected = attend_masked(q, k, v, rule(LENGTH, []))[:, place : place + 1]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_dtype_of_the_queries_is_kept():
    q, k, v = (t.bfloat16() for t in qkv())
    segments = split_segments(0, LENGTH, [(3, 9)])
    assert attend(q, k, v, segments).dtype == torch.bfloat16
    assert attend_masked(q, k, v, dense_mask(LENGTH, [(3, 9)])).dtype == torch.bfloat16


# --- what it costs


@pytest.mark.parametrize("blocks", ALL_LAYOUTS, ids=str)
def test_no_dense_mask_and_no_repeated_keys_are_handed_over(blocks):
    q, k, v = qkv()
    segments = split_segments(0, LENGTH, blocks)
    with SdpaCalls() as calls:
        attend(q, k, v, segments)
    assert len(calls.masks) == len(segments)
    for segment, mask, (queries, keys) in zip(segments, calls.masks, calls.shapes, strict=True):
        assert queries == (1, 4, segment.stop - segment.start, 8)
        assert keys == (1, 2, segment.stop, 8)
        if segment.causal and segment.stop - segment.start > 1:
            assert type(mask) is CausalBias
        else:
            assert mask is None
