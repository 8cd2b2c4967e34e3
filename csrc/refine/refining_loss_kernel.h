// Launchers of refining_loss on CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/storage.h"

namespace oskt::refine {

constexpr int kBlocks = 132 * 8;  // fills an H200; fixed, so that sums do not depend on the device
constexpr int kChunk = 128;       // teacher tensors per launch, or gradients
constexpr int kStretch = 2048;    // elements that a block scales at a time

struct LossParams {
  const int64_t* table;  // layout of refining_loss.h
  const double* weight;
  const void* chain;
  void* chain_gradient;  // nullptr: not computed
  double scale;
  int64_t table_numel, num_weights, num_items, chain_numel;
};

// The teacher tensors of one launch. They travel as a kernel parameter: no copy to the device, and
// a captured graph keeps them.
struct LossChunk {
  const void* teacher[kChunk];
  void* teacher_gradient[kChunk];  // nullptr: not computed
  int64_t numel[kChunk];
  int64_t first_item, count;
  double* partial;  // [kBlocks], written whole
};

// The gradients that one launch scales, in stretches of kStretch elements.
struct ScaleChunk {
  void* gradient[kChunk];
  int64_t numel[kChunk];
  int64_t stretches_end[kChunk];  // running totals
  int64_t stretches;
  const void* factor;
};

static_assert(sizeof(LossParams) + sizeof(LossChunk) <= 4000 && sizeof(ScaleChunk) <= 4000,
              "kernel parameters are 4 KB at most");

cudaError_t launch_refining_loss(const LossParams& params, const LossChunk& chunk, Storage storage,
                                 cudaStream_t stream);

// loss = sum of partial[0 .. count - 1] in a fixed order; float64 when `wide`, else float32.
cudaError_t launch_loss_sum(const double* partial, int64_t count, void* loss, bool wide,
                            cudaStream_t stream);

// gradient *= factor, read on the device; where it is 1 nothing is touched.
cudaError_t launch_scale(const ScaleChunk& chunk, Storage storage, cudaStream_t stream);

}  // namespace oskt::refine
