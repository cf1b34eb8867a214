"""FlashInfer's fused mixture of experts, cut down to the types and tiles that this engine calls.

The stock module is 248 sources. Here the tiles named in `wanted.py` are instantiated, every other tile of the same
types becomes a function that throws, and type pairs that are not built are an error when they are asked for.
FlashInfer's own files are read from its package and edited copies are written into a folder of ours; each edit says
what it expects to find and fails when a new version of FlashInfer has moved it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hunyuan.accel.build.tactics import MODES, Tile

SOURCES = Path(__file__).with_name("sources")  # C++ of our own
LAUNCHERS = "tensorrt_llm/kernels/cutlass_kernels/moe_gemm/launchers/"
MOE_GEMM = "nv_internal/tensorrt_llm/kernels/cutlass_kernels/moe_gemm/"
BACKEND = "fused_moe/cutlass_backend/"
BINDING = BACKEND + "flashinfer_cutlass_fused_moe_binding.cu"
DISPATCH = MOE_GEMM + "moe_gemm_template_dispatch.h"
TILES_A_FILE = 6  # the same as 4 to 8 in one file for time; more take more memory a compiler

RUNNERS = {  # the template arguments of CutlassMoeFCRunner, and of the MoeGemmRunner under it
    "bf16": ("__nv_bfloat16, __nv_bfloat16", "__nv_bfloat16, __nv_bfloat16, __nv_bfloat16"),
    "fp8": ("__nv_fp8_e4m3, __nv_fp8_e4m3, __nv_bfloat16", "__nv_fp8_e4m3, __nv_fp8_e4m3, __nv_bfloat16"),
    "humming": (
        "__nv_fp8_e4m3, Fp4Type, __nv_bfloat16, __nv_bfloat16, __nv_bfloat16, false, "
        "Sm90Wfp4Afp8ScaleMode::kHummingPreMmaE8M0",
        "__nv_fp8_e4m3, Fp4Type, __nv_bfloat16, __nv_bfloat16, false, Sm90Wfp4Afp8ScaleMode::kHummingPreMmaE8M0",
    ),
}
NAMESPACE = "tensorrt_llm::kernels::cutlass_kernels"


class SourceChanged(RuntimeError):
    """FlashInfer's source is not the one that these edits were written for."""


def operations_by_mode(generator: Any) -> dict[str, dict[Tile, Any]]:
    """FlashInfer's own description of every Hopper tile of our modes. `generator` is its `generate_kernels` module."""
    data, schedule = generator.DataType, generator.KernelScheduleType
    found: dict[str, dict[Tile, Any]] = {name: {} for name in MODES}
    for op in generator.generate_sm90_grouped_gemm_operations(True):
        name = {data.bf16: "bf16", data.e4m3: "fp8"}.get(op.act_type)
        if name and op.output_type == data.bf16:
            fused = op.epi_fusion == generator.TrtLlm_EpilogueFusion.epilogue_fusion_finalize
            tile = Tile(tuple(op.cta_shape), tuple(op.cga_shape[:2]), swapped=op.swap_ab, finalize=fused)
            found[name][tile] = op
    for op in generator.generate_sm90_mixed_type_grouped_gemm_operations(True):
        if op.act_type == data.e4m3 and op.weight_type is generator.e2m1 and op.output_type == data.bf16:
            kind = op.sm90_mixed_input_kernel_type.removeprefix("single_warpgroup_")
            if kind == "warp_specialized":
                together = op.mainloop_schedule == schedule.TmaWarpSpecializedCooperative
                kind = "cooperative" if together else "pingpong"
            found["humming"][Tile(tuple(op.cta_shape), tuple(op.cga_shape[:2]), kind)] = op
    return found


def write_sources(stock: Path, folder: Path, generator: Any, wanted: dict[str, set[Tile]]) -> list[Path]:
    """Writes the edited copies of FlashInfer's `csrc` (`stock`) into `folder`; returns all sources of the module.

    Files whose text does not change keep their time, so that a second build compiles only what is new.
    """
    operations = operations_by_mode(generator)
    write(folder / "moe_gemm_template_dispatch.h", cut_dispatch((stock / DISPATCH).read_text()))
    sources = [
        write(folder / Path(BINDING).name, cut_binding((stock / BINDING).read_text(), wanted)),
        write(folder / "instantiation.cu", instantiations(wanted)),
    ]
    for name, tiles in wanted.items():
        sources.append(write(folder / f"runner_{name}.cu", gemm_runner(name)))
        sources += _tile_files(folder, name, operations[name], tiles, generator)
    for left_over in set(folder.glob("*.cu")) - set(sources):
        left_over.unlink()
    return [*sources, SOURCES / "no_deepgemm.cu", *(stock / path for path in UNCHANGED)]


def include_paths(stock: Path, folder: Path) -> list[str | Path]:
    """Ours first: the edited header stands in front of FlashInfer's, whose folders the edited copies still need."""
    internal = stock / "nv_internal"
    extensions = internal / "tensorrt_llm/cutlass_extensions/include"
    kernels = internal / "tensorrt_llm/kernels/cutlass_kernels"
    return [
        folder,
        internal,
        internal / "include",
        extensions,
        kernels / "include",
        kernels,
        stock / MOE_GEMM,
        stock / BACKEND,
    ]


