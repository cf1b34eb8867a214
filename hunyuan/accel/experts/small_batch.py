"""Up to eight tokens through their chosen experts, in bf16, fp8 or MXFP4 weights: what decoding needs.

Reads the very weights that the big path reads (for MXFP4 in FlashInfer's "humming" layout), so there is one copy of
them. Activations stay bf16 with fp32 sums, which is more exact than the big path's fp8 activations. What becomes of a
token does not depend on those beside it, to the last bit. Nothing waits for the host and every shape is fixed, so a
call can live in a CUDA graph. Knows which kernel with which blocks; the kernels are in `small_batch_kernels.py`, which
is imported at the first call (it needs Triton).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from hunyuan.accel.experts.humming import plain_layout
from hunyuan.formats.numbers import FP8

MAX_TOKENS = 8
_ADDED = 512  # output rows of one program that adds splits


@dataclass(frozen=True)
class Blocks:
    """How a product is cut into programs.

    Attributes:
        rows: output rows of one program; MXFP4 counts units of two rows.
        columns: columns that a program reads in one step.
        warps: of one program.
        unroll: steps that are loaded together, with MXFP4.
        splits: programs among which the experts of a token are divided, for the second product only.
        plain: decode 4-bit values with plain arithmetic instead of byte permutes (what the interpreter can run).
    """

    rows: int
    columns: int
    warps: int = 4
    unroll: int = 2
    splits: int = 1
    plain: bool = False


@dataclass(frozen=True)
class Stacks:
    """The experts' weights as the kernels read them.

    Attributes:
        gate_and_up, down: bf16 or float8_e4m3fn `[experts, 2 * width, hidden]` and `[experts, hidden, width]`; or
            uint8 in `humming.py`'s layout, with half as many columns.
        gate_and_up_scale, down_scale: fp32 `[experts]` with fp8 and MXFP4 weights; None with bf16.
        gate_and_up_offsets, down_offsets: uint8 `[experts, rows / 64, columns / 128, 16, 16]` with MXFP4 weights.
    """

    gate_and_up: Tensor
    down: Tensor
    gate_and_up_scale: Tensor | None = None
    down_scale: Tensor | None = None
    gate_and_up_offsets: Tensor | None = None
    down_offsets: Tensor | None = None

    @property
    def packed(self) -> bool:
        return self.gate_and_up.dtype == torch.uint8

    def dequantized(self, expert: int) -> tuple[Tensor, Tensor]:
        """fp32 gate_and_up `[2 * width, hidden]` and down `[hidden, width]` of one expert."""
        one = slice(expert, expert + 1)
        matrices = (
            (self.gate_and_up, self.gate_and_up_offsets, self.gate_and_up_scale),
            (self.down, self.down_offsets, self.down_scale),
        )
        found = []
        for matrix, offsets, scale in matrices:
            if offsets is not None and scale is not None:
                found.append(plain_layout(matrix[one], offsets[one], scale[one])[0])
            else:
                found.append(matrix[expert].float() * (1.0 if scale is None else scale[expert]))
        return found[0], found[1]

    @property
    def hidden(self) -> int:
        return self.down.shape[1]

    @property
    def width(self) -> int:
        return self.gate_and_up.shape[1] // 2


def default_blocks(kind: torch.dtype) -> tuple[Blocks, Blocks]:
    """For the first and the second product, by the weights' dtype."""
    if kind == torch.uint8:
        return Blocks(8, 512), Blocks(8, 512, splits=4)
    columns = 1024 if kind == torch.bfloat16 else 2048
    return Blocks(4, columns), Blocks(4, 1024, splits=2)


def triton_is_here() -> bool:
    return find_spec("triton") is not None


