"""The MXFP4 kernels of `small_batch_kernels.py` with explicit layouts: no barrier between two loads.

Same arithmetic, same order of rows and units. A warp has rows of its own and reads 512 bytes of one row at a time, a
lane one block of 32 columns (half of it in row r, half in row r + 8), so scales and the vector are read where they are
needed and sums meet only at the end, within the warp. The next step's words are on their way before this step is
computed. Importing this file needs Triton; only `streamed.py` does so.
"""

from __future__ import annotations

import triton.language as tl

from hunyuan.accel.experts.small_batch_kernels import EXPONENT, TWO_WORDS, word_products
from hunyuan.accel.kernels.explicit import gl, jit, take_turn
from hunyuan.accel.kernels.launch import INTERPRETED
from hunyuan.accel.kernels.overlap import turns

__all__ = ["INTERPRETED", "add_parts", "down", "gate_and_up", "gl", "turns"]


@jit
def _unit_rows(first, units: tl.constexpr, layout: tl.constexpr):
    """As in `small_batch_kernels.py`: of each unit the memory row of r, its block of 64, the scales' place there."""
    unit = first + gl.arange(0, units, layout=gl.SliceLayout(0, gl.SliceLayout(2, layout)))
    block, r, group = unit // 32, unit % 32 // 4, unit % 4
    return block * 64 + group * 16 + r, block, r * 4 + group


