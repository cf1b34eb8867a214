"""Which compiled FlashInfer modules the engine calls, and whether they are there.

FlashInfer loads `data/aot/<name>/<name>.so` of its own package without a compiler; anything else it compiles when it
is first called, which takes minutes to hours. Knows names and files; imports neither torch nor FlashInfer.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

FUSED_MOE = "fused_moe_90"  # the experts, all weight formats
_PREFILL = (  # FlashAttention 3, heads of 128, no mask but causal
    "single_prefill_with_kv_cache_dtype_q_{0}_dtype_kv_{0}_dtype_o_bf16_head_dim_qk_128_head_dim_vo_128"
    "_posenc_0_use_swa_False_use_logits_cap_False_f16qk_False_sm90"
)
PREFILL, PREFILL_FP8 = _PREFILL.format("bf16"), _PREFILL.format("e4m3")
TUNER = "trtllm_utils"  # the autotuner measures with it; without it every tactic silently counts as failed
NORM = "norm"  # RMSNorm; the engine has its own, so this one is built only when named

ENGINE_MODULES = (FUSED_MOE, PREFILL, TUNER)
BUILT_MODULES = (*ENGINE_MODULES, PREFILL_FP8)  # the last for HUNYUAN_ATTENTION=fp8 alone


def aot_folder() -> Path | None:
    """FlashInfer's folder of compiled modules, None where FlashInfer is not installed."""
    spec = importlib.util.find_spec("flashinfer")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "aot"


def library(name: str, folder: Path) -> Path:
    return folder / name / f"{name}.so"


def missing_modules(names: tuple[str, ...] = ENGINE_MODULES) -> list[str]:
    """Those of `names` that have no compiled library: what a first call would compile, or fail on."""
    folder = aot_folder()
    return [name for name in names if folder is None or not library(name, folder).is_file()]
