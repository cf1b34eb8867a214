"""The compiled modules by name: FlashInfer's own build descriptions, with the cut mixture of experts in place of its.

Imports FlashInfer, which wants to know the GPU's architecture before anything else: `prepare_environment` says it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hunyuan.accel import flashinfer_modules
from hunyuan.accel.build import cut
from hunyuan.accel.build.tactics import FLASHINFER_VERSION
from hunyuan.accel.build.wanted import wanted_tiles

ARCHITECTURE = "9.0a"


def prepare_environment(work: Path, jobs: int) -> None:
    """What FlashInfer reads when it is imported: architecture, build folder, compilers at a time."""
    os.environ["FLASHINFER_CUDA_ARCH_LIST"] = ARCHITECTURE
    os.environ["FLASHINFER_WORKSPACE_BASE"] = str(work)
    os.environ["MAX_JOBS"] = str(jobs)
    os.environ.pop("FLASHINFER_DISABLE_JIT", None)  # set in the image, for the service
    # `ninja` is a Python package here: its program lies beside the interpreter, not always on the path.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def spec_of(name: str, full: bool = False) -> Any:
    """FlashInfer's `JitSpec` of one module. `full`: its stock mixture of experts, every type and tile."""
    import flashinfer
    import torch
    from flashinfer.jit import fused_moe, norm, tllm_utils
    from flashinfer.jit.attention import modules as attention

    if flashinfer.__version__ != FLASHINFER_VERSION:
        raise cut.SourceChanged(f"FlashInfer {flashinfer.__version__}; the cut is for {FLASHINFER_VERSION}")
    if name == flashinfer_modules.FUSED_MOE:
        return fused_moe.gen_cutlass_fused_moe_sm90_module() if full else cut_fused_moe()
    if name in (flashinfer_modules.PREFILL, flashinfer_modules.PREFILL_FP8):
        kind = torch.bfloat16 if name == flashinfer_modules.PREFILL else torch.float8_e4m3fn
        types = (kind, kind, torch.bfloat16)
        return attention.gen_single_prefill_module("fa3", *types, 128, 128, 0, False, False, False)
    if name == flashinfer_modules.TUNER:
        return tllm_utils.gen_trtllm_utils_module()
    if name == flashinfer_modules.NORM:
        return norm.gen_norm_module()
    raise ValueError(f"no module named {name}")


def build_together(specs: list[Any]) -> None:
    """Compiles the sources of all modules side by side. Raises FlashInfer's `RuntimeError` with a compiler's output."""
    from flashinfer.jit.core import build_jit_specs

    build_jit_specs(specs, skip_prebuilt=False)


def cut_fused_moe() -> Any:
    """As FlashInfer's own description of the module, with our sources and without what they do not use."""
    from flashinfer.jit import env
    from flashinfer.jit.core import gen_jit_spec, sm90a_nvcc_flags
    from flashinfer.jit.gemm.cutlass import generate_kernels

    folder = env.FLASHINFER_GEN_SRC_DIR / "hunyuan_fused_moe"
    defines = (
        "COMPILE_HOPPER_TMA_GEMMS",
        "COMPILE_HOPPER_TMA_GROUPED_GEMMS",
        "ENABLE_BF16",
        "ENABLE_FP8",
        "ENABLE_FP8_BLOCK_SCALE",
        "ENABLE_FP4",
        "USING_OSS_CUTLASS_MOE_GEMM",
        "CUTLASS_ENABLE_GDC_FOR_SM90=1",
        "CUTLASS_MIXED_GEMM_FP4_FP8_PREPROCESSED_SIGNS=1",
    )
    return gen_jit_spec(
        flashinfer_modules.FUSED_MOE,
        cut.write_sources(env.FLASHINFER_CSRC_DIR, folder, generate_kernels, wanted_tiles()),
        extra_cuda_cflags=[*sm90a_nvcc_flags, *(f"-D{define}" for define in defines)],
        extra_include_paths=cut.include_paths(env.FLASHINFER_CSRC_DIR, folder),
    )
