"""The experts of one layer through torch's grouped matrix products: bf16 and fp8 weights, no compiled kernels of ours.

Choices are sorted by expert on the device, each expert multiplies its rows, and results come back through
the inverse order, summed over a token's choices in a fixed order in fp32: nothing waits for the host and two runs
agree. On the CPU a loop over the experts stands in for the product, so that the order is tested without a GPU.
fp8 activations have one scale per row, computed from that row. Knows torch's operations and nothing of FlashInfer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import linear, silu

from hunyuan.formats.numbers import FP8, FP8_MAX
from hunyuan.model.moe import Experts


class TorchExperts(nn.Module):
    """Takes over the weights of `experts` (bf16, fp32 on the CPU, or fp8). Forward as `Experts.forward`."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.count = experts.count
        self.gate_and_up = experts.get_parameter("gate_and_up_proj").detach()
        self.down = experts.get_parameter("down_proj").detach()
        self.scales: tuple[Tensor, Tensor] | None = None
        if self.down.dtype == FP8:
            # torch scales a product by row and by column; an expert has one scale for all its columns.
            self.scales = _columns(experts, "gate_and_up"), _columns(experts, "down")

    def forward(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        """`x` `[tokens, hidden]`, `weights` and `index` `[tokens, topk]` -> `[tokens, hidden]`."""
        order, ends = sort_by_expert(index, self.count)
        rows = x[order // index.shape[1]]  # [tokens * topk, hidden]
        up, gate = self._product(rows, self.gate_and_up, 0, ends).chunk(2, dim=-1)
        rows = self._product(up * silu(gate), self.down, 1, ends)  # [tokens * topk, hidden]
        return weighted_sum(rows, weights, inverse(order).view_as(index)).to(x.dtype)

    def _product(self, rows: Tensor, matrices: Tensor, which: int, ends: Tensor) -> Tensor:
        if self.scales is None:
            return grouped_product(rows, matrices, ends)
        return scaled_grouped_product(rows, matrices, self.scales[which], ends)


def sort_by_expert(index: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """The choices of `index` `[tokens, topk]` in the order of their experts.

    Returns:
        order: int64 `[tokens * topk]`, flat positions in `index`; ties keep their order.
        ends: int32 `[experts]`, where each expert's choices end.
    """
    chosen, order = index.flatten().sort(stable=True)
    numbers = torch.arange(experts, device=index.device, dtype=chosen.dtype)
    return order, torch.searchsorted(chosen, numbers, right=True).int()  # bincount would wait for the host


def inverse(order: Tensor) -> Tensor:
    """Where each position went: `inverse(order)[order[i]] == i`."""
    where = torch.empty_like(order)
    where[order] = torch.arange(len(order), device=order.device)
    return where


def weighted_sum(rows: Tensor, weights: Tensor, where: Tensor) -> Tensor:
    """fp32 `[tokens, hidden]`: the sum over k of `rows[where[:, k]] * weights[:, k]`, in the order of k."""
    total = torch.zeros(len(weights), rows.shape[-1], dtype=torch.float32, device=rows.device)
    for k in range(weights.shape[1]):
        total.addcmul_(rows[where[:, k]].float(), weights[:, k, None])
    return total


def grouped_product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Each expert's part of `rows` `[n, inputs]` times its expert's matrix `[outputs, inputs]`: `[n, outputs]`."""
    if rows.is_cuda:
        grouped_mm = getattr(functional, "grouped_mm", None) or torch._grouped_mm  # public since torch 2.10
        return grouped_mm(rows, matrices.transpose(-2, -1), offs=ends)
    return _loop(rows, matrices, ends)


def scaled_grouped_product(rows: Tensor, matrices: Tensor, columns: Tensor, ends: Tensor) -> Tensor:
    """As `grouped_product` with fp8 `matrices`, fp32 `columns` `[experts, outputs]`; `rows` are rounded to fp8 too."""
    quantized, scale = quantize_rows(rows)
    if rows.is_cuda:
        return torch._scaled_grouped_mm(
            quantized,
            matrices.transpose(-2, -1),
            scale,
            columns,
            offs=ends,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
    product = _loop(quantized.float(), matrices, ends)
    starts = torch.arange(len(rows))
    expert = torch.searchsorted(ends.long(), starts, right=True)
    return (product * scale[:, None] * columns[expert]).to(rows.dtype)


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """float8 `[n, inputs]` and fp32 `[n]`: value = float8 * scale."""
    scale = rows.abs().amax(dim=-1).float().clamp(min=1e-12) / FP8_MAX
    return (rows / scale[:, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def _loop(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    out = torch.empty(len(rows), matrices.shape[1], dtype=rows.dtype, device=rows.device)
    start = 0
    for expert, end in enumerate(ends.tolist()):
        out[start:end] = linear(rows[start:end], matrices[expert].to(rows.dtype))
        start = end
    return out


def _columns(experts: Experts, name: str) -> Tensor:
    scale, matrices = experts.get_parameter(f"{name}_scale"), experts.get_parameter(f"{name}_proj")
    return scale.detach()[:, None].expand(-1, matrices.shape[1]).contiguous()  # [experts, outputs]
