"""Puts a loaded network on the fastest path that the GPU, the installed packages and the settings allow.

Decides which kernels, which experts' backend and which buffers; what each of them does is in `hunyuan.model` and
`hunyuan.generation`. Everything is decided and prepared before the first request, and said in the log with its reason.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from hunyuan.accel.captured_decoding import CapturedCompany, CapturedDecoder
from hunyuan.accel.compile_report import COMPILED
from hunyuan.accel.experts.backends import (
    BackendError,
    Shapes,
    flashinfer_is_here,
    prepare_experts,
    resolve_impl,
    tune_experts,
)
from hunyuan.accel.experts.small_batch import triton_is_here
from hunyuan.accel.flashinfer_modules import ENGINE_MODULES, PREFILL_FP8, missing_modules
from hunyuan.accel.split_layers import connect
from hunyuan.accel.vae.fast_vae import use_fast_vae
from hunyuan.errors import SettingsError
from hunyuan.formats.config import CheckpointConfig
from hunyuan.formats.fp8_attention import Fp8AttentionOperations
from hunyuan.generation.company import TextCompany
from hunyuan.generation.kv_cache import layer_devices
from hunyuan.generation.workspace import StepMaker, Workspace, text_company, text_forward, zeros
from hunyuan.model.config import ModelConfig
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.operations import use_operations
from hunyuan.placement import Placement, current

HOPPER = (9, 0)
FUSED_DECODING = True
"""Whether `fused_decoding.py` decodes texts one at a time; `bench_engine.py --unfused` measures without."""
NO_LATE_COMPILING = "FLASHINFER_DISABLE_JIT"
"""FlashInfer's own variable; the image sets it."""

log = logging.getLogger(__name__)


def prepare(
    model: HunyuanImage3,
    placement: Placement,
    impl: str,
    capacity: int,
    expert_tokens: int,
    cache_dir: Path | None,
    second: HunyuanImage3 | None = None,
    fused: bool = False,
) -> Workspace | None:
    """Rearranges the model for speed where it lies; call once, after the weights are in place.

    Router and attention compute on in the dtypes of the operations that the model comes with.

    Args:
        impl: the experts' backend, from `choose_impl`.
        capacity: tokens per row that the engine keeps buffers for.
        expert_tokens: the most tokens of one call of the experts' backend; longer inputs go in pieces.
        cache_dir: where tactics measured at start are remembered; None: nowhere.
        second: a copy on another GPU, prepared alike.
        fused: decode with fused launches where the weights allow it. A text has other bits then than in company.

    Returns:
        the engine's buffers; None where a request allocates its own (a CPU, or fp32).

    Raises:
        SettingsError: none of the backend's compiled tiles computes these weights, or attention in fp8 is not compiled.
    """
    if model.device.type != "cuda" or model.dtype != torch.bfloat16:
        connect(model.model, placement)
        return None
    if triton := triton_is_here():
        COMPILED.start()
    use_fast_vae(model)
    hopper = capability(model.device) == HOPPER and triton
    for copy in [model] if second is None else [model, second]:
        with current(copy.device):
            _use_fast_kernels(copy, hopper)
            prepare_experts(copy, impl, expert_tokens, cache_dir, small_batch=hopper)
            tune_experts(copy)
    connect(model.model, placement)
    step = fused_step_maker(model, impl) if fused and hopper else None
    workspace = Workspace.create(model, capacity, CapturedDecoder if hopper and impl != "eager" else None, second, step)
    COMPILED.report("preparing the model")
    return workspace


def _use_fast_kernels(model: HunyuanImage3, hopper: bool) -> None:
    fp8 = isinstance(model.operations, Fp8AttentionOperations)
    if fp8:
        refuse_missing_fp8_attention(model.config, model.device, model.dtype)
    if not hopper:
        log.info("kernels: PyTorch's, one by one; ours need a Hopper GPU and Triton")
        return
    # Imported here: it needs Triton.
    from hunyuan.accel.hopper import HopperOperations

    attention = "fa3" if flashinfer_is_compiled() and model.config.attention_head_dim == 128 else "sdpa"
    kernels = HopperOperations(attention, router_dtype=model.operations.router_dtype, fp8_attention=fp8)
    use_operations(model, kernels)
    log.info("kernels on %s: ours for Hopper; attention: %s", model.device, kernels.attention)


def fused_step_maker(model: HunyuanImage3, impl: str) -> StepMaker | None:
    """What makes fused decode steps for these weights; None, with the reason in the log, where there is none."""
    # Imported here: it needs Triton.
    from hunyuan.accel.fused_decoding import fused_steps

    try:
        if impl != "flashinfer":
            raise TypeError(f"the experts are computed by {impl}")
        if len(set(layer_devices(model))) > 1:
            raise TypeError("the layers lie on several GPUs")
        step = fused_steps(model)
    except (TypeError, ValueError) as error:
        log.info("decoding: operation by operation (%s)", error)
        return None
    _run_one_token(model)
    log.info("decoding: fused launches that overlap")
    return step


