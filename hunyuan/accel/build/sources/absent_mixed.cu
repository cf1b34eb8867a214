// The tiles that are not built, so that the module links: each throws when it is called. cut.py writes the instances.
#include "tensorrt_llm/kernels/cutlass_kernels/moe_gemm/launchers/moe_gemm_tma_ws_mixed_input_launcher.h"
#include "cutlass/arch/arch.h"
#include "cutlass/epilogue/dispatch_policy.hpp"
#include "cutlass/gemm/dispatch_policy.hpp"
#include "cutlass_extensions/epilogue_helpers.h"
#include "tensorrt_llm/common/assert.h"

namespace tensorrt_llm::kernels::cutlass_kernels_oss {
using SafeFP4 = tensorrt_llm::kernels::cutlass_kernels::Fp4Type;

template <typename T, typename WeightType, typename OutputType, typename EpilogueTag, typename TileShape,
          typename ClusterShape, typename MainloopSchedule, typename EpilogueSchedule, cutlass::WeightOnlyQuantOp Quant,
          cutlass::gemm::collective::MixedInputScaleMode ScaleMode>
void sm90_generic_mixed_moe_gemm_kernelLauncher(GroupedGemmInput<T, WeightType, OutputType, OutputType>,
                                                TmaWarpSpecializedGroupedGemmInput, int, size_t*) {
  TLLM_THROW("this tile of fused_moe is not in this build (hunyuan kernels --full)");
}

template <typename T, typename WeightType, typename OutputType, typename EpilogueTag, typename TileShape,
          typename ClusterShape, typename MainloopSchedule, typename EpilogueSchedule, cutlass::WeightOnlyQuantOp Quant,
          cutlass::gemm::collective::MixedInputScaleMode ScaleMode,
          tensorrt_llm::cutlass_extensions::MainloopScheduleType KernelType>
void sm90_generic_mixed_moe_small_k_kernelLauncher(GroupedGemmInput<T, WeightType, OutputType, OutputType>,
                                                   TmaWarpSpecializedGroupedGemmInput, int, size_t*) {
  TLLM_THROW("this tile of fused_moe is not in this build (hunyuan kernels --full)");
}

INSTANCES
}  // namespace tensorrt_llm::kernels::cutlass_kernels_oss