@jit
def _read(words, scales, row, block, place, start, columns: tl.constexpr, bg: tl.constexpr, layout: tl.constexpr):
    """`bg` blocks from block `start`: words `[bg, units, 4]` and folded offsets `[bg, units]` of rows r and r + 8."""
    group = start + gl.arange(0, bg, layout=gl.SliceLayout(1, gl.SliceLayout(2, layout)))
    quad = gl.arange(0, 4, layout=gl.SliceLayout(0, gl.SliceLayout(1, layout)))
    at = words + (row * (columns // 8))[None, :, None] + (group * 4)[:, None, None] + quad[None, None, :]
    folded = scales + (block * (columns // 128) * 64 + place)[None, :] + (group // 4 * 64)[:, None]
    low, high = gl.load(at, eviction_policy="evict_first"), gl.load(at + columns, eviction_policy="evict_first")
    return low, high, gl.load(folded), gl.load(folded + 32)


@jit
def _read_vector(x, start, bg: tl.constexpr, layout: tl.constexpr):
    """`bg` blocks of x, int64 `[bg, 4]` of four bf16 numbers each: the first and the second half of each block."""
    group = start + gl.arange(0, bg, layout=gl.SliceLayout(1, gl.SliceLayout(1, layout)))
    quad = gl.arange(0, 4, layout=gl.SliceLayout(0, gl.SliceLayout(1, layout)))
    at = x + (group * 8)[:, None] + quad[None, :]
    return gl.load(at), gl.load(at + 4)


@jit
def _factor(folded, bg: tl.constexpr, layout: tl.constexpr):
    """fp32 2^(offset - 6) of each block; four blocks' offsets lie in one word, and `bg` is divisible by four."""
    shift = gl.arange(0, bg, layout=gl.SliceLayout(1, gl.SliceLayout(2, layout))) % 4 * 8
    return (((folded >> shift[:, None]) & 0xF) + EXPONENT << 23).to(gl.float32, bitcast=True)


@jit
def _two_words(word0, word1, x0, x1, plain: tl.constexpr):
    """Rows r and r + 8 of two words times eight numbers of x."""
    a0, b0, a1, b1 = x0.to(gl.int32), (x0 >> 32).to(gl.int32), x1.to(gl.int32), (x1 >> 32).to(gl.int32)
    if plain:
        low = word_products(word0, a0, b0, 0) + word_products(word1, a1, b1, 0)
        high = word_products(word0, a0, b0, 1) + word_products(word1, a1, b1, 1)
    else:
        low, high = gl.inline_asm_elementwise(
            TWO_WORDS,
            "=f,=f,r,r,r,r,r,r",
            args=[word0, word1, a0, b0, a1, b1],
            dtype=(gl.float32, gl.float32),
            is_pure=True,
            pack=1,
        )
    return low, high


@jit
def _products(tile, vector, bg: tl.constexpr, plain: tl.constexpr, layout: tl.constexpr):
    """Rows r and r + 8 of each unit times x: fp32 `[bg, units]` twice."""
    x0, x1 = vector
    word0, word1, low_scale, high_scale = tile
    low, high = _two_words(word0, word1, x0[:, None, :], x1[:, None, :], plain)
    return (
        gl.sum(low, axis=2) * _factor(low_scale, bg, layout),
        gl.sum(high, axis=2) * _factor(high_scale, bg, layout),
    )


@jit
def gate_and_up(
    x, index, words, scales, factor, out, topk, hidden: tl.constexpr, width: tl.constexpr, units: tl.constexpr,
    bg: tl.constexpr, plain: tl.constexpr, early: tl.constexpr, pdl: tl.constexpr, layout: tl.constexpr,
):  # fmt: skip
    """As `small_batch_kernels.gate_and_up_mxfp4`, of the same grid.

    `early`: the choice was made before the launch before, so weights may be read before this launch's turn.
    """
    choice = gl.program_id(1)
    row, block, place = _unit_rows(gl.program_id(0) * units, units, layout)
    if not early:
        take_turn(pdl)
    expert = gl.load(index + choice, cache_modifier=".cg").to(gl.int64)  # past a cache that may know an older choice
    words += expert * (2 * width) * (hidden // 8)
    scales += expert * (2 * width // 64) * (hidden // 128) * 64
    x += choice // topk * (hidden // 4)
    by = gl.load(factor + expert)
    up = _read(words, scales, row, block, place, 0, hidden, bg, layout)
    gate = _read(words, scales, row + width, block + width // 64, place, 0, hidden, bg, layout)
    if early:
        take_turn(pdl)
    zero = gl.zeros([bg, units], gl.float32, layout=gl.SliceLayout(2, layout))
    up_low, up_high, gate_low, gate_high = zero, zero, zero, zero
    for start in gl.static_range(0, hidden // 32, bg):
        vector, up_now, gate_now = _read_vector(x, start, bg, layout), up, gate
        if start + bg < hidden // 32:
            up = _read(words, scales, row, block, place, start + bg, hidden, bg, layout)
            gate = _read(words, scales, row + width, block + width // 64, place, start + bg, hidden, bg, layout)
        low, high = _products(up_now, vector, bg, plain, layout)
        up_low, up_high = up_low + low, up_high + high
        low, high = _products(gate_now, vector, bg, plain, layout)
        gate_low, gate_high = gate_low + low, gate_high + high
    at = out + choice * width + row
    gl.store(at, _swiglu(gl.sum(up_low, axis=0) * by, gl.sum(gate_low, axis=0) * by).to(gl.bfloat16))
    gl.store(at + 8, _swiglu(gl.sum(up_high, axis=0) * by, gl.sum(gate_high, axis=0) * by).to(gl.bfloat16))


@jit
def _swiglu(up, gate):
    return up * gate / (1.0 + gl.exp(-gate))


@jit
def down(
    h, index, weights, words, scales, factor, x, shared, out, topk: tl.constexpr, hidden: tl.constexpr,
    width: tl.constexpr, splits: tl.constexpr, units: tl.constexpr, bg: tl.constexpr, add: tl.constexpr,
    plain: tl.constexpr, early: tl.constexpr, pdl: tl.constexpr, layout: tl.constexpr,
):  # fmt: skip
    """As `small_batch_kernels.down_mxfp4`, of the same grid; where `add`, `x` and `shared` are added, one split."""
    part = gl.program_id(1)
    count: tl.constexpr = topk // splits
    steps: tl.constexpr = width // 32 // bg
    row, block, place = _unit_rows(gl.program_id(0) * units, units, layout)
    if not early:
        take_turn(pdl)
    expert = gl.load(index + part * count, cache_modifier=".cg").to(gl.int64)
    words_of = words + expert * hidden * (width // 8)
    scales_of = scales + expert * (hidden // 64) * (width // 128) * 64
    tile = _read(words_of, scales_of, row, block, place, 0, width, bg, layout)
    if early:
        take_turn(pdl)
    low_sum = gl.zeros([bg, units], gl.float32, layout=gl.SliceLayout(2, layout))
    high_sum = low_sum
    for step in gl.static_range(count * steps):
        choice, now = part * count + step // steps, tile
        vector = _read_vector(h + choice * (width // 4), step % steps * bg, bg, layout)
        by = gl.load(weights + choice) * gl.load(factor + expert)
        if step + 1 < count * steps:
            expert = gl.load(index + part * count + (step + 1) // steps, cache_modifier=".cg").to(gl.int64)
            words_of = words + expert * hidden * (width // 8)
            scales_of = scales + expert * (hidden // 64) * (width // 128) * 64
            tile = _read(words_of, scales_of, row, block, place, (step + 1) % steps * bg, width, bg, layout)
        low, high = _products(now, vector, bg, plain, layout)
        low_sum, high_sum = low_sum + low * by, high_sum + high * by
    low, high = gl.sum(low_sum, axis=0), gl.sum(high_sum, axis=0)
    if add:
        token = part * hidden + row
        low += gl.load(x + token).to(gl.float32) + gl.load(shared + token).to(gl.float32)
        high += gl.load(x + token + 8).to(gl.float32) + gl.load(shared + token + 8).to(gl.float32)
    at = out + part * hidden + row
    gl.store(at, low.to(out.dtype.element_ty))
    gl.store(at + 8, high.to(out.dtype.element_ty))


@jit
def add_parts(
    parts, x, shared, out, hidden: tl.constexpr, splits: tl.constexpr, rows: tl.constexpr, add: tl.constexpr,
    pdl: tl.constexpr, layout: tl.constexpr,
):  # fmt: skip
    """fp32 `[tokens, splits, hidden]`, `x` and `shared` to `[tokens, hidden]`; grid (hidden / rows, tokens)."""
    row = gl.program_id(0) * rows + gl.arange(0, rows, layout=layout)
    token = gl.program_id(1)
    take_turn(pdl)
    total = gl.zeros([rows], gl.float32, layout=layout)
    for i in gl.static_range(splits):
        total += gl.load(parts + (token * splits + i) * hidden + row)
    if add:
        at = token * hidden + row
        total += gl.load(x + at).to(gl.float32) + gl.load(shared + at).to(gl.float32)
    gl.store(out + token * hidden + row, total.to(out.dtype.element_ty))