@torch.inference_mode()
def _run_one_token(model: HunyuanImage3) -> None:
    """One token in separate launches, whose kernels a prompt's few last tokens need: fused decoding compiles others."""
    token, position = (torch.zeros(1, dtype=kind, device=model.device) for kind in (torch.int64, torch.int32))
    text_forward(model, zeros(model, 1, 8))(token, position)


def prepare_company(model: HunyuanImage3, impl: str, rows: int, capacity: int) -> TextCompany | None:
    """Buffers and a decoder for `rows` texts together; call after `prepare`, before any request.

    Where the kernels of a decode step are not ours, texts have their turns token by token, which gains no time; that is
    said in the log.

    Args:
        impl: the experts' backend, as for `prepare`.
        capacity: tokens of a row, prompt and text together.

    Returns:
        None for a model over several devices: each text is decoded alone.
    """
    if len(set(layer_devices(model))) > 1:
        log.warning("HUNYUAN_TEXT_BATCH=%d is for a model on one device; texts are decoded one by one", rows)
        return None
    if model.operations.name == "hopper" and impl == "flashinfer":
        with model.operations.for_a_few(rows):  # all that is ever run of it is captured here
            company = text_company(model, rows, capacity, CapturedCompany)
    else:
        log.warning("HUNYUAN_TEXT_BATCH=%d gains nothing here: it needs a Hopper GPU, Triton and FlashInfer", rows)
        company = text_company(model, rows, capacity, None)
    log.info("up to %d texts are decoded together, of up to %d tokens each with their prompts", rows, capacity)
    COMPILED.report("preparing to decode texts together")
    return company


def choose_impl(config: CheckpointConfig, device: torch.device, dtype: torch.dtype, moe_impl: str) -> str:
    """Settles `HUNYUAN_MOE_IMPL` and logs the reason. Raises `SettingsError`."""
    refuse_missing_kernels(device, dtype, moe_impl)
    layers = [i for i in range(config.num_hidden_layers) if config.is_moe(i)]
    if not layers:
        return "eager"
    formats = sorted(config.expert_formats[i] for i in layers)
    hardest = "mxfp4" if "mxfp4" in formats else formats[0]  # what the fewest backends compute
    shapes = {Shapes(config.num_experts[i], config.hidden_size, config.moe_intermediate_size[i]) for i in layers}
    here = flashinfer_is_compiled()
    try:
        impl, reason = resolve_impl(moe_impl, device, dtype, hardest, [*shapes], here, capability(device))
    except BackendError as error:
        raise SettingsError(f"{error}{missing_text()}") from error
    log.info("mixture of experts: %s (%s)", impl, reason)
    if moe_impl == "auto" and impl == "eager" and device.type == "cuda":
        log.warning("mixture of experts: the plain loop, tens of times slower than a fast backend%s", missing_text())
    elif moe_impl == "auto" and capability(device) == HOPPER and (lacks := missing_text()):
        log.warning("mixture of experts: %s, slower than flashinfer%s", impl, lacks)
    return impl


def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def flashinfer_is_compiled() -> bool:
    """Installed, and with all the libraries that the engine calls: a missing one would be compiled for hours."""
    return flashinfer_is_here() and not missing_modules()


def refuse_missing_kernels(device: torch.device, dtype: torch.dtype, moe_impl: str) -> None:
    """Raises `SettingsError` where the fast path was promised and a part of it is missing.

    With `FLASHINFER_DISABLE_JIT`, as in the image, all kernels are meant to be there: an engine that chose a slower
    backend by itself would hide the mistake. One that is asked for by name is used.
    """
    promised = moe_impl in ("auto", "flashinfer") and os.environ.get(NO_LATE_COMPILING)
    hopper = capability(device) == HOPPER and dtype == torch.bfloat16
    if promised and hopper and (text := missing_text()):
        raise SettingsError(f"{NO_LATE_COMPILING} is set{text}, or ask for HUNYUAN_MOE_IMPL=torch or eager")


def refuse_missing_fp8_attention(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raises `SettingsError` on a Hopper GPU that would compute fp8 attention in its plain form, tens of times slower.

    Other devices, and models whose heads the kernel does not take, have the plain form only.
    """
    if capability(device) != HOPPER or dtype != torch.bfloat16 or config.attention_head_dim != 128:
        return
    if not triton_is_here():
        raise SettingsError("HUNYUAN_ATTENTION=fp8 needs Triton, which is not installed; install it, or use bf16")
    missing = missing_modules((*ENGINE_MODULES, PREFILL_FP8))
    if missing:
        raise SettingsError(f"HUNYUAN_ATTENTION=fp8 needs the compiled {', '.join(missing)}: run `hunyuan kernels`")


def missing_text() -> str:
    """For an error: what FlashInfer lacks here, or nothing."""
    if not flashinfer_is_here() or not (missing := missing_modules()):
        return ""
    return f"; FlashInfer lacks the compiled {', '.join(missing)}: run `hunyuan kernels`"
