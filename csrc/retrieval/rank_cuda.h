// What the CUDA glue of retrieval_metrics and distance_metrics hands to the ranks kernel.
#pragma once

#include "retrieval/retrieval_checks.h"
#include "retrieval/scores_cuda.h"

namespace oskt::retrieval {

inline Tensor rank_workspace(const Labels& labels, int64_t chunk) {
  return torch::stable::new_empty(labels.query_ids, {chunk, 2, labels.gallery_ids.numel()},
                                  ScalarType::Int);
}

// Queries [start, start + count), whose scores stand in the first `count` rows of `scores`.
template <typename acc_t>
RankParams<acc_t> rank_params(const Labels& labels, const QueryRows& out, const Tensor& first_hit,
                              const Tensor& workspace, acc_t* scores, int64_t score_pitch,
                              int64_t start, int64_t count) {
  return {scores,
          workspace.mutable_data_ptr<int32_t>(),
          labels.query_ids.const_data_ptr<int64_t>() + start,
          labels.query_cameras.const_data_ptr<int64_t>() + start,
          labels.gallery_ids.const_data_ptr<int64_t>(),
          labels.gallery_cameras.const_data_ptr<int64_t>(),
          out.average_precision.mutable_data_ptr<double>() + start,
          out.trapezoid_average_precision.mutable_data_ptr<double>() + start,
          out.inverse_negative_penalty.mutable_data_ptr<double>() + start,
          first_hit.mutable_data_ptr<int32_t>() + start,
          count,
          labels.gallery_ids.numel(),
          score_pitch};
}

}  // namespace oskt::retrieval