def _tile_files(folder: Path, name: str, known: dict[Tile, Any], wanted: set[Tile], generator: Any) -> list[Path]:
    absent = sorted(map(str, wanted - known.keys()))
    if absent:
        raise SourceChanged(f"{name}: FlashInfer generates no {absent}")
    built = [op for tile, op in known.items() if tile in wanted]
    launcher = "moe_gemm_tma_ws_mixed_input_launcher.inl" if MODES[name].mixed else "moe_gemm_tma_ws_launcher.inl"
    files = []
    for start in range(0, len(built), TILES_A_FILE):
        text = generator.get_file_content([LAUNCHERS + launcher], built[start : start + TILES_A_FILE])
        files.append(write(folder / f"{name}_{start // TILES_A_FILE}.cu", text))
    rest = [op for tile, op in known.items() if tile not in wanted]
    files.append(write(folder / f"{name}_absent.cu", absent_tiles(rest, MODES[name].mixed, generator)))
    return files


def cut_binding(text: str, wanted: Iterable[str]) -> str:
    """Every `make_shared` or `make_unique` of a runner becomes one that only knows the runners that are built."""
    text, count = re.subn(
        r"std::make_(?:unique|shared)<\s*kernels::CutlassMoeFCRunner<([^;]*?)>>\(\)",
        r"built_runner<kernels::CutlassMoeFCRunner<\1>>()",
        text,
    )
    marker = "class DtypeUtils {"
    if count < 8 or text.count(marker) != 1:
        raise SourceChanged(f"{BINDING}: {count} runners made, {text.count(marker)} times {marker!r}")
    runners = [f"kernels::CutlassMoeFCRunner<{_in_binding(RUNNERS[name][0])}>" for name in wanted]
    kinds = "\n".join(f"template <> struct IsBuilt<{runner}> : std::true_type {{}};" for runner in runners)
    return text.replace(marker, (SOURCES / "built_runner.cuh").read_text().replace("KINDS", kinds) + marker)


def _in_binding(arguments: str) -> str:
    return arguments.replace("Fp4Type", "kernels::Fp4Type").replace("Sm90W", "kernels::Sm90W")


def cut_dispatch(text: str) -> str:
    """The kernels for older GPUs go: on Hopper no tactic of the table leads to them."""
    text, count = re.subn(
        r"cutlass_kernels_oss::dispatchMoeGemmToCutlass<[^;]*?>\(\s*inputs, multi_processor_count_\);",
        'TLLM_THROW("kernels for GPUs before Hopper are not in this build");',
        text,
    )
    if count != 6:
        raise SourceChanged(f"moe_gemm_template_dispatch.h: {count} calls of dispatchMoeGemmToCutlass, expected 6")
    return text


def instantiations(wanted: Iterable[str]) -> str:
    classes = "\n".join(f"template class CutlassMoeFCRunner<{RUNNERS[name][0]}>;" for name in wanted)
    finalize = "\n".join(
        f"INSTANTIATE_FINALIZE_MOE_ROUTING({kind}, {kind}, {kind});" for kind in ("half", "float", "__nv_bfloat16")
    )
    return (
        f'#include "cutlass_fused_moe_kernels.cuh"\n#include "moe_kernels.h"\n\n'
        f"namespace {NAMESPACE} {{\n{classes}\n{finalize}\n}}  // namespace {NAMESPACE}\n"
    )


def gemm_runner(name: str) -> str:
    return (
        f'#include "moe_gemm_template_dispatch.h"\n\n'
        f"namespace {NAMESPACE} {{\ntemplate class MoeGemmRunner<{RUNNERS[name][1]}>;\n}}  // namespace {NAMESPACE}\n"
    )


def absent_tiles(operations: list[Any], mixed: bool, generator: Any) -> str:
    """Definitions of the tiles that are not built, so that the module links: each throws when it is called."""
    if mixed:
        lines = [generator.instantiate_operation(op) for op in operations]
    else:
        lines = [_absent_plain(op, generator) for op in operations]
    template = SOURCES / f"absent_{'mixed' if mixed else 'plain'}.cu"
    return template.read_text().replace("INSTANCES", "\n".join(lines))


def _absent_plain(op: Any, generator: Any) -> str:
    """The stock text is a macro that carries the kernel's body, so the bare declaration is written out here."""
    kind, out = generator.CudaTypeName[op.act_type], generator.CudaTypeName[op.output_type]
    fusion = generator.EpiFusion[op.epi_fusion].removeprefix("tensorrt_llm::")
    shapes = f"{generator.tuple_to_cute_shape(op.cta_shape)}, {generator.tuple_to_cute_shape(op.cga_shape)}"
    return (
        f"template void tma_warp_specialized_generic_moe_gemm_kernelLauncher<cutlass::arch::Sm90, {kind}, {kind}, "
        f"{out}, void, tensorrt_llm::cutlass_extensions::EpilogueOpDefault, {fusion}, {shapes}, false, false, false, "
        f"{str(op.swap_ab).lower()}>(TmaWarpSpecializedGroupedGemmInput, int, int, cudaStream_t, int*, size_t*, "
        "cute::Shape<int32_t, int32_t, cute::_1>, cute::Shape<int32_t, int32_t, cute::_1>);"
    )


def write(path: Path, text: str) -> Path:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


UNCHANGED = (
    MOE_GEMM + "moe_gemm_tma_warp_specialized_input.cu",
    MOE_GEMM + "moe_gemm_mixed_utils.cu",
    "nv_internal/cpp/common/envUtils.cpp",
    "nv_internal/cpp/common/logger.cpp",
    "nv_internal/cpp/common/stringUtils.cpp",
    "nv_internal/cpp/common/tllmException.cpp",
    "nv_internal/cpp/common/memoryUtils.cu",
    "nv_internal/tensorrt_llm/kernels/preQuantScaleKernel.cu",
    "nv_internal/tensorrt_llm/kernels/cutlass_kernels/cutlass_heuristic.cpp",
    "nv_internal/tensorrt_llm/kernels/lora/lora.cpp",
)
