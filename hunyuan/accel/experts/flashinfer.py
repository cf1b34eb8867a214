"""The experts of one layer through FlashInfer's fused mixture of experts for Hopper: bf16, fp8, and 4-bit "humming".

Weights stay what they were loaded as, except MXFP4 ones, which are rearranged in place. Routing is the caller's. Knows
FlashInfer's call and its tensors; which tile to use comes from `tactics.py`, and a call without a tuned one is refused.
4-bit integers with fp8 activations (w4a8) are left out: on the same card they are slower than humming at every size and
no more exact. FlashInfer is imported when a layer is prepared.

fp8 activations. Humming scales each token by itself, inside. In the fp8 mode one scale serves all tokens of a call,
computed on the device: the hidden states' from their largest value, the intermediate's from a bound that always holds,
|up * silu(gate)| <= |x|^2 * max_j |up_j| |gate_j| for each expert. That bound is far above the true maximum (some 300
times with Gaussian weights), which an 8-bit float bears: it keeps its precision over four decades. Nothing has to be
calibrated and no result depends on an earlier call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hunyuan.accel.experts.humming import humming_layout_in_place
from hunyuan.accel.experts.small_batch import MAX_TOKENS, SmallBatch, Stacks, triton_is_here
from hunyuan.accel.experts.tactics import Key, ProfileIds, Tactics, gpu_family
from hunyuan.formats.numbers import FP8, FP8_MAX
from hunyuan.model.moe import Experts

MODE_OF_FORMAT = {"bf16": "bf16", "fp8": "fp8", "mxfp4": "humming"}
FLAGS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "fp8": {},
    "humming": {"use_w4_group_scaling": True, "use_wfp4afp8_humming": True},
}


def key_of(mode: str, topk: int, experts: Experts, device: torch.device) -> Key:
    """What tactics for these experts on this GPU are filed under."""
    import flashinfer

    properties = torch.cuda.get_device_properties(device)
    gpu = gpu_family(properties.major, properties.minor, properties.multi_processor_count)
    return Key(flashinfer.__version__, gpu, mode, (experts.count, topk, experts.hidden, experts.width))


@dataclass
class Shared:
    """What a model's layers of one kind on one device have in common.

    Attributes:
        max_tokens: of one call into FlashInfer; longer inputs go in pieces.
        workspace: uint8, FlashInfer's scratch memory for `max_tokens`; one for all, since layers run one after another.
        small_batch: send up to eight tokens to our own kernels.
    """

    key: Key
    tactics: Tactics
    max_tokens: int
    workspace: Tensor
    small_batch: bool


def shared_for(experts: Experts, topk: int, tactics: Tactics, max_tokens: int, small_batch: bool) -> Shared:
    """Allocates the workspace on the experts' device."""
    from flashinfer.fused_moe import cutlass_fused_moe_workspace_size

    mode = MODE_OF_FORMAT[experts.format]
    device = experts.get_parameter("down_proj").device
    bf16 = torch.bfloat16
    x_dtype, weight_dtype = {"bf16": (bf16, bf16), "fp8": (FP8, FP8), "humming": (bf16, torch.uint8)}[mode]
    size = cutlass_fused_moe_workspace_size(
        max_tokens,
        experts.hidden,
        experts.width,
        experts.count,
        topk,
        x_dtype=x_dtype,
        weight_dtype=weight_dtype,
        output_dtype=bf16,
        device=device,
        **FLAGS[mode],
    )
    workspace = torch.empty(size, dtype=torch.uint8, device=device)
    return Shared(key_of(mode, topk, experts, device), tactics, max_tokens, workspace, small_batch and triton_is_here())


