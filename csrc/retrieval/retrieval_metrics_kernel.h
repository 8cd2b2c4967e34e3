// Launchers of retrieval_metrics_kernel.cu; no torch here. Every launcher is asynchronous on its
// stream and returns the launch error.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/storage.h"

namespace oskt::retrieval {

constexpr int kTile = 128;  // queries and gallery items that any score tile divides
constexpr int kDepth = 8;   // features per step of a score tile

// Rows in the accumulation type, zero from width to pitch; cosine scales them to length 1.
template <typename acc_t>
struct RowsParams {
  const void* features;  // [count, width]
  Storage storage;
  acc_t* rows;  // [count, pitch], pitch a multiple of kDepth
  acc_t* bias;  // [count]: |row|^2 / 2, zero for cosine
  int64_t count, width, pitch;
  bool cosine;
};

// scores[q, g] = <queries[q], gallery[g]> - bias[g]; rows and columns are filled up to whole tiles
// (multiples of kTile) with copies of the last one.
template <typename acc_t>
struct ScoreParams {
  const acc_t* queries;  // [query_count, pitch]
  const acc_t* gallery;  // [gallery_count, pitch]
  const acc_t* bias;     // [gallery_count]
  acc_t* scores;         // [round_up(query_count), score_pitch], both multiples of kTile
  int64_t query_count, gallery_count, pitch, score_pitch;
};

// The metrics of one chunk of queries; all pointers of queries start at the chunk.
template <typename acc_t>
struct RankParams {
  acc_t* scores;       // junk is overwritten by -inf
  int32_t* workspace;  // [query_count, 2, gallery_count]
  const int64_t *query_ids, *query_cameras, *gallery_ids, *gallery_cameras;
  double *average_precision, *trapezoid_average_precision, *inverse_negative_penalty;
  int32_t* first_hit;  // rank, 0 without a hit
  int64_t query_count, gallery_count, score_pitch;
};

template <typename acc_t>
cudaError_t launch_rows(const RowsParams<acc_t>& params, cudaStream_t stream);
template <typename acc_t>
cudaError_t launch_scores(const ScoreParams<acc_t>& params, cudaStream_t stream);
template <typename acc_t>
cudaError_t launch_ranks(const RankParams<acc_t>& params, cudaStream_t stream);
// cmc[k] = share of the queries with a hit whose first hit has rank k + 1 or less.
cudaError_t launch_cmc(const int32_t* first_hit, int64_t query_count, double* cmc, int64_t max_rank,
                       cudaStream_t stream);

}  // namespace oskt::retrieval
