"""Replaces every layer's neutral experts by a fast backend, one layer at a time, and warms the backends up.

A backend is a module with the forward of `Experts`. Which one: `resolve_impl`. Does not know settings by their names in
the environment, nor the rest of the model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from hunyuan.accel.experts.tactics import Tactics
from hunyuan.errors import SettingsError
from hunyuan.model.moe import Experts, MoE

IMPLS = ("flashinfer", "torch", "eager")
MULTIPLE = 128  # FlashInfer's 4-bit tiles; asked of its other modes too, so that one rule holds
TORCH_BYTES = 16  # torch's grouped products want rows of whole 16 bytes

log = logging.getLogger(__name__)


class BackendError(SettingsError):
    """This backend cannot compute these weights on this machine."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of one layer's experts."""

    experts: int
    hidden: int
    width: int


def flashinfer_is_here() -> bool:
    return find_spec("flashinfer") is not None


def moe_blocks(model: nn.Module) -> list[MoE]:
    return [module for module in model.modules() if isinstance(module, MoE)]


def resolve_impl(
    requested: str,
    device: torch.device,
    dtype: torch.dtype,
    expert_format: str,
    shapes: list[Shapes],
    flashinfer: bool,
    capability: tuple[int, int] = (0, 0),
) -> tuple[str, str]:
    """Chooses among `IMPLS`.

    Args:
        requested: one of `IMPLS`, or "auto".
        dtype: of the activations.
        expert_format: "bf16", "fp8" or "mxfp4".
        flashinfer: whether it can be imported and its kernels are compiled.
        capability: of the GPU.

    Returns:
        the backend and, for the log, why.

    Raises:
        BackendError: `requested` cannot compute this here; says what can.
    """
    if requested not in ("auto", *IMPLS):
        raise BackendError(f"moe_impl={requested} is not one of auto, {', '.join(IMPLS)}")
    against = {
        "flashinfer": _against_flashinfer(device, dtype, shapes, flashinfer, capability),
        "torch": _against_torch(device, dtype, expert_format, shapes),
        "eager": None,
    }
    if requested == "auto":
        chosen = next(impl for impl in IMPLS if against[impl] is None)
        passed_over = [
            f"not {impl}: {why}" for impl, why in against.items() if why and IMPLS.index(impl) < IMPLS.index(chosen)
        ]
        return chosen, "; ".join(passed_over) or f"the fastest for {expert_format} on this GPU"
    why = against[requested]
    if why is not None:
        possible = ", ".join(impl for impl in IMPLS if against[impl] is None)
        raise BackendError(f"moe_impl={requested} is impossible here: {why}; possible: {possible}")
    return requested, "as asked for"


def _against_flashinfer(
    device: torch.device, dtype: torch.dtype, shapes: list[Shapes], present: bool, capability: tuple[int, int]
) -> str | None:
    if device.type == "cuda" and capability != (9, 0):
        return f"its kernels here are for compute capability 9.0, this GPU has {capability[0]}.{capability[1]}"
    if device.type == "cuda" and not present:
        return "FlashInfer is not installed with its compiled kernels"
    return _against_products(device, dtype, shapes, MULTIPLE)


def _against_torch(device: torch.device, dtype: torch.dtype, expert_format: str, shapes: list[Shapes]) -> str | None:
    if expert_format == "mxfp4":
        return "torch has no grouped product for 4-bit weights"
    return _against_products(device, dtype, shapes, TORCH_BYTES // (1 if expert_format == "fp8" else 2))


def _against_products(device: torch.device, dtype: torch.dtype, shapes: list[Shapes], multiple: int) -> str | None:
    """What both ask of the device, the activations and the sizes."""
    if device.type != "cuda":
        return f"it needs a GPU and the device is {device.type}"
    if dtype != torch.bfloat16:
        return f"it computes in bfloat16, not {dtype}".replace("torch.", "")
    odd = [s for s in shapes if s.hidden % multiple or s.width % multiple]
    if odd:
        return f"hidden size {odd[0].hidden} and expert width {odd[0].width} must be multiples of {multiple}"
    return None


@torch.no_grad()
def prepare_experts(
    model: nn.Module, impl: str, max_tokens: int, cache_dir: Path | None = None, small_batch: bool = True
) -> Tactics | None:
    """Replaces the experts of every layer of `model` in place; a layer's neutral module is dropped before the next.

    Args:
        impl: from `resolve_impl`.
        max_tokens: the most tokens of one call; FlashInfer's workspace, one per device, is made for it, and longer
            inputs go in pieces.
        cache_dir: where measured tactics are read and written.
        small_batch: up to eight tokens go through our own kernels (needs Triton), with "flashinfer" only.

    Returns:
        the tactics with "flashinfer" (for `tune_experts`), None otherwise.
    """
    if impl == "eager":
        return None
    tactics = Tactics(cache_dir)
    shared: dict[tuple[Shapes, int, str, torch.device], object] = {}
    for block in moe_blocks(model):
        experts = block.experts
        if not isinstance(experts, Experts):
            continue
        if impl == "torch":
            from hunyuan.accel.experts.torch_grouped import TorchExperts

            block.experts = TorchExperts(experts)
            continue
        from hunyuan.accel.experts.flashinfer import FlashInferExperts, Shared, shared_for

        device = experts.get_parameter("down_proj").device  # each has its own workspace
        kind = (Shapes(experts.count, experts.hidden, experts.width), block.topk, experts.format, device)
        if kind not in shared:
            shared[kind] = shared_for(experts, block.topk, tactics, max_tokens, small_batch)
        common = shared[kind]
        assert isinstance(common, Shared)
        block.experts = FlashInferExperts(experts, common)
    return tactics if impl == "flashinfer" else None


def tune_experts(model: nn.Module, buckets: tuple[int, ...] | None = None) -> list[str]:
    """Measures what no table knows, once for each kind of layer; checks the entries that a table does know.

    Args:
        buckets: numbers of tokens; None: `tactics.usual_buckets` of the workspace's size.

    Returns:
        one line for the log per measured entry.

    Raises:
        NoTileWorks: no compiled tile computes this.
    """
    from hunyuan.accel.experts.flashinfer import FlashInferExperts
    from hunyuan.accel.experts.tuning import tune

    lines, seen = [], set()
    for block in moe_blocks(model):
        backend = block.experts
        if isinstance(backend, FlashInferExperts) and backend.shared.key not in seen:
            seen.add(backend.shared.key)
            lines += tune(backend, buckets)
    for line in lines:
        log.info("%s", line)
    return lines