class SmallBatch:
    """The computation for one layer. Call with `x` bf16 `[tokens, hidden]`, `weights` fp32 and `index` integers
    `[tokens, topk]`; tokens at most `MAX_TOKENS`. Returns bf16 `[tokens, hidden]`.

    Hidden size and width must be divisible by 128.
    """

    def __init__(self, stacks: Stacks, blocks: tuple[Blocks, Blocks] | None = None) -> None:
        for name, size in (("hidden size", stacks.hidden), ("expert width", stacks.width)):
            if size % 128:
                raise ValueError(f"{name} {size} is not divisible by 128")
        self.stacks = stacks
        self.blocks = blocks or default_blocks(stacks.gate_and_up.dtype)

    def __call__(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            raise TypeError(f"tokens must be bfloat16, not {x.dtype}")
        h = self.first_product(x.contiguous(), index)  # [tokens * topk, width]
        return self.second_product(h, weights, index)

    def first_product(self, x: Tensor, index: Tensor) -> Tensor:
        """`up * silu(gate)` of each choice: bf16 `[tokens * topk, width]`."""
        from hunyuan.accel.experts import small_batch_kernels as kernels

        s, cut = self.stacks, self.blocks[0]
        choices = index.numel()
        h = torch.empty(choices, s.width, dtype=torch.bfloat16, device=x.device)
        sizes = {"hidden": s.hidden, "width": s.width, "num_warps": cut.warps}
        index, together = index.contiguous(), int(len(index) > 1)
        if s.packed:
            units = _dividing(cut.rows, s.width // 2)
            bg = _dividing(cut.columns // 32, s.hidden // 32)
            kernels.gate_and_up_mxfp4[_grid(s.width // 2 // units, choices, together)](
                x.view(torch.int64), index, *_words(s.gate_and_up, s.gate_and_up_offsets), s.gate_and_up_scale, h,
                together, index.shape[1], units=units, bg=bg, unroll=cut.unroll, plain=cut.plain, **sizes,
            )  # fmt: skip
            return h
        rows, bk = _dividing(cut.rows, s.width), _dividing(cut.columns, s.hidden)
        scale = s.gate_and_up_scale if s.gate_and_up_scale is not None else s.gate_and_up
        kernels.gate_and_up_dense[_grid(s.width // rows, choices, together)](
            x, index, s.gate_and_up, scale, h, together, index.shape[1], rows=rows, bk=bk, scaled=_scaled(s), **sizes
        )
        return h

    def second_product(self, h: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        """`h` bf16 `[tokens * topk, width]` through down and summed: bf16 `[tokens, hidden]`."""
        from hunyuan.accel.experts import small_batch_kernels as kernels

        s, cut = self.stacks, self.blocks[1]
        tokens, topk = index.shape
        splits, together = _dividing(cut.splits, topk), int(tokens > 1)
        dtype = torch.bfloat16 if splits == 1 else torch.float32
        parts = torch.empty(tokens, splits, s.hidden, dtype=dtype, device=h.device)
        sizes = {"topk": topk, "hidden": s.hidden, "width": s.width, "splits": splits, "num_warps": cut.warps}
        index, weights = index.contiguous(), weights.contiguous()
        if s.packed:
            units = _dividing(cut.rows, s.hidden // 2)
            bg = _dividing(cut.columns // 32, s.width // 32)
            kernels.down_mxfp4[_grid(s.hidden // 2 // units, tokens * splits, together)](
                h.view(torch.int64), index, weights, *_words(s.down, s.down_offsets), s.down_scale, parts, together,
                units=units, bg=bg, unroll=cut.unroll, plain=cut.plain, **sizes,
            )  # fmt: skip
        else:
            rows, bk = _dividing(cut.rows, s.hidden), _dividing(cut.columns, s.width)
            scale = s.down_scale if s.down_scale is not None else s.down
            kernels.down_dense[_grid(s.hidden // rows, tokens * splits, together)](
                h, index, weights, s.down, scale, parts, together, rows=rows, bk=bk, scaled=_scaled(s), **sizes
            )
        if splits == 1:
            return parts.view(tokens, s.hidden)
        out = torch.empty(tokens, s.hidden, dtype=torch.bfloat16, device=h.device)
        rows = _dividing(_ADDED, s.hidden)
        kernels.add_splits[(s.hidden // rows, tokens)](parts, out, hidden=s.hidden, splits=splits, rows=rows)
        return out


def _grid(tiles: int, choices: int, together: int) -> tuple[int, int]:
    """The first axis runs fastest: with several `together`, all choices of a tile before the next tile."""
    return (choices, tiles) if together else (tiles, choices)


def _scaled(stacks: Stacks) -> bool:
    return stacks.gate_and_up.dtype == FP8


def _words(values: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    assert offsets is not None
    return values.view(torch.int32), offsets.view(torch.int32)


def _dividing(wanted: int, size: int) -> int:
    """The largest power of two that is at most `wanted` and divides `size`."""
    best = 1
    while best * 2 <= wanted and size % (best * 2) == 0:
        best *= 2
    return best