class FlashInferExperts(nn.Module):
    """Takes over the weights of `experts` (which is of no use afterwards where it was MXFP4).

    Forward as `Experts.forward`, with bf16 `x`. Raises `Untuned` where no tactic was measured.
    """

    def __init__(self, experts: Experts, shared: Shared) -> None:
        super().__init__()
        self.shared, self.mode = shared, shared.key.mode
        stacks = take_stacks(experts, self.mode)
        self.gate_and_up, self.down = stacks.gate_and_up, stacks.down
        self.stacks = stacks
        self.small = SmallBatch(stacks) if shared.small_batch else None
        self.scales = _fixed_scales(stacks, self.mode)
        self.bound = intermediate_bound(stacks) if self.mode == "fp8" else None

    def forward(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        """`x` bf16 `[tokens, hidden]`, `weights` and `index` `[tokens, topk]` -> `[tokens, hidden]`."""
        if self.small is not None and len(x) <= MAX_TOKENS:
            return self.small(x, weights, index)
        return self.big(x, weights, index)

    def big(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        """FlashInfer whatever the number of tokens, in pieces of at most `max_tokens`."""
        x, weights, index = x.contiguous(), weights.float().contiguous(), index.int().contiguous()
        out = torch.empty_like(x)
        for start in range(0, len(x), self.shared.max_tokens):
            part = slice(start, start + self.shared.max_tokens)
            tokens = len(x[part])
            self.run(x[part], weights[part], index[part], out[part], self.shared.tactics.find(self.shared.key, tokens))
        return out

    def run(self, x: Tensor, weights: Tensor, index: Tensor, out: Tensor, ids: ProfileIds) -> None:
        """One call with the tactics `ids`, into `out` bf16. `index` int32, `weights` fp32, all contiguous.

        FlashInfer raises `RuntimeError` for a tile that is not compiled.
        """
        from flashinfer.fused_moe import cutlass_fused_moe

        scales = self.scales
        if self.mode == "fp8":
            x, scales = self._fp8_inputs(x)
        cutlass_fused_moe(
            x,
            index,
            weights,
            self.gate_and_up,
            self.down,
            torch.bfloat16,
            quant_scales=scales,
            output=out,
            workspace_buffer=self.shared.workspace,
            profile_ids=list(ids),
            tune_max_num_tokens=self.shared.max_tokens,
            **FLAGS[self.mode],
        )

    def _fp8_inputs(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        assert self.bound is not None
        assert self.stacks.gate_and_up_scale is not None
        assert self.stacks.down_scale is not None
        quantized, scale, squared = quantize_tokens(x)
        inner = (squared * self.bound / FP8_MAX).clamp(min=1e-30)  # [experts]
        return quantized, [
            (self.stacks.gate_and_up_scale * scale).contiguous(),
            inner.reciprocal(),
            self.stacks.down_scale * inner,
            scale,
        ]


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """bf16 `[tokens, hidden]` to float8 with one scale, all on the device.

    Returns:
        the float8 tokens, their fp32 scale (a scalar tensor; value = float8 * scale) and the largest squared norm of a
        token after rounding, an upper bound (scalar fp32).
    """
    # A power of two has the same value in bf16 as in fp32, so applying the scale rounds nothing.
    largest = torch.linalg.vector_norm(x, float("inf"), dtype=torch.float32)
    scale = power_of_two_above(largest / FP8_MAX)
    quantized = (x * scale.reciprocal().to(x.dtype)).to(FP8)  # exact up to the one rounding to float8
    norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).amax()
    return quantized, scale, (norm * 1.07) ** 2  # float8 rounds a number up by a sixteenth at most


def power_of_two_above(x: Tensor) -> Tensor:
    """The smallest power of two that is at least `x` >= 0, fp32; 1 for 0."""
    mantissa, exponent = torch.frexp(x.float())  # x = mantissa * 2^exponent, mantissa in [.5, 1)
    exponent = exponent - (mantissa == 0.5).to(exponent.dtype)
    return torch.ldexp(torch.ones_like(mantissa), exponent)


def intermediate_bound(stacks: Stacks) -> Tensor:
    """fp32 `[experts]`: `max_j |up_j| |gate_j|` over the rows of each expert's gate_and_up."""
    bounds = []
    for expert, matrix in enumerate(stacks.gate_and_up):
        up, gate = torch.linalg.vector_norm(matrix.float(), dim=1).chunk(2)  # [width] each
        scale = 1.0 if stacks.gate_and_up_scale is None else stacks.gate_and_up_scale[expert]
        bounds.append((up * gate).amax() * scale**2)
    return torch.stack(bounds)


def take_stacks(experts: Experts, mode: str) -> Stacks:
    """The weights as FlashInfer wants them; rearranged in place for humming, and shared otherwise."""
    parts: dict[str, Any] = {name: value.detach() for name, value in experts.named_parameters()}
    if mode == "bf16":
        return Stacks(parts["gate_and_up_proj"], parts["down_proj"])
    first, second = parts["gate_and_up_scale"], parts["down_scale"]
    if mode == "fp8":
        return Stacks(parts["gate_and_up_proj"], parts["down_proj"], first, second)
    gate_and_up, gate_and_up_offsets, first = humming_layout_in_place(parts["gate_and_up_proj"], first)
    down, down_offsets, second = humming_layout_in_place(parts["down_proj"], second)
    return Stacks(gate_and_up, down, first, second, gate_and_up_offsets, down_offsets)


def _fixed_scales(stacks: Stacks, mode: str) -> list[Tensor] | None:
    if mode != "humming":
        return None
    assert stacks.gate_and_up_offsets is not None
    assert stacks.down_offsets is not None
    assert stacks.gate_and_up_scale is not None
    assert stacks.down_scale is not None
    reserved = torch.ones((), dtype=torch.float32, device=stacks.down.device)
    return [
        stacks.gate_and_up_offsets.view(torch.int32),
        stacks.gate_and_up_scale,
        reserved,
        stacks.down_offsets.view(torch.int32),
        stacks.down_scale,
    ]
