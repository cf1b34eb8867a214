"""Attention by segments on fast kernels: FlashAttention 3 as FlashInfer ships it, or PyTorch's own.

Both take grouped heads as they are and align a causal run at its end with the keys. Knows which keys a segment
sees; does not know where queries and keys come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hunyuan.formats.fp8_attention import Attention
from hunyuan.model.attention import Segment, attend

HEAD_DIM = 128
Scales = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of q, k and v, fp32 `[heads]` or `[kv_heads]`; None where they are in bf16."""


class Run(Protocol):
    """One row: q and out `[tokens, heads, 128]`, k and v `[keys, kv_heads, 128]`."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, causal: bool, scales: Scales = (None, None, None)
    ) -> None: ...


# cuDNN is the fastest of PyTorch's on Hopper; the last two take what the others refuse.
_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def sdpa_attend(q: Tensor, keys: Tensor, values: Tensor, segments: Sequence[Segment]) -> Tensor:
    """`hunyuan.model.attention.attend` with PyTorch's fastest kernel for it."""
    with sdpa_kernel(_ORDER, set_priority=True):
        return attend(q, keys, values, segments)


def flashinfer_run(kind: torch.dtype) -> Run:
    """FlashAttention 3 over one row, heads of 128, q, k and v in `kind`, bf16 or e4m3; the result in bf16.

    The module is loaded here (and compiled, where FlashInfer holds no library for it: look before).

    Raises:
        ImportError: FlashInfer is not installed.
    """
    from flashinfer.prefill import get_single_prefill_module
    from flashinfer.utils import MaskMode, TensorLayout

    # Window, soft cap and fp16 reduction off; positions are in q and k already (mode 0).
    types = (kind, kind, torch.bfloat16)
    module = get_single_prefill_module("fa3", *types, HEAD_DIM, HEAD_DIM, 0, False, False, False)
    modes = {True: MaskMode.CAUSAL.value, False: MaskMode.NON_CAUSAL.value}
    layout = TensorLayout["NHD"].value
    scratch: dict[torch.device, Tensor] = {}

    def run(q: Tensor, k: Tensor, v: Tensor, out: Tensor, causal: bool, scales: Scales = (None, None, None)) -> None:
        if q.device not in scratch:
            scratch[q.device] = torch.empty(1, dtype=torch.uint8, device=q.device)  # not used by this kernel
        window, cap = -1, 0.0
        tail = (None, None, cap, HEAD_DIM**-0.5, *scales, 1.0, 1e4)
        module.run(q, k, v, scratch[q.device], out, None, modes[causal], layout, window, *tail)

    return run


def flashinfer_attend() -> Attention:
    """FlashAttention 3 for bf16 and heads of 128, other tensors through `sdpa_attend`.

    Raises:
        ImportError: FlashInfer is not installed.
    """
    kind = torch.bfloat16
    run = flashinfer_run(kind)

    def attention(q: Tensor, keys: Tensor, values: Tensor, segments: Sequence[Segment]) -> Tensor:
        if q.dtype != kind or q.shape[-1] != HEAD_DIM:
            return sdpa_attend(q, keys, values, segments)
        out, begin = torch.empty_like(q), segments[0].start
        for s in segments:
            mine = slice(s.start - begin, s.stop - begin)
            for row in range(len(q)):
                causal = s.causal and s.stop - s.start > 1
                run(q[row, mine], keys[row, : s.stop], values[row, : s.stop], out[row, mine], causal)
        return out

    return attention
