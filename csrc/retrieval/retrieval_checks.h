// Checks, contiguous inputs and results of retrieval_metrics and distance_metrics, the same for the
// CPU and CUDA glue.
#pragma once

#include <limits>
#include <string>

#include "glue/checks.h"

namespace oskt::retrieval {

constexpr double kSkipped = std::numeric_limits<double>::quiet_NaN();  // query without a hit
constexpr int64_t kMaxGallery = std::numeric_limits<int32_t>::max() - 1;

struct Labels {
  Tensor query_ids, gallery_ids, query_cameras, gallery_cameras;  // int64, contiguous
};

// `like` is a tensor of the device that the labels must be on.
inline Labels checked_labels(const char* op, const Tensor& like, int64_t queries, int64_t gallery,
                             const Tensor& query_ids, const Tensor& gallery_ids,
                             const Tensor& query_cameras, const Tensor& gallery_cameras) {
  const auto checked = [&](const char* name, const Tensor& values, int64_t count) {
    check(values.dim() == 1 && values.numel() == count &&
              values.scalar_type() == ScalarType::Long && values.device() == like.device(),
          op, name, " must be an int64 vector of one entry per ",
          count == queries ? "query" : "gallery item", " on the device of the rest.");
    return torch::stable::contiguous(values);
  };
  return {checked("query_ids", query_ids, queries), checked("gallery_ids", gallery_ids, gallery),
          checked("query_cameras", query_cameras, queries),
          checked("gallery_cameras", gallery_cameras, gallery)};
}

// Features of k_reciprocal too.
inline void check_features(const char* op, const Tensor& query_features,
                           const Tensor& gallery_features, const std::string& metric) {
  check(query_features.dim() == 2 && gallery_features.dim() == 2, op,
        "features must be of rank 2, got ", query_features.dim(), " and ", gallery_features.dim(),
        ".");
  check(query_features.numel() > 0 && gallery_features.numel() > 0, op,
        "features must not be empty, got ", query_features.size(0), " and ",
        gallery_features.size(0), " rows.");
  check(query_features.size(1) == gallery_features.size(1) &&
            query_features.scalar_type() == gallery_features.scalar_type(),
        op, "gallery_features must be of the width and dtype of query_features.");
  check(gallery_features.device() == query_features.device(), op,
        "gallery_features must be on the device of query_features.");
  check(metric == "cosine" || metric == "euclidean", op,
        "metric must be 'cosine' or 'euclidean', got '", metric, "'.");
}

struct Inputs : Labels {
  Tensor query_features, gallery_features;  // [queries, width], [gallery, width]
  int64_t queries, gallery;
  bool cosine;
};

inline Inputs checked_inputs(const Tensor& query_features, const Tensor& gallery_features,
                             const Tensor& query_ids, const Tensor& gallery_ids,
                             const Tensor& query_cameras, const Tensor& gallery_cameras,
                             const std::string& metric, int64_t max_rank) {
  constexpr const char* op = "retrieval_metrics: ";
  check_features(op, query_features, gallery_features, metric);
  check(max_rank >= 1 && max_rank <= std::numeric_limits<int32_t>::max(), op,
        "max_rank must be in 1 .. 2^31 - 1, got ", max_rank, ".");
  check(gallery_features.size(0) <= kMaxGallery, op,
        "gallery_features must have fewer than 2^31 - 1 rows, got ", gallery_features.size(0), ".");
  return {checked_labels(op, query_features, query_features.size(0), gallery_features.size(0),
                         query_ids, gallery_ids, query_cameras, gallery_cameras),
          torch::stable::contiguous(query_features),
          torch::stable::contiguous(gallery_features),
          query_features.size(0),
          gallery_features.size(0),
          metric == "cosine"};
}

// What one query counts; float64 [queries].
struct QueryRows {
  Tensor average_precision, trapezoid_average_precision, inverse_negative_penalty;

  QueryRows(const Tensor& like, int64_t queries)
      : average_precision(torch::stable::new_empty(like, {queries}, ScalarType::Double)),
        trapezoid_average_precision(torch::stable::new_empty(like, {queries}, ScalarType::Double)),
        inverse_negative_penalty(torch::stable::new_empty(like, {queries}, ScalarType::Double)) {}
};

}  // namespace oskt::retrieval
