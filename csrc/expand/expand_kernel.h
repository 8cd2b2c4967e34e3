// Launcher of expand on CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/storage.h"

namespace oskt::expand {

struct ExpandParams {
  const void* source;
  void* student;
  const int64_t* table;       // layout of expand.h
  const double* coefficient;  // layout of expand.h
  int64_t table_numel, coefficient_numel, source_numel, student_numel;
};

cudaError_t launch_expand(const ExpandParams& params, Storage storage, cudaStream_t stream);

}  // namespace oskt::expand
