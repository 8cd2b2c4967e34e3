// Launcher of distance_metrics_kernel.cu; no torch here. Asynchronous on its stream; returns the
// launch error.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/storage.h"

namespace oskt::retrieval {

// scores[q * score_pitch + g] = -distances[q * gallery_count + g]
template <typename acc_t>
struct NegateParams {
  const void* distances;
  Storage storage;
  acc_t* scores;
  int64_t query_count, gallery_count, score_pitch;
};

template <typename acc_t>
cudaError_t launch_negate(const NegateParams<acc_t>& params, cudaStream_t stream);

}  // namespace oskt::retrieval
