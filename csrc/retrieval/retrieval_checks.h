// Checks, contiguous inputs and results of retrieval_metrics, the same for the CPU and CUDA glue.
#pragma once

#include <limits>
#include <string>

#include "glue/checks.h"

namespace oskt::retrieval {

constexpr double kSkipped = std::numeric_limits<double>::quiet_NaN();  // query without a hit

struct Inputs {
  Tensor query_features, gallery_features;  // [queries, width], [gallery, width]
  Tensor query_ids, gallery_ids, query_cameras, gallery_cameras;  // int64
  int64_t queries, gallery, width;
  bool cosine;
};

inline Inputs checked_inputs(const Tensor& query_features, const Tensor& gallery_features,
                             const Tensor& query_ids, const Tensor& gallery_ids,
                             const Tensor& query_cameras, const Tensor& gallery_cameras,
                             const std::string& metric, int64_t max_rank) {
  constexpr const char* op = "retrieval_metrics: ";
  check(query_features.dim() == 2 && gallery_features.dim() == 2, op,
        "features must be of rank 2, got ", query_features.dim(), " and ", gallery_features.dim(),
        ".");
  check(query_features.numel() > 0 && gallery_features.numel() > 0, op,
        "features must not be empty, got ", query_features.size(0), " and ",
        gallery_features.size(0), " rows.");
  check(query_features.size(1) == gallery_features.size(1) &&
            query_features.scalar_type() == gallery_features.scalar_type(),
        op, "gallery_features must be of the width and dtype of query_features.");
  check(metric == "cosine" || metric == "euclidean", op,
        "metric must be 'cosine' or 'euclidean', got '", metric, "'.");
  check(max_rank >= 1 && max_rank <= std::numeric_limits<int32_t>::max(), op,
        "max_rank must be in 1 .. 2^31 - 1, got ", max_rank, ".");
  check(gallery_features.size(0) < std::numeric_limits<int32_t>::max(), op,
        "gallery_features must have fewer than 2^31 - 1 rows, got ", gallery_features.size(0), ".");
  const auto labels = [&](const char* name, const Tensor& values, const Tensor& features) {
    check(values.dim() == 1 && values.numel() == features.size(0) &&
              values.scalar_type() == ScalarType::Long &&
              values.device() == query_features.device(),
          op, name, " must be an int64 vector of one entry per feature row on its device.");
    return torch::stable::contiguous(values);
  };
  check(gallery_features.device() == query_features.device(), op,
        "gallery_features must be on the device of query_features.");
  return {torch::stable::contiguous(query_features),
          torch::stable::contiguous(gallery_features),
          labels("query_ids", query_ids, query_features),
          labels("gallery_ids", gallery_ids, gallery_features),
          labels("query_cameras", query_cameras, query_features),
          labels("gallery_cameras", gallery_cameras, gallery_features),
          query_features.size(0),
          gallery_features.size(0),
          query_features.size(1),
          metric == "cosine"};
}

struct Outputs {
  Tensor cmc, average_precision, trapezoid_average_precision, inverse_negative_penalty;  // float64

  Outputs(const Inputs& in, int64_t max_rank)
      : cmc(vector(in, max_rank)),
        average_precision(vector(in, in.queries)),
        trapezoid_average_precision(vector(in, in.queries)),
        inverse_negative_penalty(vector(in, in.queries)) {}

 private:
  static Tensor vector(const Inputs& in, int64_t size) {
    return torch::stable::new_empty(in.query_features, {size}, ScalarType::Double);
  }
};

}  // namespace oskt::retrieval
