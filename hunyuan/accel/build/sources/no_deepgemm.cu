// Belongs to DeepSeek's block-scaled fp8 kernels, which are not built; FlashInfer calls it when it loads the module.
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

namespace {
void set_deepgemm_jit_include_dirs(tvm::ffi::Array<tvm::ffi::String>) {}
}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(set_deepgemm_jit_include_dirs, set_deepgemm_jit_include_dirs);
