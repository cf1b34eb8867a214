"""Triton kernels of a few tokens through their chosen experts: matrix-vector products that read each weight once.

Two products: up and gate with SwiGLU between them and the next, then down with the sum over a token's experts. Every
output row belongs to one program that adds in a fixed order, so two runs agree to the last bit. Experts are read from
the router's indices on the device. Importing this file needs Triton; only `small_batch.py` does so. The 4-bit layout is
described in `humming.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Two words (four columns of rows r and r + 8, twice) times eight numbers of x, as two fp32 sums. Byte permutes look up
# the upper and the lower bytes of four bf16 numbers at once; signs are already where bf16 has them, or four bits below.
# Products are added in bf16 pairs, four to a lane, which costs 2e-3 of the sum; everything after that is fp32.
TWO_WORDS = tl.constexpr("""
{
    .reg .b32 m, s, ll, lh, hl, hh, v, p, q;
    and.b32 m, $2, 0x77777777;
    prmt.b32 ll, 0xc0800000, 0xc0804000, m;
    prmt.b32 lh, 0x3f3f3f00, 0x40404040, m;
    shr.u32 m, m, 16;
    prmt.b32 hl, 0xc0800000, 0xc0804000, m;
    prmt.b32 hh, 0x3f3f3f00, 0x40404040, m;
    and.b32 s, $2, 0x80808080;
    or.b32 lh, lh, s;
    shl.b32 s, $2, 4;
    and.b32 s, s, 0x80808080;
    or.b32 hh, hh, s;
    mov.b32 s, 0;
    prmt.b32 v, ll, lh, 0x5140;
    fma.rn.bf16x2 p, v, $4, s;
    prmt.b32 v, ll, lh, 0x7362;
    fma.rn.bf16x2 p, v, $5, p;
    prmt.b32 v, hl, hh, 0x5140;
    fma.rn.bf16x2 q, v, $4, s;
    prmt.b32 v, hl, hh, 0x7362;
    fma.rn.bf16x2 q, v, $5, q;
    and.b32 m, $3, 0x77777777;
    prmt.b32 ll, 0xc0800000, 0xc0804000, m;
    prmt.b32 lh, 0x3f3f3f00, 0x40404040, m;
    shr.u32 m, m, 16;
    prmt.b32 hl, 0xc0800000, 0xc0804000, m;
    prmt.b32 hh, 0x3f3f3f00, 0x40404040, m;
    and.b32 s, $3, 0x80808080;
    or.b32 lh, lh, s;
    shl.b32 s, $3, 4;
    and.b32 s, s, 0x80808080;
    or.b32 hh, hh, s;
    prmt.b32 v, ll, lh, 0x5140;
    fma.rn.bf16x2 p, v, $6, p;
    prmt.b32 v, ll, lh, 0x7362;
    fma.rn.bf16x2 p, v, $7, p;
    prmt.b32 v, hl, hh, 0x5140;
    fma.rn.bf16x2 q, v, $6, q;
    prmt.b32 v, hl, hh, 0x7362;
    fma.rn.bf16x2 q, v, $7, q;
    shl.b32 s, p, 16;
    and.b32 p, p, 0xffff0000;
    add.f32 $0, s, p;
    shl.b32 s, q, 16;
    and.b32 q, q, 0xffff0000;
    add.f32 $1, s, q;
}
""")
EXPONENT = tl.constexpr(127 - 6)  # an offset means 2^(offset - 6)


@triton.jit
def _value(word, i: tl.constexpr, sign: tl.constexpr):
    """The fp32 number with its magnitude at bit 4 i and its sign at bit `sign`, in plain arithmetic."""
    half = ((word >> (4 * i)) & 7) << 9 | ((word >> sign) & 1) << 15  # fp16, 2^14 too small
    return half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 16384.0


@triton.jit
def word_products(word, x01, x23, part: tl.constexpr):
    """Row r (`part` 0) or r + 8 (1) of one word times four numbers of x, two bf16 each in `x01` and `x23`."""
    x0, x1 = (x01 << 16).to(tl.float32, bitcast=True), (x01 & -65536).to(tl.float32, bitcast=True)
    x2, x3 = (x23 << 16).to(tl.float32, bitcast=True), (x23 & -65536).to(tl.float32, bitcast=True)
    first: tl.constexpr = 4 * part
    sign: tl.constexpr = 7 - 4 * part
    return (
        _value(word, first, sign) * x0
        + _value(word, first + 1, sign + 8) * x1
        + _value(word, first + 2, sign + 16) * x2
        + _value(word, first + 3, sign + 24) * x3
    )


@triton.jit
def _two_words_products(word0, word1, x0, x1, plain: tl.constexpr):
    """Rows r and r + 8 of two words times eight numbers of x (`x0` and `x1`: four bf16 numbers in an int64 each)."""
    a0, b0, a1, b1 = x0.to(tl.int32), (x0 >> 32).to(tl.int32), x1.to(tl.int32), (x1 >> 32).to(tl.int32)
    if plain:
        low = word_products(word0, a0, b0, 0) + word_products(word1, a1, b1, 0)
        high = word_products(word0, a0, b0, 1) + word_products(word1, a1, b1, 1)
    else:
        low, high = tl.inline_asm_elementwise(
            TWO_WORDS,
            "=f,=f,r,r,r,r,r,r",
            args=[word0, word1, a0, b0, a1, b1],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    return low, high


@triton.jit
def _factor(folded, group):
    """fp32 2^(offset - 6) of one block of 32 columns; `folded` holds the four blocks of 128 columns."""
    offset = (folded >> ((group % 4) * 8)) & 0xF
    return ((offset + EXPONENT) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _unit_rows(first, units: tl.constexpr):
    """Units of two rows (r and r + 8), numbered so that eight neighbours share whole 32-byte pieces of the scales.

    Returns, `[1, units, 1]` each, the memory row of r, its block of 64 rows, and the place of its scales in there.
    """
    unit = first + tl.arange(0, units)
    block, r, group = unit // 32, unit % 32 // 4, unit % 4
    return (block * 64 + group * 16 + r)[None, :, None], block[None, :, None], (r * 4 + group)[None, :, None]


@triton.jit
def _mx_products(
    words, scales, x, row, block, place, start, columns: tl.constexpr, bg: tl.constexpr, plain: tl.constexpr
):
    """Rows r and r + 8 of each unit times `bg` blocks of x from block `start`: fp32 `[bg, units, 4]` twice.

    Args:
        words: one matrix as int32 `[rows, columns / 8]`.
        scales: its folded offsets as int32 `[rows / 64, columns / 128, 16, 4]`.
        x: `[columns / 4]` int64.
    """
    group = start + tl.arange(0, bg)[:, None, None]  # [bg, 1, 1]
    quad = tl.arange(0, 4)[None, None, :]
    at = words + row * (columns // 8) + group * 4 + quad  # [bg, units, 4]
    word0, word1 = tl.load(at), tl.load(at + columns)  # half block 0 lies in row r, half block 1 in row r + 8
    folded = scales + (block * (columns // 128) + group // 4) * 64 + place  # [bg, units, 1]
    low_scale, high_scale = tl.load(folded), tl.load(folded + 32)
    x0, x1 = tl.load(x + group * 8 + quad), tl.load(x + group * 8 + 4 + quad)  # [bg, 1, 4]
    low, high = _two_words_products(word0, word1, x0, x1, plain)
    return low * _factor(low_scale, group), high * _factor(high_scale, group)


@triton.jit
def _total(products):
    """`[bg, units, 4]` summed over blocks and quads: `[units]`."""
    return tl.sum(tl.sum(products, axis=2), axis=0)


@triton.jit
def _tile_and_choice(together):
    """A program's tile of output rows and its choice (or its part of a token's choices).

    One token's programs read one expert after the other. With several tokens the programs of one tile run `together`:
    those that read the same rows of the same expert then find them in the cache, and memory is read once.
    """
    first, second = tl.program_id(0), tl.program_id(1)
    return tl.where(together != 0, second, first), tl.where(together != 0, first, second)


@triton.jit(do_not_specialize=["together"])
def gate_and_up_mxfp4(
    x,
    index,
    words,
    scales,
    factor,
    out,
    together,
    topk,
    hidden: tl.constexpr,
    width: tl.constexpr,
    units: tl.constexpr,
    bg: tl.constexpr,
    unroll: tl.constexpr,
    plain: tl.constexpr,
):
    """`up * silu(gate)` of each (token, choice): `out` bf16 `[tokens * topk, width]`.

    Grid (width / 2 / units, tokens * topk), the other way round where `together`.

    Args:
        x: int64 `[tokens, hidden / 4]`, four bf16 numbers each.
        words, scales: of all experts, see `_mx_products`; factor: fp32 `[experts]`.
    """
    tile, choice = _tile_and_choice(together)
    expert = tl.load(index + choice).to(tl.int64)
    row, block, place = _unit_rows(tile * units, units)
    words += expert * (2 * width) * (hidden // 8)
    scales += expert * (2 * width // 64) * (hidden // 128) * 64
    x += choice // topk * (hidden // 4)
    up_low, up_high = tl.zeros([bg, units, 4], tl.float32), tl.zeros([bg, units, 4], tl.float32)
    gate_low, gate_high = tl.zeros([bg, units, 4], tl.float32), tl.zeros([bg, units, 4], tl.float32)
    for start in tl.range(0, hidden // 32, bg, loop_unroll_factor=unroll):
        low, high = _mx_products(words, scales, x, row, block, place, start, hidden, bg, plain)
        up_low += low
        up_high += high
        low, high = _mx_products(words, scales, x, row + width, block + width // 64, place, start, hidden, bg, plain)
        gate_low += low
        gate_high += high
    by = tl.load(factor + expert)
    rows = tl.reshape(row, [units])
    at = out + choice * width + rows
    tl.store(at, _swiglu(_total(up_low) * by, _total(gate_low) * by).to(tl.bfloat16))
    tl.store(at + 8, _swiglu(_total(up_high) * by, _total(gate_high) * by).to(tl.bfloat16))


@triton.jit(do_not_specialize=["together"])
def down_mxfp4(
    h,
    index,
    weights,
    words,
    scales,
    factor,
    out,
    together,
    topk: tl.constexpr,
    hidden: tl.constexpr,
    width: tl.constexpr,
    splits: tl.constexpr,
    units: tl.constexpr,
    bg: tl.constexpr,
    unroll: tl.constexpr,
    plain: tl.constexpr,
):
    """The weighted sum over `topk / splits` of a token's choices: `out` `[tokens, splits, hidden]`.

    Grid (hidden / 2 / units, tokens * splits), or turned round. `h` is int64 `[tokens * topk, width / 4]`, four bf16
    numbers each.
    """
    tile, part = _tile_and_choice(together)
    row, block, place = _unit_rows(tile * units, units)
    low_sum, high_sum = tl.zeros([bg, units, 4], tl.float32), tl.zeros([bg, units, 4], tl.float32)
    for step in range(topk // splits):
        choice = part * (topk // splits) + step
        expert = tl.load(index + choice).to(tl.int64)
        by = tl.load(weights + choice) * tl.load(factor + expert)
        words_of = words + expert * hidden * (width // 8)
        scales_of = scales + expert * (hidden // 64) * (width // 128) * 64
        for start in tl.range(0, width // 32, bg, loop_unroll_factor=unroll):
            low, high = _mx_products(
                words_of, scales_of, h + choice * (width // 4), row, block, place, start, width, bg, plain
            )
            low_sum += low * by
            high_sum += high * by
    rows = tl.reshape(row, [units])
    at = out + part * hidden + rows
    tl.store(at, _total(low_sum).to(out.dtype.element_ty))
    tl.store(at + 8, _total(high_sum).to(out.dtype.element_ty))


@triton.jit
def _swiglu(up, gate):
    return up * gate / (1.0 + tl.exp(-gate))


@triton.jit(do_not_specialize=["together"])
def gate_and_up_dense(
    x,
    index,
    matrix,
    scale,
    out,
    together,
    topk,
    hidden: tl.constexpr,
    width: tl.constexpr,
    rows: tl.constexpr,
    bk: tl.constexpr,
    scaled: tl.constexpr,
):
    """As `gate_and_up_mxfp4` for bf16 or fp8 `matrix` `[experts, 2 * width, hidden]`.

    Grid (width / rows, tokens * topk). `x` is bf16 `[tokens, hidden]`; `scale` fp32 `[experts]` where `scaled`.
    """
    tile, choice = _tile_and_choice(together)
    expert = tl.load(index + choice).to(tl.int64)
    row = tile * rows + tl.arange(0, rows)
    column = tl.arange(0, bk)
    at = matrix + expert * (2 * width) * hidden + row[:, None] * hidden + column[None, :]
    x += choice // topk * hidden
    up, gate = tl.zeros([rows, bk], tl.float32), tl.zeros([rows, bk], tl.float32)
    for start in range(0, hidden, bk):
        up_part, gate_part = tl.load(at + start), tl.load(at + start + width * hidden)
        values = tl.load(x + start + column).to(tl.float32)[None, :]
        up += up_part.to(tl.float32) * values
        gate += gate_part.to(tl.float32) * values
    by = 1.0
    if scaled:
        by = tl.load(scale + expert)
    result = _swiglu(tl.sum(up, axis=1) * by, tl.sum(gate, axis=1) * by)
    tl.store(out + choice * width + row, result.to(tl.bfloat16))


@triton.jit(do_not_specialize=["together"])
def down_dense(
    h,
    index,
    weights,
    matrix,
    scale,
    out,
    together,
    topk: tl.constexpr,
    hidden: tl.constexpr,
    width: tl.constexpr,
    splits: tl.constexpr,
    rows: tl.constexpr,
    bk: tl.constexpr,
    scaled: tl.constexpr,
):
    """As `down_mxfp4` for bf16 or fp8 `matrix` `[experts, hidden, width]`; grid (hidden / rows, tokens * splits)."""
    tile, part = _tile_and_choice(together)
    row = tile * rows + tl.arange(0, rows)
    column = tl.arange(0, bk)
    total = tl.zeros([rows, bk], tl.float32)
    for step in range(topk // splits):
        choice = part * (topk // splits) + step
        expert = tl.load(index + choice).to(tl.int64)
        by = tl.load(weights + choice)
        if scaled:
            by *= tl.load(scale + expert)
        at = matrix + expert * hidden * width + row[:, None] * width + column[None, :]
        for start in range(0, width, bk):
            values = tl.load(h + choice * width + start + column).to(tl.float32)[None, :]
            total += tl.load(at + start).to(tl.float32) * (values * by)
    tl.store(out + part * hidden + row, tl.sum(total, axis=1).to(out.dtype.element_ty))


@triton.jit
def add_splits(parts, out, hidden: tl.constexpr, splits: tl.constexpr, rows: tl.constexpr):
    """fp32 `[tokens, splits, hidden]` to bf16 `[tokens, hidden]`; grid (hidden / rows, tokens)."""
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    token = tl.program_id(1)
    total = tl.zeros([rows], tl.float32)
    for i in range(splits):
        total += tl.load(parts + (token * splits + i) * hidden + row)
    tl.store(out + token * hidden + row, total.to(tl.bfloat16))
