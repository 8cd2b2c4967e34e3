// Launchers of k_reciprocal_kernel.cu; no torch here. Every launcher is asynchronous on its stream
// and returns the launch error. Rows and scores come from retrieval_metrics_kernel.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "retrieval/k_reciprocal.h"

namespace oskt::retrieval {

// Rows [first, first + count) of all: their nearest and farthest by the scores of the chunk.
template <typename acc_t>
struct NearestParams {
  const acc_t* scores;  // [count, score_pitch]
  const acc_t* bias;    // [rows]
  int32_t* index;       // [rows, length]
  double* farthest;     // [rows]
  int64_t first, count, rows, length, score_pitch;
  bool cosine;
};

// V of all rows, from their sets.
template <typename acc_t>
struct EncodeParams {
  const acc_t* features;  // [rows, pitch], of length 1 under cosine
  const double* farthest;
  Nearest nearest;
  SparseRows<acc_t> v;
  int64_t rows, pitch;
  bool cosine;
};

// V' of all rows. Counting writes start; merging takes it and writes the entries.
template <typename acc_t>
struct MergeParams {
  SparseRows<acc_t> v;
  Nearest nearest;
  int32_t* head;   // [rows, mean]
  int64_t* start;  // [rows + 1]
  int32_t* column;
  acc_t* weight;
  int64_t rows;
  int32_t mean;  // k2
};

// Re-ranked distances of a chunk of queries; pointers of queries start at the chunk.
template <typename acc_t>
struct RerankParams {
  const acc_t* scores;  // [queries, score_pitch]
  const acc_t* query_bias;
  const int64_t *start, *item_start;
  const int32_t *column, *item;
  const acc_t *weight, *item_weight;
  const double* farthest;
  double* shared;    // scratch [queries, gallery]
  acc_t* distances;  // [queries, gallery]
  int64_t queries, gallery, score_pitch;
  double lambda;
  bool cosine;
};

template <typename acc_t>
cudaError_t launch_nearest(const NearestParams<acc_t>& params, cudaStream_t stream);
template <typename acc_t>
cudaError_t launch_encode(const EncodeParams<acc_t>& params, cudaStream_t stream);
template <typename acc_t>
cudaError_t launch_count(const MergeParams<acc_t>& params, cudaStream_t stream);
template <typename acc_t>
cudaError_t launch_merge(const MergeParams<acc_t>& params, cudaStream_t stream);
template <typename acc_t>
cudaError_t launch_rerank(const RerankParams<acc_t>& params, cudaStream_t stream);

}  // namespace oskt::retrieval
