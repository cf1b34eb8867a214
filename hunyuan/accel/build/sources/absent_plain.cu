// The tiles that are not built, so that the module links: each throws when it is called. cut.py writes the instances.
#include "tensorrt_llm/kernels/cutlass_kernels/moe_gemm/launchers/moe_gemm_tma_ws_launcher.h"
#include "cutlass/arch/arch.h"
#include "cutlass/epilogue/dispatch_policy.hpp"
#include "cutlass/gemm/dispatch_policy.hpp"
#include "cutlass_extensions/epilogue_helpers.h"
#include "tensorrt_llm/common/assert.h"

namespace tensorrt_llm::kernels::cutlass_kernels_oss {
using SafeFP4 = tensorrt_llm::kernels::cutlass_kernels::Fp4Type;

template <typename Arch, typename T, typename WeightType, typename OutputType, typename EpilogueSchedule,
          typename EpilogueTag, TmaWarpSpecializedGroupedGemmInput::EpilogueFusion Fusion, typename TileShape,
          typename ClusterShape, bool MxFp, bool DynamicCluster, bool Bias, bool SwapAB>
void tma_warp_specialized_generic_moe_gemm_kernelLauncher(TmaWarpSpecializedGroupedGemmInput, int, int, cudaStream_t,
                                                          int*, size_t*, cute::Shape<int32_t, int32_t, cute::_1>,
                                                          cute::Shape<int32_t, int32_t, cute::_1>) {
  TLLM_THROW("this tile of fused_moe is not in this build (hunyuan kernels --full)");
}

INSTANCES
}  // namespace tensorrt_llm::kernels::cutlass_kernels_oss
