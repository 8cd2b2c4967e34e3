// What every CUDA glue does around a launch: storage type, current stream, launch check.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/storage.h"
#include "glue/checks.h"

namespace oskt {

inline Storage storage_of(const char* op, const Tensor& tensor) {
  Storage storage = Storage::kFloat32;
  dispatch_floating(op, tensor.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    if constexpr (std::is_same_v<scalar_t, double>) storage = Storage::kFloat64;
    if constexpr (std::is_same_v<scalar_t, c10::Half>) storage = Storage::kFloat16;
    if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) storage = Storage::kBFloat16;
  });
  return storage;
}

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op, cudaError_t status) {
  check(status == cudaSuccess, op, ": the kernel launch must succeed, got ",
        cudaGetErrorString(status), ".");
}

}  // namespace oskt
