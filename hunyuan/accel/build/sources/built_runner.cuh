// Which type pairs this build has. Asking for another one throws here, before anything is computed.
template <typename Runner>
struct IsBuilt : std::false_type {};
KINDS

template <typename Runner>
std::unique_ptr<kernels::CutlassMoeFCRunnerInterface> built_runner() {
  if constexpr (IsBuilt<Runner>::value) {
    return std::make_unique<Runner>();
  } else {
    TVM_FFI_ICHECK(false) << "this build of fused_moe has no kernels for these types (hunyuan kernels --full)";
    return nullptr;
  }
}

