"""Up to eight tokens through their chosen MXFP4 experts: what `SmallBatch` does, with `streamed_kernels.py`.

Reads the same stacks and rounds at the same places. Knows the cut of each product; the kernels are imported at the
first call (they need Triton).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hunyuan.accel.experts.small_batch import SmallBatch, Stacks, _dividing, _words

_BLOCKS = 32  # blocks of 32 columns that a warp reads at once, one per lane
_ADDED = 512  # output rows of one program that adds splits


@dataclass(frozen=True)
class Units:
    """How a product is cut: `units` of two rows per program of `warps`, the second product's experts into `splits`."""

    units: int
    warps: int
    splits: int = 1


DEFAULT = Units(4, 4), Units(4, 4, 2)


class Streamed(SmallBatch):
    """`SmallBatch` for MXFP4 stacks.

    Args:
        cuts: of the first and of the second product.
        pdl: each launch may begin while the one before it ends; so must the launches before and behind, or wait as
            launches usually do (`hunyuan/accel/kernels/overlap.py`).

    Raises:
        ValueError: weights in another format, or sizes that do not divide.
    """

    def __init__(self, stacks: Stacks, cuts: tuple[Units, Units] = DEFAULT, pdl: bool = False) -> None:
        super().__init__(stacks)
        if not stacks.packed:
            raise ValueError(f"experts are {stacks.gate_and_up.dtype}, not MXFP4 in the humming layout")
        self.cuts, self.pdl = cuts, pdl

    def first_product(self, x: Tensor, index: Tensor, early: bool = False) -> Tensor:
        """As `SmallBatch.first_product`; `early`: another launch lies between this one and the choice of experts."""
        from hunyuan.accel.experts import streamed_kernels as kernels

        s, cut, choices = self.stacks, self.cuts[0], index.numel()
        h = torch.empty(choices, s.width, dtype=torch.bfloat16, device=x.device)
        units = _dividing(cut.units, s.width // 2)
        kernels.gate_and_up[(s.width // 2 // units, choices)](
            x.view(torch.int64), index, *_words(s.gate_and_up, s.gate_and_up_offsets), s.gate_and_up_scale, h,
            index.shape[1], hidden=s.hidden, width=s.width, **self._how(cut, units, s.hidden, early),
        )  # fmt: skip
        return h

    def second_product(
        self,
        h: Tensor,
        weights: Tensor,
        index: Tensor,
        early: bool = False,
        added: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """As `SmallBatch.second_product`, plus both tensors of `added`, bf16 `[tokens, hidden]`."""
        from hunyuan.accel.experts import streamed_kernels as kernels

        s, cut, (tokens, topk) = self.stacks, self.cuts[1], index.shape
        splits = _dividing(cut.splits, topk)
        out = torch.empty(tokens, s.hidden, dtype=torch.bfloat16, device=h.device)
        parts = out if splits == 1 else torch.empty(tokens, splits, s.hidden, device=h.device)
        units, (x, shared) = _dividing(cut.units, s.hidden // 2), added or (out, out)
        kernels.down[(s.hidden // 2 // units, tokens * splits)](
            h.view(torch.int64), index, weights, *_words(s.down, s.down_offsets), s.down_scale, x, shared, parts,
            topk=topk, hidden=s.hidden, width=s.width, splits=splits, add=splits == 1 and added is not None,
            **self._how(cut, units, s.width, early),
        )  # fmt: skip
        if splits > 1:
            rows = _dividing(_ADDED, s.hidden)
            kernels.add_parts[(s.hidden // rows, tokens)](
                parts, x, shared, out, hidden=s.hidden, splits=splits, rows=rows, add=added is not None,
                layout=kernels.gl.BlockedLayout([1], [32], [4], [0]), **kernels.turns(self.pdl),
            )  # fmt: skip
        return out

    def _how(self, cut: Units, units: int, columns: int, early: bool) -> dict[str, Any]:
        from hunyuan.accel.experts import streamed_kernels as kernels

        of_warp = max(1, units // cut.warps)
        return {
            "units": units,
            "bg": _dividing(_BLOCKS, columns // 32),
            "plain": kernels.INTERPRETED,
            "early": early,
            "layout": kernels.gl.BlockedLayout([1, of_warp, 4], [_BLOCKS, 1, 1], [1, cut.warps, 1], [2, 0, 1]),
            "num_warps": cut.warps,
            **kernels.turns(self.pdl),
        }
